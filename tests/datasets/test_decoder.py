import time

import numpy as np
import pytest
from videos import damaged_files, numbered_frames, read_numbers, write_numbered

from softpool3d.datasets import decoder
from softpool3d.datasets.decoder import DecodeError, PyAVReader, open_video
from softpool3d.datasets.encoder import write_video

CODECS = {
    "h264_bframes.mp4": ("libx264", {"g": "250", "bf": "3"}),
    "h264_all_keys.mkv": ("libx264", {"g": "1"}),
    "hevc.mp4": ("libx265", {"x265-params": "log-level=none"}),
    "h264_open_gop.mp4": ("libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3"}),
    "h264_bframes.avi": ("libx264", {"g": "12", "bf": "3"}),
    "mpeg4_bframes.avi": ("mpeg4", {"bf": "2", "g": "12", "q": "2"}),
    "mpeg4.avi": ("mpeg4", {"g": "12", "q": "2"}),
    "mpeg2_open_gop.mkv": ("mpeg2video", {"bf": "2", "g": "12", "q": "2"}),
    "vp9.webm": ("libvpx-vp9", {"cpu-used": "8", "deadline": "realtime"}),
    "mjpeg.mov": ("mjpeg", {}),
    "stream.ts": ("libx264", {"g": "30"}),
}


@pytest.fixture(scope="module", params=CODECS)
def numbered(request, tmp_path_factory):
    codec, options = CODECS[request.param]
    if codec == "mjpeg":
        options = {"strict": "unofficial"}
    return write_numbered(tmp_path_factory.mktemp("numbered") / request.param, 60, codec, **options)


def test_frames_are_exactly_those_asked_for(numbered):
    rng = np.random.default_rng(0)
    with open_video(numbered) as video:
        assert video.num_frames == 60
        some = [rng.integers(0, 60, 3) for _ in range(10)]
        for wanted in ([0], [59], [59, 0, 30, 30, 7], range(60), rng.permutation(60), *some):
            frames = video.frames(wanted)
            assert frames.shape == (len(wanted), 3, 48, 64)
            assert read_numbers(frames) == list(wanted)


def test_pyav_gives_the_same_frames(numbered):
    reader = PyAVReader(str(numbered))
    assert reader.num_frames == 60
    assert read_numbers(reader.read(np.array([0, 13, 59])).transpose(0, 3, 1, 2)) == [0, 13, 59]


def test_frames_per_second(tmp_path):
    with open_video(write_numbered(tmp_path / "a.mp4", rate=30)) as video:
        assert video.fps == pytest.approx(30)


def test_index_outside_the_video(tmp_path):
    with open_video(write_numbered(tmp_path / "a.mp4", 10)) as video:
        for index in (-1, 10):
            with pytest.raises(IndexError, match="frames 0 to 9"):
                video.frames([index])


def test_damaged_files_are_named_with_a_reason(tmp_path):
    expected = {
        "empty": "the file is empty",
        "text": "invalid data",
        "truncated": "invalid data",
        "audio": "no video stream",
    }
    for kind, path in damaged_files(tmp_path).items():
        with pytest.raises(DecodeError, match=expected[kind]) as error, open_video(path) as video:
            video.frames([0])
        assert str(path) in str(error.value)
    with pytest.raises(DecodeError, match="no such file"):
        open_video(tmp_path / "absent.mp4")
    with pytest.raises(DecodeError, match="is a directory"):
        open_video(tmp_path)


def test_a_video_that_breaks_off(tmp_path):
    """The index, at the beginning of the file, promises more frames than there are."""
    import av

    whole, fast, broken = (tmp_path / f"{name}.mp4" for name in ("whole", "fast", "broken"))
    write_numbered(whole, 250)
    with av.open(str(fast), "w", options={"movflags": "faststart"}) as out, av.open(str(whole)) as source:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    with av.open(str(fast)) as container:
        positions = [packet.pos for packet in container.demux(video=0) if packet.pos]
    for cut in (positions[100], positions[100] + 9):
        broken.write_bytes(fast.read_bytes()[:cut])
        with pytest.raises(DecodeError, match=r"breaks off after \d\.\d of 10.0 seconds"):
            open_video(broken)


def test_a_slow_slide_show_is_whole(tmp_path):
    """Its last picture, too, stays for ten seconds."""
    from fractions import Fraction

    with open_video(write_numbered(tmp_path / "a.mp4", 5, rate=Fraction(1, 10))) as video:
        assert read_numbers(video.frames(range(5))) == [0, 1, 2, 3, 4]


def test_a_picture_size_that_changes_in_the_middle(tmp_path):
    first, second = write_numbered(tmp_path / "1.ts", 10), tmp_path / "2.ts"
    write_video(second, np.full((10, 96, 128, 3), 200, np.uint8), 25)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    with open_video(joined) as video:
        assert video.num_frames == 20
        frames = video.frames([0, 15])
    assert frames.shape == (2, 3, 48, 64)
    assert frames[1].float().mean().item() == pytest.approx(200, abs=3)


def test_pyav_takes_over_when_decord_hangs(tmp_path, monkeypatch):
    path = write_numbered(tmp_path / "a.mp4", 10)
    with open_video(path, timeout_s=0.2) as video:
        assert video.decoder == "decord"
        monkeypatch.setattr(video._reader, "_reader", _Hanging())
        assert read_numbers(video.frames([3, 1])) == [3, 1]
        assert video.decoder == "pyav"


class _Hanging:
    def get_batch(self, _):
        time.sleep(2)


def test_pyav_reads_alone_without_decord(tmp_path, monkeypatch):
    def absent(*_):
        raise decoder._DecordFailed

    monkeypatch.setattr(decoder, "DecordReader", absent)
    with open_video(write_numbered(tmp_path / "a.mp4", 10)) as video:
        assert video.decoder == "pyav"
        assert read_numbers(video.frames([9, 0, 9])) == [9, 0, 9]


def test_errors_travel_between_processes():
    import pickle

    error = pickle.loads(pickle.dumps(DecodeError("a.mp4", "it has no video stream")))
    assert str(error) == "cannot read a.mp4: it has no video stream"
    assert (error.path, error.reason) == ("a.mp4", "it has no video stream")


def test_the_numbers_in_the_test_videos_differ():
    assert read_numbers(numbered_frames(300).transpose(0, 3, 1, 2)) == list(range(300))


@pytest.mark.clips
def test_real_clips_are_read_or_named(real_clips):
    """Every file, odd ones among them: frames, or one sentence."""
    failed = set()
    paths = [p for p in sorted(real_clips.glob("*/*")) if p.suffix in (".mp4", ".mkv", ".avi", ".mov", ".webm", ".ts")]
    for path in paths:
        try:
            with open_video(path) as video:
                frames = video.frames([0, video.num_frames // 2, video.num_frames - 1, 0])
                assert frames.shape[:2] == (4, 3)
                assert (frames[0] == frames[3]).all()
        except DecodeError as error:
            assert str(path) in str(error)
            failed.add(path.name)
    assert failed == {"corrupted.mp4", "audio_only.mp4", "truncated_moov_first.mp4", "truncated_no_moov.mp4"}


@pytest.mark.clips
def test_rotation_is_honoured_by_both_decoders(real_clips):
    for name, shape in (("video_0", (320, 568)), ("video_90", (568, 320)), ("video_180", (320, 568))):
        path = real_clips / "decord" / f"{name}.mov"
        with open_video(path) as video:
            assert video.decoder == "decord"
            ours = video.frames([0, 2]).permute(0, 2, 3, 1).numpy()
        theirs = PyAVReader(str(path)).read(np.array([0, 2]))
        assert ours.shape[1:3] == theirs.shape[1:3] == shape
        assert np.abs(ours.astype(int) - theirs.astype(int)).mean() < 2
