import os
import subprocess
import sys
import textwrap
import time
from importlib import metadata

import av
import numpy as np
import pytest
from videos import (
    copy_packets,
    damaged_files,
    numbered_frames,
    read_numbers,
    rotated,
    write_numbered,
)

from softpool3d.datasets.video import decoder, decord_reader, frame_index
from softpool3d.datasets.video.decoder import DecodeError, open_video
from softpool3d.datasets.video.decord_reader import DecordReader
from softpool3d.datasets.video.encoder import write_video
from softpool3d.datasets.video.frame_index import errors_of

SVTAV1 = {"preset": "12", "svtav1-params": "keyint=24", "crf": "20"}
VARIABLE = [0, 1, 2, 9, 10, 14] + list(range(20, 74))  # in frames
CODECS = {
    "h264_bframes.mp4": ("libx264", {"g": "250", "bf": "3"}),
    "h264_all_keys.mkv": ("libx264", {"g": "1"}),
    "h264_short_gops.mov": ("libx264", {"g": "3", "bf": "1"}),
    "h264_open_gop.mp4": ("libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3"}),
    "h264_intra_refresh.mkv": ("libx264", {"x264-params": "intra-refresh=1:keyint=20"}),
    "h264_bframes.avi": ("libx264", {"g": "12", "bf": "3"}),
    "h264_10bit.mp4": ("libx264", {"g": "12", "pix_fmt": "yuv420p10le"}),
    "h264_variable.mp4": ("libx264", {"g": "12", "bf": "2", "times": VARIABLE}),
    "h264_fragments.mp4": ("libx264", {"g": "12"}),
    "hevc.mp4": ("libx265", {"x265-params": "log-level=none:keyint=20"}),
    "hevc_10bit.mkv": ("libx265", {"x265-params": "log-level=none:keyint=20", "pix_fmt": "yuv420p10le"}),
    "mpeg4_bframes.avi": ("mpeg4", {"bf": "2", "g": "12", "q": "2"}),
    "mpeg4.avi": ("mpeg4", {"g": "12", "q": "2"}),
    "mpeg4.mp4": ("mpeg4", {"g": "12", "bf": "2", "q": "2"}),
    "mpeg2_open_gop.mkv": ("mpeg2video", {"bf": "2", "g": "12", "q": "2"}),
    "vp8.webm": ("libvpx", {"cpu-used": "8", "deadline": "realtime", "auto-alt-ref": "1", "lag-in-frames": "10"}),
    "vp9.webm": ("libvpx-vp9", {"cpu-used": "8", "deadline": "realtime", "g": "20"}),
    "vp9_hidden.mkv": ("libvpx-vp9", {"cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "16", "g": "30"}),
    "av1.mp4": ("libsvtav1", SVTAV1),
    "mjpeg.mov": ("mjpeg", {"strict": "unofficial"}),
    "stream.ts": ("libx264", {"g": "30"}),
    "h264_refresh_without_bframes.mp4": ("libx264", {"x264-params": "intra-refresh=1:keyint=8:bframes=0"}),
    "h264_all_keys.wmv": ("libx264", {"g": "1"}),
    "mpeg4_bframes.ts": ("mpeg4", {"g": "8", "bf": "2", "q": "2"}),
}
REMUXED = {
    "edit_list.mp4": {"begin": 0.7},
    "starts_late.mkv": {"delay": 3.2},
    "starts_late.ts": {"delay": 5.0},
    "fragments.mp4": {"movflags": "frag_keyframe+empty_moov"},
}
DECORD_READS = {  # the others go to PyAV whatever is asked for
    "h264_bframes.mp4",
    "h264_all_keys.mkv",
    "h264_short_gops.mov",
    "h264_variable.mp4",
    "h264_fragments.mp4",
    "mpeg4.avi",
    "vp9.webm",
    "vp8.webm",
    "vp9_hidden.mkv",
    "mjpeg.mov",
    "starts_late.mkv",
    "fragments.mp4",
}


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """name -> (file, the number drawn into its first frame)."""
    folder = tmp_path_factory.mktemp("numbered")
    files = {
        name: (write_numbered(folder / name, 60, codec, **options), 0) for name, (codec, options) in CODECS.items()
    }
    source = write_numbered(folder / "source.mp4", 60, g="12", bf="2")
    for name, options in REMUXED.items():
        first = round(options.get("begin", 0) * 25)
        files[name] = copy_packets(source, folder / name, **options), first
    return files


@pytest.mark.parametrize("reader", ["pyav", "decord"])
@pytest.mark.parametrize("name", [*CODECS, *REMUXED])
def test_frames_are_exactly_those_asked_for(numbered, name, reader):
    path, first = numbered[name]
    count = 60 - first
    rng = np.random.default_rng(0)
    with open_video(path, decoder=reader) as video:
        assert video.num_frames == count
        some = [rng.integers(0, count, 3) for _ in range(8)]
        for wanted in ([0], [count - 1], [40, 0, 30, 30, 7], range(count), rng.permutation(count), *some):
            frames = video.frames(wanted)
            assert frames.shape == (len(wanted), 3, 48, 64)
            assert read_numbers(frames) == [first + i for i in wanted]
        assert reader != "decord" or (video.decoder == "decord") == (name in DECORD_READS)


def test_both_decoders_give_the_same_pixels(numbered):
    for name in ("h264_bframes.mp4", "vp9.webm", "mjpeg.mov"):
        pictures = []
        for reader in ("decord", "pyav"):
            with open_video(numbered[name][0], short_side=40, decoder=reader) as video:
                pictures.append(video.frames([3, 30, 50]).int())
                assert video.decoder == reader
        assert pictures[0].shape == (3, 3, 40, 53)
        assert (pictures[0] - pictures[1]).abs().float().mean() < 1


def test_times_of_frames(numbered):
    for name in ("h264_variable.mp4",):
        with open_video(numbered[name][0]) as video:
            assert video.times == pytest.approx(np.array(VARIABLE) / 25, abs=1e-3)
    for name in ("starts_late.mkv", "starts_late.ts", "mpeg4_bframes.avi", "edit_list.mp4"):
        path, first = numbered[name]
        with open_video(path) as video:
            assert video.times == pytest.approx(np.arange(60 - first) / 25, abs=2e-3)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_honoured_the_same_by_both(numbered, tmp_path, degrees):
    source = numbered["h264_bframes.mp4"][0]
    path = rotated(source, tmp_path / "a.mp4", degrees)
    for short_side in (None, 36):
        with open_video(source, short_side=short_side) as video:
            upright = video.frames([5])[0].int().rot90(degrees // 90, (1, 2))
        for reader in ("decord", "pyav"):
            with open_video(path, short_side=short_side, decoder=reader) as video:
                turned = video.frames([5])[0].int()
                assert video.decoder == "pyav"  # decord turns some of these wrongly
            assert turned.shape == upright.shape
            assert (turned - upright).abs().float().mean() < 1.5


def test_of_several_streams_the_default_one(tmp_path):
    """A small one first, then the one that is marked as default."""
    import av

    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for width in (32, 64):
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = width * 3 // 4, width, "yuv420p"
            streams.append(stream)
        streams[0].disposition = av.stream.Disposition(0)
        streams[1].disposition = av.stream.Disposition.default
        for picture in numbered_frames(20):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                container.mux(stream.encode(frame.reformat(stream.width, stream.height)))
        for stream in streams:
            container.mux(stream.encode(None))
    for reader in ("pyav", "decord"):
        with open_video(path, decoder=reader) as video:
            assert video.num_frames == 20
            assert read_numbers(video.frames([13, 2])) == [13, 2]


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
    with pytest.raises(DecodeError, match="there are no videos in it, and no pictures"):
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


HANGING = """
import os, sys, time

sys.path.remove(os.path.dirname(__file__))
del sys.modules["decord"]
import decord


class VideoReader(decord.VideoReader):
    def __init__(self, path, *args, **kwargs):
        name = os.path.basename(path)
        if "open" in name:
            time.sleep(1000)
        if "crash" in name:
            os.abort()
        super().__init__(path, *args, **kwargs)
        self.hangs = "read" in name

    def get_batch(self, indices):
        if self.hangs:
            time.sleep(1000)
        return super().get_batch(indices)


decord.VideoReader = VideoReader
"""


@pytest.fixture
def hanging_decord(tmp_path, monkeypatch):
    """A decord that hangs on files with "open" or "read" in their names, and crashes on others."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "decord.py").write_text(HANGING)
    monkeypatch.syspath_prepend(str(modules))
    decord_reader.stop_helper()  # the next one starts with this path
    yield
    decord_reader.stop_helper()


def test_a_hung_decord_is_killed_and_pyav_takes_over(tmp_path, hanging_decord, monkeypatch):
    import threading

    threads, asked = threading.active_count(), []
    for name in ("open", "read", "crash", "fine"):
        path = write_numbered(tmp_path / f"{name}.mp4", 10, g="1")
        with open_video(path, timeout_s=2, decoder="decord") as video:
            helper = decord_reader._current
            assert read_numbers(video.frames([3, 1])) == [3, 1]
            assert video.decoder == ("decord" if name == "fine" else "pyav")
        assert (helper is None or not helper.running) == (name != "fine")
        asked.clear()
        with monkeypatch.context() as patch:  # nobody waits for it twice
            patch.setattr(decoder, "DecordReader", lambda *given: asked.append(given) or DecordReader(*given))
            with open_video(path, timeout_s=1000, decoder="decord") as video:
                assert read_numbers(video.frames([3, 1])) == [3, 1]
        assert len(asked) == (name == "fine")
    assert threading.active_count() == threads


def test_the_helper_ends_with_its_parent(tmp_path, hanging_decord):
    """Even while decord hangs, and the parent is killed."""
    path = write_numbered(tmp_path / "read.mp4", 10, g="1")
    code = f"""
        import sys
        sys.path.insert(0, {str(tmp_path / "modules")!r})
        import threading, time
        from softpool3d.datasets.video import decord_reader
        from softpool3d.datasets.video.decoder import open_video
        video = open_video({str(path)!r}, decoder="decord")
        print(decord_reader._current._process.pid, flush=True)
        video.frames([1])
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    helper = int(parent.stdout.readline())
    os.kill(helper, 0)
    parent.kill()
    parent.wait()
    for _ in range(100):
        if _is_gone(helper):
            return
        time.sleep(0.1)
    raise AssertionError("the helper is still there")


def _is_gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"  # nobody here collects what is not our child
    except OSError:
        return True


def test_a_forked_process_has_a_helper_of_its_own(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 10, g="1")
    with open_video(path, decoder="decord") as video:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with open_video(path, decoder="decord") as own:
                    code = 0 if own.decoder == "decord" and read_numbers(own.frames([4])) == [4] else 2
                decord_reader.stop_helper()
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert read_numbers(video.frames([3])) == [3] and video.decoder == "decord"


def test_pyav_that_takes_too_long_is_given_up(tmp_path, monkeypatch):
    path = write_numbered(tmp_path / "a.mp4", 40)
    with open_video(path, timeout_s=0.05) as video:
        frames = video._reader._frames

        def slow(*arguments):
            for frame in frames(*arguments):
                time.sleep(0.02)
                yield frame

        monkeypatch.setattr(video._reader, "_frames", slow)
        with pytest.raises(DecodeError, match=r"takes longer than 0.05 s \(data.decode_timeout_s\)"):
            video.frames(range(40))


def test_pyav_reads_alone_without_decord(tmp_path, monkeypatch):
    decord_reader.stop_helper()
    monkeypatch.setattr(decord_reader, "_decord_is_there", lambda: False)
    with open_video(write_numbered(tmp_path / "a.mp4", 10), decoder="decord") as video:
        assert video.decoder == "pyav"
        assert read_numbers(video.frames([9, 0, 9])) == [9, 0, 9]


def test_a_file_that_is_replaced_is_indexed_anew(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 10)
    assert frame_index.frame_index(path).num_frames == 10
    write_numbered(path, 12)
    assert frame_index.frame_index(path).num_frames == 12


def test_a_folder_of_pictures(tmp_path):
    from PIL import Image

    for number, picture in enumerate(numbered_frames(12)):
        Image.fromarray(picture).save(tmp_path / f"frame{number}.{'png' if number % 2 else 'JPG'}", format="png")
    (tmp_path / "notes.txt").write_text("")
    with open_video(tmp_path) as video:
        assert (video.num_frames, video.decoder) == (12, "pictures")
        assert read_numbers(video.frames([11, 2, 10, 2])) == [11, 2, 10, 2]
    with open_video(tmp_path, short_side=24) as video:
        assert video.frames([0]).shape == (1, 3, 24, 32)
    (tmp_path / "frame3.png").write_bytes(b"")
    with open_video(tmp_path) as video, pytest.raises(DecodeError, match="frame frame3.png: "):
        video.frames([3])


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
    broken_off = {"truncated_moov_first.mp4", "truncated_no_moov.mp4", "truncated_hmdb.avi"}
    assert failed == {"audio_only.mp4", *broken_off}


@pytest.mark.clips
def test_real_clips_are_exact(real_clips):
    """Frames after a seek are those that come when the file is decoded from its beginning, for both decoders."""
    rng = np.random.default_rng(0)
    for name in ("demo.mp4", "test.avi"):
        _same_frames(real_clips / "mmaction2" / name, rng)
    for name in ("intrarefresh", "opengop", "trim_copy_editlist", "vfr", "fragmented"):
        _same_frames(real_clips / "derived" / f"{name}.mp4", rng)
    _same_frames(real_clips / "torchvision" / "TrumanShow_wave_f_nm_np1_fr_med_26.avi", rng)


def _same_frames(path, rng):
    with open_video(path, short_side=32, decoder="pyav") as video:
        whole = video.frames(range(video.num_frames))
    for reader in ("pyav", "decord"):
        for _ in range(4):
            with open_video(path, short_side=32, decoder=reader) as video:
                wanted = rng.integers(0, video.num_frames, 4)
                difference = (video.frames(wanted).int() - whole[wanted].int()).abs().float().mean((1, 2, 3))
                assert difference.max() < 1, (path.name, reader, wanted)


@pytest.mark.clips
def test_rotation_of_real_clips(real_clips):
    for name, shape in (("video_0", (320, 568)), ("video_90", (568, 320)), ("video_180", (320, 568))):
        path = real_clips / "decord" / f"{name}.mov"
        pictures = []
        for reader in ("decord", "pyav"):
            with open_video(path, decoder=reader) as video:
                pictures.append(video.frames([0, 2]).int())
        assert pictures[0].shape[2:] == pictures[1].shape[2:] == shape
        assert (pictures[0] - pictures[1]).abs().float().mean() < 2


def test_a_file_that_takes_too_long_is_not_tried_again(tmp_path, monkeypatch):
    """A worker that waited for it once does not wait in each epoch; with more time it is tried."""
    path = write_numbered(tmp_path / "slow.mp4", 20)
    with open_video(path, timeout_s=5.0) as video:
        clock = iter(range(0, 10**6, 10))
        with monkeypatch.context() as patch:
            patch.setattr("softpool3d.datasets.video.pyav_reader.time.monotonic", lambda: next(clock))
            with pytest.raises(DecodeError, match="longer than 5 s"):
                video.frames([3])
    with monkeypatch.context() as patch:
        patch.setattr("softpool3d.datasets.video.decoder.frame_index", None)  # not opened at all
        with pytest.raises(DecodeError, match="longer than 5 s"):
            open_video(path, timeout_s=5.0)
    with open_video(path, timeout_s=30.0) as video:
        assert read_numbers(video.frames([3])) == [3]


def test_a_file_that_asks_for_more_memory_than_there_is():
    """A flipped bit in a size: FFmpeg says ENOMEM, which PyAV raises as a MemoryError."""
    with pytest.raises(DecodeError, match="more memory is asked for than there is"), errors_of("a.mov"):
        raise av.error.MemoryError(12, "Cannot allocate memory")
    with pytest.raises(MemoryError), errors_of("a.mov"):
        raise MemoryError


def test_a_reader_of_another_version_than_is_needed_is_named(monkeypatch):
    """A PyAV without an attribute that is read of each file is not each file's fault."""
    with pytest.raises(DecodeError) as usual, errors_of("a.mov"):
        raise AttributeError("no attribute 'field_order'")
    assert "installed" not in usual.value.reason
    monkeypatch.setattr(metadata, "requires", lambda name: ["av>=99"])
    said = "field_order'; av [0-9.]+ is installed, and softpool3d needs another: pip install 'av>=99'"
    with pytest.raises(DecodeError, match=said), errors_of("a.mov"):
        raise AttributeError("no attribute 'field_order'")
