"""One rule for what is missing of a file: what decodes is used, what is missing is said, too much of it is bad."""

from __future__ import annotations

import pytest
from videos import copy_packets, read_numbers, write_numbered, zeroed

from softpool3d.config_file import load_config
from softpool3d.datasets.loader import eval_loader, train_loader
from softpool3d.datasets.manifest import Clip, Manifest, read_manifests_in
from softpool3d.datasets.reencode import Encoding, encode_copy
from softpool3d.datasets.verify import bad_files, decode_whole
from softpool3d.datasets.video.damage import Damage
from softpool3d.datasets.video.decoder import DecodeError, open_video
from softpool3d.datasets.video.stream import FrameStream

CUT = {  # by half: container -> codec, options, what is said
    "mkv": ("libx264", {}, r"breaks off after \d\.\d of 10.0 seconds"),
    "avi": ("mpeg4", {"q": "2"}, r"breaks off after \d\.\d of 10.0 seconds"),
    "flv": ("libx264", {}, r"breaks off after \d\.\d of 10.1 seconds"),
    "webm": ("libvpx", {"cpu-used": "8", "deadline": "realtime"}, r"breaks off after \d\.\d of 10.0 seconds"),
    "mxf": ("mpeg2video", {"q": "2"}, r"breaks off after \d\.\d of 10.0 seconds"),
}


@pytest.mark.parametrize("ending", CUT)
def test_a_file_that_breaks_off_is_named_by_every_reader(tmp_path, ending):
    codec, options, message = CUT[ending]
    whole, cut = write_numbered(tmp_path / f"whole.{ending}", 250, codec, **options), tmp_path / f"cut.{ending}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with open_video(whole) as video:
        assert video.num_frames == 250 and video.damage is None
    with pytest.raises(DecodeError, match=message + r".*data.max_missing=0.1"):
        open_video(cut)
    with pytest.raises(DecodeError, match=message), FrameStream(cut) as stream:
        list(stream)
    with open_video(cut, max_missing=0.7) as video:
        assert read_numbers(video.frames([0, 50])) == [0, 50]
        assert 3 < video.damage.length_s - video.damage.missing_s < 7


@pytest.mark.parametrize(
    ("ending", "codec", "options"),
    [("ts", "libx264", {}), ("m2ts", "libx264", {}), ("wmv", "wmv2", {"q": "2"}), ("mp4", "libx264", {})],
)
def test_where_nobody_knows_how_much_followed_it_is_said_that_it_breaks_off(tmp_path, ending, codec, options):
    """Containers that do not tell their length: transport streams, ASF, MP4 in fragments."""
    whole, cut = write_numbered(tmp_path / f"whole.{ending}", 250, codec, g="12", **options), tmp_path / f"cut.{ending}"
    if ending == "mp4":
        whole = copy_packets(whole, tmp_path / "fragments.mp4", movflags="frag_keyframe+empty_moov")
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4 // 188 * 188 + 100])
    with open_video(whole) as video:
        assert video.damage is None
    with open_video(cut, max_missing=0.3) as video:
        assert read_numbers(video.frames([5])) == [5] and video.damage.is_unfinished
        assert "breaks off" in str(video.damage)
    with FrameStream(cut, max_missing=0.3) as stream:
        assert len(list(stream)) > 30 and stream.damage.is_unfinished


@pytest.mark.parametrize(
    ("ending", "codec", "options"),
    [
        ("mp4", "libx264", {"g": "1"}),
        ("mkv", "libx264", {"g": "12", "bf": "0"}),
        ("avi", "mpeg4", {"g": "12", "q": "2"}),
        ("mov", "mjpeg", {"strict": "unofficial"}),
    ],
)
def test_what_cannot_be_decoded_shows_the_frame_before_it(tmp_path, ending, codec, options):
    whole = write_numbered(tmp_path / f"whole.{ending}", 60, codec, **options)
    damaged = zeroed(whole, tmp_path / f"damaged.{ending}", range(20, 23))
    with open_video(damaged) as video:
        assert read_numbers(video.frames([3])) == [3]
        numbers = read_numbers(video.frames(range(60)))
        assert numbers[:20] == list(range(20)) and numbers[20:23] == [19] * 3 and numbers[24:] == list(range(24, 60))
        assert (video.num_frames, video.damage) == (60, Damage(2.4, undecodable_s=pytest.approx(0.12)))
        assert str(video.damage) == "0.12 of 2.4 seconds cannot be decoded"
    with open_video(damaged) as video:  # as before, whatever is read first
        assert read_numbers(video.frames([22, 40])) == [19, 40]
    with FrameStream(damaged) as stream:
        assert len(list(stream)) == 57 and stream.damage.undecodable_s == pytest.approx(0.12)
    for reader in (lambda: open_video(damaged, max_missing=0.04).frames(range(60)), lambda: _watch(damaged, 0.04)):
        with pytest.raises(DecodeError, match=r"0.12 of 2.4 seconds cannot be decoded \(more than .*=0.04 of it\)"):
            reader()


def _watch(path, max_missing):
    with FrameStream(path, max_missing=max_missing) as stream:
        return list(stream)


def test_verification_and_copies_go_by_the_same_rule(tmp_path):
    whole = write_numbered(tmp_path / "whole.mp4", 60, g="1")
    damaged = zeroed(whole, tmp_path / "damaged.mp4", range(20, 23))
    paths, log, said = [str(whole), str(damaged)], tmp_path / "checked.csv", {}
    assert decode_whole(str(damaged)) == (
        pytest.approx(0.12),
        pytest.approx(2.4),
        "0.12 of 2.4 seconds cannot be decoded",
    )
    for limit, bad in ((0.1, set()), (0.04, {str(damaged)})):  # the second time from the log
        said.clear()
        found = bad_files(paths, log, workers=1, max_missing=limit, on_damage=said.__setitem__)
        assert found.keys() == bad and said.keys() == {str(damaged)} - bad
    clip, copy = Clip(str(damaged), 0), tmp_path / "copy.mp4"
    assert encode_copy(clip, str(copy), Encoding(48)) == "0.12 of 2.4 seconds cannot be decoded"
    with open_video(copy) as video:
        assert video.num_frames == 57 and video.times[20] == pytest.approx(23 / 25, abs=1e-3)
        assert read_numbers(video.frames([19, 20])) == [19, 23]
    with pytest.raises(DecodeError, match="cannot be decoded"):
        encode_copy(clip, str(copy), Encoding(48), max_missing=0.04)


def config_of(*overrides):
    return load_config("r3d_softpool", ["data.num_workers=0", "data.short_side=128", *overrides])


def test_batches_say_what_is_missing_of_the_files_that_they_use(tmp_path):
    whole = write_numbered(tmp_path / "whole.mp4", 60, g="1")
    damaged = zeroed(whole, tmp_path / "damaged.mp4", range(20, 23))
    manifest = Manifest(("a", "b"), [Clip(str(path), label) for path in (whole, damaged) for label in (0, 1)])
    config = config_of("data.num_frames=60", "data.sampling_rate=1", "train.batch_size=4")
    for batch in (next(iter(train_loader(manifest, config))), next(iter(eval_loader(manifest, config)))):
        assert batch.damaged == {str(damaged): "0.12 of 2.4 seconds cannot be decoded"} and not batch.bad
    strict = config_of("data.num_frames=60", "data.sampling_rate=1", "data.max_missing=0.04")
    batches = list(eval_loader(manifest, strict))
    assert {error.path for batch in batches for error in batch.bad} == {str(damaged)}


def test_a_few_damaged_bytes_of_a_real_encoder(faults):
    """40 of 50 frames can be decoded; some come late."""
    with pytest.raises(DecodeError, match="0.4 of 2.0 seconds cannot be decoded"):
        open_video(faults / "bitflip.mp4").frames(range(50))
    with open_video(faults / "bitflip.mp4", max_missing=0.2) as video:
        assert len(video.frames(range(50))) == 50
    with FrameStream(faults / "bitflip.mp4", max_missing=0.2) as stream:
        times = [time for time, _ in stream]
        assert times == sorted(times) and times[-1] == pytest.approx(1.96)
        assert stream.damage.undecodable_s == pytest.approx(0.4)


def test_a_reader_that_fails_ends_nobody_elses_work(run, faults, tmp_path):
    """PyAV raises IndexError at this file."""
    good = [write_numbered(tmp_path / f"{n}.mp4", 20) for n in (1, 3)]
    bad = tmp_path / "2.ts"
    bad.write_bytes((faults / "damaged.ts").read_bytes())
    for option in (["--topk", 1], ["--timeline"]):
        result = run("classify", tmp_path, *option)
        assert result.returncode == 1 and "Traceback" not in result.stderr
        assert f"cannot read {bad}: reading it fails with IndexError" in result.stderr
        assert all(str(path) in result.stdout for path in good)
    manifest = Manifest(("a", "b"), [Clip(str(path), n % 2) for n, path in enumerate([*good, bad, bad])])
    batch = next(iter(train_loader(manifest, config_of("train.batch_size=4"))))
    assert len(batch.video) == 4 and {error.path for error in batch.bad} == {str(bad)}
    assert list(bad_files([str(path) for path in (*good, bad)], tmp_path / "log.csv", workers=1)) == [str(bad)]


def test_times_outside_of_a_file_are_named_with_the_line_of_their_list(run, tmp_path):
    write_numbered(tmp_path / "a.mp4", 50)
    rows = ["path,label,start,end", "a.mp4,0,0,1", "a.mp4,1,5,9", "a.mp4,1,1,2.5", "a.mp4,1,1,2"]
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    manifest = read_manifests_in(tmp_path)["train"]
    bad = {error.index: str(error) for batch in eval_loader(manifest, config_of()) for error in batch.bad}
    assert bad.keys() == {1, 2}
    assert "the clip starts at 5.0 s, and the video is over after 2.00 s" in bad[1] and "train.csv:3" in bad[1]
    assert "the clip ends at 2.5 s" in bad[2] and "train.csv:4" in bad[2]
    result = run("classify", "--manifest", tmp_path / "train.csv", "--topk", 1)
    assert result.returncode == 1 and len(result.stdout.splitlines()) == 2
    assert "a.mp4#t=5,9: the clip starts at 5.0 s" in result.stderr


@pytest.mark.parametrize("timeline", [False, True])
def test_classify_and_timeline_agree_on_damage(run, faults, timeline):
    option = ["--timeline"] if timeline else ["--topk", 1]
    result = run("classify", faults / "bitflip.mp4", *option)
    assert result.returncode == 1 and "0.4 of 2.0 seconds cannot be decoded (more than" in result.stderr
    result = run("classify", faults / "bitflip.mp4", "--max-missing", 0.2, *option)
    assert result.returncode == 0
    assert f"note: {faults / 'bitflip.mp4'}: 0.4 of 2.0 seconds cannot be decoded" in result.stderr
