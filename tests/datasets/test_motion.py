import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from softpool3d.datasets.sources import generated, motion
from softpool3d.datasets.sources.motion import CLASSES, opposite, read_motion, render
from softpool3d.datasets.video.decoder import open_video
from softpool3d.errors import WorkError

SMALL = (16, 8, 8)


def test_the_set_is_complete_and_read_as_any_other(monkeypatch, tmp_path):
    monkeypatch.setenv("SOFTPOOL3D_HOME", str(tmp_path))
    splits = read_motion(SMALL)
    assert {name: len(manifest) for name, manifest in splits.items()} == {"train": 16, "val": 8, "test": 8}
    assert set(splits["train"].classes) == set(CLASSES)
    clip = splits["val"].clips[0]
    with open_video(clip.path) as video:
        assert (video.num_frames, video.fps, video.decoder) == (32, 25, "pyav")
        assert video.frames([0]).shape == (1, 3, 112, 112)
    assert len(list(tmp_path.iterdir())) == 1  # nothing half done is left
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
    read_motion(SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}


def test_the_same_seed_gives_the_same_pixels():
    first, again, other = (render(0, np.random.default_rng(seed)) for seed in ((0, 1, 2), (0, 1, 2), (0, 1, 3)))
    assert first.shape == (32, 112, 112, 3) and first.dtype == np.uint8
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("label", range(8))
def test_opposite_classes_are_time_reversals(label):
    """With the same draws, class 2k and class 2k + 1 show the same pictures in the opposite order, but for the drift
    of the background, which has no preferred direction."""

    def drawn(which):
        rng = np.random.default_rng(5)
        y, x = np.mgrid[0:112, 0:112].astype(np.float32)
        frames = np.zeros((32, 112, 112, 3), np.float32)
        time_axis = (np.arange(32, dtype=np.float32) - 15.5)[:, None, None]
        motion._draw_object(frames, x, y, time_axis, which, rng)
        return frames

    forward, backward = drawn(label), drawn(opposite(label))[::-1]
    assert (np.abs(forward - backward) > 0.02).mean() < 0.01  # rounding at edges
    assert (np.abs(forward - drawn(opposite(label))) > 0.02).mean() > 0.05


def test_a_single_frame_does_not_tell_the_class():
    """First frames of all classes have the same distribution: the share of pixels that the object covers, where it is
    and how bright the picture is do not depend on the class."""
    statistics = {label: [] for label in range(8)}
    for label in range(8):
        for seed in range(60):
            first = render(label, np.random.default_rng((1, label, seed)))[0].astype(float)
            statistics[label].append([first.mean(), first.std(), first[:, :56].mean() - first[:, 56:].mean()])
    everything = np.array([statistics[label] for label in range(8)])  # (8, 60, 3)
    deviation = everything.mean(1) - everything.mean((0, 1))
    z = deviation / (everything.std((0, 1)) / np.sqrt(60))
    assert np.abs(z).max() < 4


def test_interrupted_generation_leaves_nothing(tmp_path):
    script = tmp_path / "generate.py"
    script.write_text(
        "from softpool3d.datasets.sources.motion import read_motion\n"
        "if __name__ == '__main__':\n    read_motion((4000, 8, 8))\n"
    )
    home = tmp_path / "home"
    process = subprocess.Popen([sys.executable, str(script)], env={"SOFTPOOL3D_HOME": str(home), "PATH": ""})
    while not list(home.glob("*/train/*/*.mp4")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not [path for path in home.iterdir() if ".partial-" not in path.name]
    generated.remove_abandoned(home / next(home.iterdir()).name.partition(".partial-")[0])
    deadline = time.time() + 20  # workers may finish the clip they are at
    while list(home.iterdir()) and time.time() < deadline:
        generated.remove_abandoned(home / next(home.iterdir()).name.partition(".partial-")[0])
    assert not list(home.iterdir())


def test_a_cache_that_cannot_be_written_is_said(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SOFTPOOL3D_HOME", str(tmp_path / "file"))
    with pytest.raises(WorkError, match="cannot write the data set `motion`.*SOFTPOOL3D_HOME"):
        read_motion(SMALL)


def test_pixels_survive_encoding(tmp_path):
    pictures = render(3, np.random.default_rng(0))
    motion.write_video(tmp_path / "a.mp4", pictures, 25)
    with open_video(tmp_path / "a.mp4") as video:
        decoded = video.frames(range(32)).permute(0, 2, 3, 1)
    assert (decoded.float() - torch.from_numpy(pictures).float()).abs().mean() < 8


def test_a_generation_that_is_still_at_work_is_left_alone(tmp_path):
    """Also that of another container, whose process numbers say nothing here."""
    code = (
        "import pathlib, sys\nfrom softpool3d.files import own\nlock = own(pathlib.Path(sys.argv[1]))\n"
        "print(flush=True)\nsys.stdin.read()\n"
    )
    root, partial = tmp_path / "motion", tmp_path / "motion.partial-1"
    partial.mkdir()
    generated.remove_abandoned(root)
    assert partial.is_dir()  # made just now, without an owner yet
    command = [sys.executable, "-c", code, partial]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        generated.remove_abandoned(root)
        assert partial.is_dir()
        process.kill()
    generated.remove_abandoned(root)
    assert not partial.exists()
