"""Copies for training, and files that are checked."""

import os
import re
import unicodedata
from pathlib import Path

import av
import numpy as np
import pytest
from charts import CHART, COLUMNS, FORMULAS, ROWS, decoders, patches, write_chart
from videos import damaged_files, read_numbers, rotated, write_audio_only, write_numbered

from softpool3d.datasets import parallel
from softpool3d.datasets.cache import FileCache, _folder_in_memory
from softpool3d.datasets.manifest import Clip, Manifest
from softpool3d.datasets.reencode import Encoding, _targets, encode_copy, reencode
from softpool3d.datasets.verify import bad_files
from softpool3d.datasets.video.decoder import open_video
from softpool3d.datasets.video.frame_index import DecodeError
from softpool3d.datasets.video.orientation import UPRIGHT, orientation_of
from softpool3d.datasets.video.pyav_reader import Scaler
from softpool3d.datasets.video.stream import FrameStream
from softpool3d.errors import UsageError, WorkError

SMALL = Encoding(short_side=48, gop=8, crf=15)
FAULTS = Path(__file__).parents[1] / "data" / "faults"
VARIABLE = [0, 1, 2, 9, 10, 14] + list(range(20, 74))


def copied(clip: Clip, tmp_path, encoding=SMALL) -> str:
    target = str(tmp_path / "copies" / "copy.mp4")
    encode_copy(clip, target, encoding)
    assert os.listdir(tmp_path / "copies") == ["copy.mp4"]  # nothing unfinished
    return target


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"times": VARIABLE, "bf": "2"}),
        ("a.avi", "mpeg4", {"bf": "2", "g": "12", "q": "2"}),
        ("a.mkv", "libx265", {"x265-params": "log-level=none", "pix_fmt": "yuv420p10le"}),
    ],
)
def test_a_copy_shows_the_same_frames_at_the_same_times(tmp_path, name, codec, options):
    original = write_numbered(tmp_path / name, 60, codec, **options)
    copy = copied(Clip(str(original), 0), tmp_path)
    with open_video(original) as a, open_video(copy) as b:
        assert read_numbers(b.frames(range(60))) == list(range(60))
        assert b.times == pytest.approx(a.times, abs=1e-4)
        assert (a.frames([7]).int() - b.frames([7]).int()).abs().float().mean() < 4
    with av.open(copy) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [n for n, packet in enumerate(packets) if packet.is_keyframe] == list(range(0, 60, 8))
    with av.open(copy) as container:
        container.streams.video[0].codec_context.skip_frame = "NONREF"
        assert sum(1 for _ in container.decode(video=0)) <= 24  # the others may stay undecoded


def test_sizes(tmp_path):
    original = str(write_numbered(tmp_path / "a.mp4", 4))  # 64x48
    for short_side, expected in ((24, (24, 32)), (30, (30, 40)), (256, (48, 64))):
        with open_video(copied(Clip(original, 0), tmp_path, Encoding(short_side))) as video:
            assert tuple(video.frames([0]).shape[2:]) == expected


def test_a_turned_video_is_upright_and_a_part_is_cut_out(tmp_path):
    original = write_numbered(tmp_path / "a.mp4", 50, g="10")
    turned = rotated(original, tmp_path / "turned.mp4", 90)
    with open_video(turned) as a, open_video(copied(Clip(str(turned), 0), tmp_path)) as b:
        assert b.frames([0]).shape[2:] == (64, 48)
        assert (a.frames([9]).int() - b.frames([9]).int()).abs().float().mean() < 4
    with open_video(copied(Clip(str(original), 0, 0.4, 1.2), tmp_path)) as video:
        assert read_numbers(video.frames(range(video.num_frames))) == list(range(10, 30))
        assert video.times[0] == 0


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("standard", FORMULAS)
def test_a_copy_keeps_the_colours_of_the_original(tmp_path, standard, full_range, bits, turned):
    original = write_chart(tmp_path / "a.mp4", standard, full_range, bits)
    for name, decode in decoders().items():
        assert np.abs(patches(decode(original)) - CHART).max() <= 3, name  # the chart is written as it should be
    expected, rows, columns = CHART, ROWS, COLUMNS
    if turned:
        original = rotated(original, tmp_path / "turned.mp4", 90)
        expected, rows, columns = np.rot90(CHART), COLUMNS, ROWS
    copy = copied(Clip(str(original), 0), tmp_path, Encoding())
    for name, decode in decoders().items():
        assert np.abs(patches(decode(copy), rows, columns) - expected).max() <= 4, name


BARS = [(255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]
BARS += [(128, 128, 128), (60, 60, 60)]


@pytest.mark.parametrize("name", ["libx264_709_limited.mp4", "mjpeg_601_full.avi"])
def test_copies_of_bars_keep_their_colours(tmp_path, name):
    copy = copied(Clip(str(FAULTS / name), 0), tmp_path, Encoding())
    for decoder, decode in decoders().items():
        original = patches(decode(FAULTS / name), 1, len(BARS))
        assert np.abs(original - BARS).max() <= 4, decoder
        assert np.abs(patches(decode(copy), 1, len(BARS)) - original).max() <= 4, decoder


@pytest.mark.parametrize(
    ("name", "shown"),
    [("plain.mp4", lambda p: p), ("hflip.mp4", lambda p: p[:, ::-1]), ("rot90_mirror.mp4", lambda p: p.swapaxes(0, 1))],
)
def test_copies_of_turned_and_mirrored_videos_are_upright(tmp_path, name, shown):
    by_our_reader, by_filters = list(decoders().values())[:2]
    expected = shown(by_our_reader(FAULTS / "plain.mp4")).astype(int)
    copy = copied(Clip(str(FAULTS / name), 0), tmp_path, Encoding())
    for decode in (by_our_reader, by_filters):
        assert np.abs(decode(copy) - expected).mean() < 4
    assert np.abs(by_our_reader(FAULTS / name) - expected).max() == 0
    with av.open(copy) as container:
        assert orientation_of(next(container.decode(video=0))) == UPRIGHT  # players turn it no further


def test_a_copy_says_what_its_colours_are(tmp_path):
    def tags(path):
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
            return frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc

    hdr = write_chart(tmp_path / "hdr.mp4", "BT.2020", bits=10)
    assert tags(copied(Clip(str(hdr), 0), tmp_path)) == (6, 1, 9, 14)  # BT.601's matrix, the original's primaries
    unsaid = write_chart(tmp_path / "unsaid.mp4", "BT.601", tagged=False)
    assert tags(unsaid) == (2, 0, 2, 2)
    assert tags(copied(Clip(str(unsaid), 0), tmp_path)) == (6, 1, 1, 1)


@pytest.mark.parametrize("turned", [False, True])
def test_colours_that_cannot_be_converted_are_the_originals_fault_and_named(tmp_path, turned):
    original = write_chart(tmp_path / "a.mp4", "YCgCo")
    if turned:
        original = rotated(original, tmp_path / "turned.mp4", 90)
    message = "its colours are of a kind that cannot be converted .matrix_coefficients 8"
    with pytest.raises(DecodeError, match=message):
        encode_copy(Clip(str(original), 0), str(tmp_path / "copies" / "a.mp4"), SMALL)
    with open_video(original) as video, pytest.raises(DecodeError, match=message):
        video.frames([0])
    with FrameStream(str(original)) as stream, pytest.raises(DecodeError, match=f"{original.name}: {message}"):
        Scaler(None, stream.name)(next(iter(stream))[1])
    assert os.listdir(tmp_path / "copies") == []


def test_a_copy_of_a_video_that_names_no_matrix_is_taken_for_bt601(tmp_path):
    original = write_chart(tmp_path / "a.mp4", "BT.601", tagged=False)
    copy = copied(Clip(str(original), 0), tmp_path, Encoding())
    for name, decode in decoders().items():
        assert np.abs(patches(decode(copy)) - CHART).max() <= 4, name


def test_copies_of_a_data_set(tmp_path):
    root, out = tmp_path / "root", tmp_path / "out"
    (root / "a & b").mkdir(parents=True)
    names = ["a & b/1.avi", "a & b/1.mp4", "a & b/(2) #!.mp4"]
    for name in names:
        write_numbered(root / name, 12, "mpeg4")
    write_audio_only(root / "a & b" / "3.mp4")
    clips = [Clip(str(root / name), n % 2) for n, name in enumerate([*names, "a & b/3.mp4"])]
    parts = [Clip(clips[0].path, 0, 0.0, 0.2), Clip(clips[0].path, 0, 0.2, 0.4)]
    manifests = {"train": Manifest(("x", "y"), [*clips, *parts]), "val": Manifest(("x", "y"), clips[:2])}
    copies, bad = reencode(manifests, root, out, SMALL, workers=2)
    assert bad == {clips[3].path: "it has no video stream"}
    train = copies["train"].clips
    assert len({clip.path for clip in train}) == 5 and [clip.label for clip in train] == [0, 1, 0, 0, 0]
    assert all(clip.path.startswith(f"{out}/a & b/") and clip.start is None for clip in train)
    assert list(copies["val"].clips) == list(train)[:2]
    before = {clip.path: os.stat(clip.path).st_mtime_ns for clip in train}
    os.unlink(train[1].path)
    again, _ = reencode(manifests, root, out, SMALL, workers=1)
    assert again == copies
    changed = {path for path, modified in before.items() if os.stat(path).st_mtime_ns != modified}
    assert changed == {train[1].path}  # the others are not made again
    with pytest.raises(UsageError, match="holds copies made with .*; name another folder with --out"):
        reencode(manifests, root, out, Encoding(short_side=32), workers=1)
    with pytest.raises(WorkError, match="cannot write"):
        reencode(manifests, root, root / names[0] / "below a file", SMALL, workers=1)


def test_a_part_that_cannot_be_cut_out_leaves_the_others_of_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr("softpool3d.datasets.reencode.each", lambda work, jobs, *_: ((job, work(job)) for job in jobs))
    (tmp_path / "root").mkdir()
    path = str(write_numbered(tmp_path / "root" / "a.mp4", 12))
    clips = [Clip(path, 1, 0.0, 0.2), Clip(path, 0, 50.0, 51.0), Clip(path, 2, 0.2, 0.4)]
    copies, bad = reencode({"train": Manifest(("x", "y", "z"), clips)}, tmp_path / "root", tmp_path / "out", SMALL)
    assert [clip.label for clip in copies["train"].clips] == [1, 2]
    assert bad.keys() == {path} and "the clip starts at 50.0 s" in bad[path]


def test_copies_of_an_older_version_which_lost_colours_are_not_taken_for_new_ones(tmp_path):
    (tmp_path / "reencoding.json").write_text('{"short_side": 48, "gop": 8, "crf": 15}')
    with pytest.raises(UsageError, match='holds copies made with .*, and .*"colours": "BT.601"} is asked for'):
        reencode({}, tmp_path, tmp_path, SMALL)


def test_bad_files_are_found_and_good_ones_not_read_twice(tmp_path):
    good = write_numbered(tmp_path / "good.mp4", 20)
    damaged = damaged_files(tmp_path)
    log = tmp_path / "manifest" / "checked.csv"
    paths = [str(path) for path in (good, *damaged.values())]
    bad = bad_files(paths, log, workers=1)
    assert bad.keys() == {str(path) for path in damaged.values()}
    assert bad[str(damaged["empty"])] == "the file is empty"
    lines = log.read_text().splitlines()
    assert len([line for line in lines if line]) == 5
    log.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:10])  # as a killed run leaves it
    assert bad_files(paths, log, workers=1) == bad
    write_numbered(damaged["text"], 20)  # repaired
    assert bad_files(paths, log, workers=1).keys() == bad.keys() - {str(damaged["text"])}
    assert str(damaged["text"]) in log.read_text().splitlines()[-1]


def crash(job: int) -> int:
    if job == 3:
        os.abort()
    if job == 5:
        raise ValueError("five")
    return job * job


def test_a_process_that_dies_takes_no_other_file_with_it():
    results = dict(parallel.each(crash, range(8), "", workers=2))
    assert isinstance(results[3], parallel.Crashed) and isinstance(results[5], ValueError)
    assert {job: result for job, result in results.items() if job not in (3, 5)} == {
        n: n * n for n in (0, 1, 2, 4, 6, 7)
    }


# --- the cache -------------------------------------------------------------------------------------------------------


def test_a_cache_copies_up_to_its_limit(tmp_path):
    files = []
    for number in range(3):
        files.append(tmp_path / f"{number}.mp4")
        files[-1].write_bytes(bytes([number]) * 100)
    cache = FileCache(tmp_path / "cache", 250)
    places = [cache.path(str(file)) for file in files]
    assert [place == str(file) for place, file in zip(places, files, strict=True)] == [False, False, True]
    assert [Path(place).read_bytes() for place in places] == [file.read_bytes() for file in files]
    assert [cache.path(str(file)) for file in files] == places
    assert FileCache(tmp_path / "cache", 250).path(str(files[0])) == places[0]  # shared
    files[0].write_bytes(b"changed")
    assert Path(cache.path(str(files[0]))).read_bytes() == b"changed"
    assert cache.path(str(tmp_path)) == str(tmp_path) and cache.path("absent") == "absent"
    with pytest.raises(WorkError, match="data.cache_folder: cannot write"):
        FileCache(files[1] / "x", 1)


def test_a_cache_in_memory_goes_with_its_process(tmp_path):
    import subprocess
    import sys

    file = write_numbered(tmp_path / "a.mp4", 5)
    code = (
        "import os\nfrom softpool3d.config import DataConfig\nfrom softpool3d.datasets.cache import make_cache\n"
        f"place = make_cache(DataConfig(cache='memory')).path({str(file)!r})\n"
        "assert os.path.exists(place)\nprint(place)\n"
        "assert make_cache(DataConfig(cache='memory')).path('x') == 'x'"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    place = result.stdout.strip()
    assert place != str(file) and not os.path.exists(os.path.dirname(place))


_OWNER = (
    "import sys\nfrom softpool3d.config import DataConfig\nfrom softpool3d.datasets.cache import make_cache\n"
    "print(make_cache(DataConfig(cache='memory')).folder, flush=True)\nsys.stdin.read()"
)


def test_a_cache_in_memory_is_left_alone_while_its_process_lives_and_goes_when_it_was_killed(monkeypatch):
    """Also of a process whose number says nothing here, as in another container that shares the folder."""
    import subprocess
    import sys

    owner = subprocess.Popen([sys.executable, "-c", _OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    folder = Path(owner.stdout.readline().strip())

    def no_such_process(*_):
        raise ProcessLookupError

    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", no_such_process)
        _folder_in_memory.__wrapped__()
    assert folder.is_dir()
    owner.kill()
    owner.wait()
    assert folder.is_dir()
    mine = [_folder_in_memory.__wrapped__() for _ in range(2)]
    assert not folder.exists() and all(one.is_dir() for one in mine)


# --- names of copies -------------------------------------------------------------------------------------------------


def names_of(*clips: Clip) -> list[str]:
    targets = _targets({"train": Manifest(("x",), clips)}, Path("/root"), Path("/out"))
    assert len({unicodedata.normalize("NFC", target.casefold()) for target in targets.values()}) == len(targets)
    return [targets[Clip(clip.path, 0, clip.start, clip.end)] for clip in clips]


def test_copies_are_named_after_their_originals_and_all_digits_of_their_times():
    assert names_of(
        Clip("/root/a/b.mp4", 0),
        Clip("/root/a/b.avi", 0),
        Clip("/root/a/b.mp4", 0, 7265.123, 7275.1234567),
        Clip("/root/a/b.mp4", 0, 12345.01, 12345.02),
        Clip("/root/a/b.mp4", 0, 5.0),
        Clip("/elsewhere/c.webm", 0, None, 1e-05),
        Clip("/root/..d.mp4", 0),
    ) == [
        "/out/a/b.mp4",
        "/out/a/b.avi.mp4",
        "/out/a/b.mp4_7265.123_7275.1234567.mp4",
        "/out/a/b.mp4_12345.01_12345.02.mp4",
        "/out/a/b.mp4_5_end.mp4",
        "/out/elsewhere/elsewhere/c.webm_0_0.00001.mp4",
        "/out/..d.mp4",
    ]


def test_no_two_clips_have_a_copy_of_the_same_name():
    names_of(*(Clip("/root/a.mp4", 0, 7265.123 + n / 1000, 7266.0) for n in range(3)))
    names_of(Clip("/root/a.mp4", 0, 1, 2), Clip("/root/a_1_2.mp4", 0), Clip("/root/a.mp4_1_2.mp4", 0))
    names_of(Clip("/root/a.mp4", 0), Clip("/root/A.mp4", 0), Clip("/root/a.MP4", 0), Clip("/root/a", 0))
    names_of(Clip("/root/\u00e9.mp4", 0), Clip("/root/e\u0301.mp4", 0), Clip("/root/\udcff.mp4", 0))
    names_of(Clip("/root/a.mp4", 0, None, 2.0), Clip("/root/a.mp4", 0, 0.0, 2.0), Clip("/root/a.mp4", 0, 0.0))
    names_of(Clip("/b/a.mp4", 0), Clip("/root/elsewhere/b/a.mp4", 0))


def test_a_name_that_looks_like_one_that_had_to_be_told_apart_is_told_apart_too():
    a, folder = Clip("/root/a.mp4", 0), Clip("/root/a", 0)
    told_apart = os.path.basename(names_of(a, folder)[0])
    assert re.fullmatch(r"a-[0-9a-f]{8}\.mp4", told_apart)
    names_of(a, folder, Clip(f"/root/{told_apart}", 0))


def test_a_name_stays_its_clips_own_when_other_clips_come_and_go():
    clips = [Clip("/root/a.avi", 0), Clip("/root/a.mkv", 0), Clip("/root/a.mp4", 0), Clip("/root/a.mp4", 0, 1.0, 2.0)]
    together = names_of(*clips)
    assert [names_of(clip)[0] for clip in clips] == together
