"""`softpool3d visualize` as a user types it, right and wrong."""

import resource
import signal
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from videos import damaged_files, write_numbered

from softpool3d.datasets.video.decoder import open_video


@contextmanager
def full_disk(size):
    """No file may become larger than `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def fails(result, code, *texts):
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    for text in texts:
        assert any(text in line for line in errors), result.stderr
    return True


def test_mp4_side_by_side_in_step(tmp_path, run):
    clip, out = write_numbered(tmp_path / "clip.mp4", 30), tmp_path / "new" / "pooled.mp4"
    result = run("visualize", clip, "--kernel", "2", "--pools", "soft,avg,max,stride", "--out", out)
    assert result.returncode == 0, result.stderr
    assert "30 frames of 64x48, pooled to 15 frames of 32x24 (soft, beta 16, avg" in result.stdout
    assert [p.name for p in out.parent.iterdir()] == [out.name]
    with open_video(out) as video:
        assert (video.num_frames, video.fps) == (30, 25)
        frames = video.frames([0, 1, 2, 3]).float()
    assert frames.shape[-1] == 5 * 124 - 4  # panels are 120 wide at least, for their labels
    original, soft = frames[..., 32:80, :64], frames[..., 32:80, 124:188]
    assert (soft[0] - soft[1]).abs().mean() < 2  # a pooled frame stays for two
    assert (original[0] - original[1]).abs().mean() > 2
    assert fails(run("visualize", clip, "--out", out), 2, "exists", "--overwrite")
    assert fails(run("visualize", clip, "--out", clip, "--overwrite"), 2, "is the clip itself")


def test_repeat_as_gif_and_png(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_numbered(tmp_path / "clip.mp4", 30, rate=60)
    for format in ("gif", "png"):
        result = run("visualize", "clip.mp4", "--repeat", "3", "--format", format, "--pools", "soft")
        assert result.returncode == 0, result.stderr
        assert "pooled to 15 frames of 32x24, 7 frames of 16x12, 3 frames of 8x6 (soft, beta 16)" in result.stdout
    with Image.open(tmp_path / "clip_pooled.gif") as animation:
        durations = []
        for frame in range(animation.n_frames):
            animation.seek(frame)
            durations.append(animation.info["duration"])
    assert min(durations) >= 20 and sum(durations) == 500  # 60 frames a second become fewer frames, as fast as before
    with Image.open(tmp_path / "clip_pooled.png") as sheet:
        assert np.asarray(sheet.convert("L")).std() > 20


def test_a_picture_and_others_that_fail(tmp_path, run):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).save(tmp_path / "photo.jpg")
    bad = damaged_files(tmp_path)
    one = write_numbered(tmp_path / "one.mp4", 1)
    clips = [tmp_path / "photo.jpg", *bad.values(), one, tmp_path / "absent.mp4"]
    result = run("visualize", *clips, "--out", tmp_path / "out", "--below")
    assert fails(result, 1, "the file is empty", "no video stream", "no such file", "1 of 7 clips done, 6 failed")
    assert fails(result, 1, "one.mp4: 1x48x64 has too few frames", "--kernel 1,2,2 leaves time alone")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["photo_pooled.png"]
    assert ": 60x40, pooled to 30x20 (soft, beta 16" in result.stdout


def test_measures_and_reports(tmp_path, run):
    clips = [write_numbered(tmp_path / f"{name}.mp4", 8) for name in "ab"]
    files = {name: tmp_path / f"kept.{name}" for name in ("csv", "svg", "html")}
    result = run(
        "visualize", *clips, "--csv", files["csv"], "--plot", files["svg"], "--pools", "soft,max", "--repeat", "2"
    )
    assert result.returncode == 0, result.stderr
    assert "mean of 2" in result.stdout and len(files["csv"].read_text().splitlines()) == 1 + 2 * 4
    assert files["svg"].read_text().rstrip().endswith("</svg>")
    result = run("visualize", clips[0], "--report", files["html"])
    assert result.returncode == 0, result.stderr
    assert f"softpool3d visualize {clips[0]} --report" in files["html"].read_text()
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".csv", ".html", ".mp4", ".mp4", ".svg"]  # nothing drawn

    assert fails(
        run("visualize", *clips, "--report", tmp_path / "new.html"), 2, "a page about one clip, and there are 2"
    )
    assert fails(run("visualize", clips[0], "--report", tmp_path / "a.txt"), 2, "a.txt: unknown format '.txt'", ".html")
    assert fails(run("visualize", clips[0], "--csv", files["csv"]), 2, "kept.csv exists")
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    assert fails(run("visualize", tmp_path / "a.png", "--report", tmp_path / "new.html"), 2, "is a picture")
    before = files["html"].read_bytes()
    with full_disk(4000):
        result = run("visualize", clips[0], "--report", files["html"], "--overwrite")
    assert fails(result, 1, "cannot write", "file too large") and files["html"].read_bytes() == before


def test_requests_that_are_wrong(tmp_path, run):
    clip = write_numbered(tmp_path / "clip.mp4", 30)
    assert fails(run("visualize", clip, "--out", tmp_path / "a.webp"), 2, "unknown format '.webp'", "gif")
    assert fails(run("visualize", clip, "--format", "avi"), 2, "--format avi: unknown format (known: mp4")
    assert fails(run("visualize", clip, "--pools", "sof"), 2, "unknown kind of pooling 'sof'; did you mean soft?")
    assert fails(run("visualize", clip, "--out", tmp_path / "a.png", "--kernel", "2,2"), 2, "--kernel 2,2")
    assert fails(run("visualize", clip, "--out", tmp_path / "a.png", "--beta", "1,nan"), 2, "--beta 1,nan")
    assert fails(run("visualize", clip, "--out", tmp_path / "a.png", "--repeat", "9"), 2, "--repeat 4 is the most")
    assert fails(run("visualize", clip, "--out", tmp_path / ("a" * 300 + ".png")), 1, "name too long")
    assert fails(run("visualize", clip, "--out", clip / "a.png"), 1, "cannot write")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4"]


@pytest.mark.parametrize("suffix", ["mp4", "gif", "png"])
def test_disk_full(tmp_path, run, suffix):
    clip = write_numbered(tmp_path / "clip.mp4", 30)
    old = tmp_path / f"a.{suffix}"
    old.write_text("old")
    with full_disk(2000):
        result = run("visualize", clip, "--out", old, "--overwrite")
    assert fails(result, 1, f"cannot write {old}: file too large")
    assert old.read_text() == "old" and len(list(tmp_path.iterdir())) == 2
