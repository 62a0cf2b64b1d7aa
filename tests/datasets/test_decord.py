"""decord's helper process, and the files that are left to decord, against PyAV."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from videos import copy_packets, numbered_frames, read_numbers, write_numbered

from softpool3d.datasets import decord_reader
from softpool3d.datasets.decoder import DecodeError, open_video
from softpool3d.datasets.decord_files import VideoFacts, reads_exactly
from softpool3d.datasets.decord_reader import DecordFailed, DecordReader

FAULTS = Path(__file__).parents[1] / "data" / "faults"
pytestmark = pytest.mark.skipif(not decord_reader._decord_is_there(), reason="decord is not installed")


@pytest.fixture
def two(tmp_path):
    """Two files of the same size and length: the frames of the first are numbered from 0 on, of the other from 300."""
    return write_numbered(tmp_path / "a.mp4", 20, g="5"), write_numbered(tmp_path / "b.mp4", 20, g="5", first=300)


def test_two_open_videos_do_not_mix(two):
    with open_video(two[0], decoder="decord") as a, open_video(two[1], decoder="decord") as b:
        for _ in range(2):
            assert read_numbers(a.frames([3, 12])) == [3, 12]
            assert read_numbers(b.frames([3, 12])) == [303, 312]
        with open_video(two[0], short_side=40, decoder="decord") as small:
            assert small.frames([7]).shape == (1, 3, 40, 53)
            assert read_numbers(a.frames([7])) == [7] and a.frames([7]).shape == (1, 3, 48, 64)
        b.close()
        assert read_numbers(a.frames([4])) == [4]
        assert a.decoder == b.decoder == small.decoder == "decord"


def test_closing_a_file_twice_leaves_its_other_reader_alone(two):
    with open_video(two[0], decoder="decord") as again:
        video = open_video(two[0], decoder="decord")
        video.close()
        video.close()
        assert read_numbers(again.frames([9])) == [9] and again.decoder == "decord"


def test_more_videos_are_open_than_the_helper_keeps_open(two):
    videos = [open_video(two[n % 2], short_side=33 + n // 2 * 5, decoder="decord") for n in range(20)]
    for _ in range(2):
        for n, video in enumerate(videos):
            assert video.frames([11]).shape[2] == 33 + n // 2 * 5
            with open_video(two[n % 2], short_side=33 + n // 2 * 5) as same:
                assert (video.frames([11]).int() - same.frames([11]).int()).abs().float().mean() < 1
    assert len(_open_files(decord_reader._current)) <= decord_reader._OPEN
    for video in videos:
        assert video.decoder == "decord"
        video.close()
    assert not _open_files(decord_reader._current)


def _open_files(helper):
    descriptors = f"/proc/{helper._process.pid}/fd"
    return [n for n in os.listdir(descriptors) if os.readlink(f"{descriptors}/{n}").endswith(".mp4")]


def test_threads_of_one_process_take_turns(two):
    wrong = []

    def read(path, first):
        with open_video(path, decoder="decord") as video:
            for n in range(20):
                if read_numbers(video.frames([n])) != [first + n]:
                    wrong.append((path, n))

    threads = [threading.Thread(target=read, args=(two[k % 2], 300 * (k % 2))) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_open_video_is_read_on_both_sides_of_a_fork(two):
    with open_video(two[0], decoder="decord") as a, open_video(two[1], decoder="decord") as b:
        parents = decord_reader._current
        child = os.fork()
        if child == 0:
            code = 1
            try:
                fine = all(
                    read_numbers(a.frames([n])) == [n] and read_numbers(b.frames([n])) == [300 + n] for n in (4, 9)
                )
                a.close()
                code = 0 if fine and a.decoder == "decord" and decord_reader._current is not parents else 2
                decord_reader.stop_helper()
            finally:
                os._exit(code)
        for n in range(20):
            assert read_numbers(a.frames([n])) == [n] and read_numbers(b.frames([n])) == [300 + n]
        assert os.waitpid(child, 0)[1] == 0
        assert a.decoder == b.decoder == "decord" and decord_reader._current is parents


def test_a_relative_path_stays_that_file_when_the_folder_changes(two, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    two[1].rename(other / "a.mp4")
    monkeypatch.chdir(tmp_path)
    decord_reader.stop_helper()
    with open_video("a.mp4", decoder="decord") as a:  # the helper starts here
        monkeypatch.chdir(other)
        with open_video("a.mp4", decoder="decord") as b:
            assert read_numbers(a.frames([6])) == [6]
            assert read_numbers(b.frames([6])) == [306]


def test_a_file_that_took_the_place_of_another_is_not_read_for_it(two):
    with open_video(two[0], decoder="decord") as video:
        assert read_numbers(video.frames([6])) == [6]
        decord_reader.stop_helper()  # the next one has to open the file again
        os.replace(two[1], two[0])
        with pytest.raises(DecordFailed, match="another file"):
            DecordReader.read(video._reader, np.array([6]))


# --- a helper that is gone -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ended", [signal.SIGKILL, signal.SIGSEGV])
def test_a_helper_that_died_between_calls_is_replaced(two, ended):
    with open_video(two[0], decoder="decord") as video:
        assert read_numbers(video.frames([3])) == [3]
        os.kill(decord_reader._current._process.pid, ended)
        decord_reader._current._process.wait()
        assert read_numbers(video.frames([5, 1])) == [5, 1]
        os.kill(decord_reader._current._process.pid, ended)
        decord_reader._current._process.wait()


def test_closing_raises_nothing_whatever_became_of_the_helper(two):
    for harm in ("killed", "stopped", "socket", "gone"):
        with open_video(two[0], decoder="decord") as video:
            assert video.decoder == "decord"
            video._reader._timeout_s = 0.5
            helper = decord_reader._current
            if harm == "killed":
                os.kill(helper._process.pid, signal.SIGKILL)  # and not yet waited for
            elif harm == "stopped":
                os.kill(helper._process.pid, signal.SIGSTOP)
            elif harm == "socket":
                helper._socket.close()
            else:
                decord_reader.stop_helper()
                decord_reader._current = None
        video.close()
        assert not helper.running


def test_a_helper_that_stops_answering_leaves_the_file_to_pyav(two):
    with open_video(two[0], decoder="decord") as video:
        video._reader._timeout_s = 0.5
        os.kill(decord_reader._current._process.pid, signal.SIGSTOP)
        assert read_numbers(video.frames([5, 1])) == [5, 1]
        assert video.decoder == "pyav"


def test_an_answer_that_breaks_off_leaves_the_file_to_pyav(two, monkeypatch):
    with open_video(two[0], decoder="decord") as video:
        exactly = decord_reader._exactly

        def cut(connection, length):
            if length > 1000:
                os.kill(decord_reader._current._process.pid, signal.SIGKILL)
                raise EOFError
            return exactly(connection, length)

        monkeypatch.setattr(decord_reader, "_exactly", cut)
        assert read_numbers(video.frames([5, 1])) == [5, 1]
        assert video.decoder == "pyav"


def test_an_interrupted_call_leaves_no_answer_to_the_next_one(two, monkeypatch):
    with open_video(two[0], decoder="decord") as a, open_video(two[1], decoder="decord") as b:
        receive = decord_reader._receive

        def interrupted(_):
            raise KeyboardInterrupt

        monkeypatch.setattr(decord_reader, "_receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            a.frames([3])
        monkeypatch.setattr(decord_reader, "_receive", receive)
        assert read_numbers(b.frames([7])) == [307]
        assert b.decoder == "decord"


def test_where_no_process_can_be_started_pyav_reads(two, monkeypatch):
    decord_reader.stop_helper()

    def full(*_, **__):
        raise OSError("no more processes")

    monkeypatch.setattr(decord_reader.subprocess, "Popen", full)
    with open_video(two[0], decoder="decord") as video:
        assert video.decoder == "pyav"
        assert read_numbers(video.frames([5])) == [5]


def test_where_pyav_fails_too_it_is_that_files_error(two):
    with open_video(two[0], decoder="decord") as video:
        os.kill(decord_reader._current._process.pid, signal.SIGSTOP)
        video._timeout_s = video._reader._timeout_s = 0.5
        two[0].write_bytes(b"no video")
        with pytest.raises(DecodeError, match="a.mp4"):
            video.frames([5])


def test_a_process_ends_quietly_with_videos_open(two):
    """One of them in a helper that is gone."""
    code = f"""
        import os, signal
        from softpool3d.datasets import decord_reader
        from softpool3d.datasets.decoder import open_video
        videos = []
        for path in ({str(two[0])!r}, {str(two[1])!r}):
            videos.append(open_video(path, decoder="decord"))
            videos[-1].frames([1])
            if len(videos) == 1:
                os.kill(decord_reader._current._process.pid, signal.SIGKILL)
                decord_reader._current._process.wait()
        assert [video.decoder for video in videos] == ["decord", "decord"]
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- which files decord reads ----------------------------------------------------------------------------------------

ENCODERS = {  # name -> encoder, pixel format, options
    "h264": ("libx264", "yuv420p", {"g": "8", "bf": "2"}),
    "h264_444": ("libx264", "yuv444p", {"g": "8"}),
    "h264_10bit": ("libx264", "yuv420p10le", {"g": "8"}),
    "h264_open": ("libx264", "yuv420p", {"x264-params": "open-gop=1:keyint=8:bframes=2"}),
    "h264_refresh": ("libx264", "yuv420p", {"x264-params": "intra-refresh=1:keyint=8:bframes=0"}),
    "h264_fields": ("libx264", "yuv420p", {"x264-params": "tff=1:keyint=8"}),
    "hevc": ("libx265", "yuv420p", {"x265-params": "log-level=none:keyint=8:open-gop=0"}),
    "mpeg4": ("mpeg4", "yuv420p", {"g": "8", "q": "2"}),
    "mpeg4_b": ("mpeg4", "yuv420p", {"g": "8", "q": "2", "bf": "2"}),
    "mpeg4_fields": ("mpeg4", "yuv420p", {"g": "8", "q": "2", "flags": "+ildct+ilme"}),
    "mpeg2": ("mpeg2video", "yuv420p", {"g": "8", "q": "2", "bf": "2"}),
    "vp8": ("libvpx", "yuv420p", {"g": "8", "cpu-used": "8", "deadline": "realtime"}),
    "vp9": ("libvpx-vp9", "yuv420p", {"g": "8", "cpu-used": "8", "deadline": "realtime"}),
    "av1": ("libsvtav1", "yuv420p", {"preset": "12", "svtav1-params": "keyint=8", "crf": "20"}),
    "mjpeg": ("mjpeg", "yuvj420p", {"q": "2"}),
    "wmv2": ("wmv2", "yuv420p", {"g": "8", "q": "2"}),
    "flv": ("flv", "yuv420p", {"g": "8", "q": "2"}),
    "h263": ("h263p", "yuv420p", {"g": "8", "q": "2"}),
    "ffv1": ("ffv1", "yuv420p", {}),
    "png": ("png", "rgb24", {}),
    "rawvideo": ("rawvideo", "yuv420p", {}),
    "prores": ("prores_ks", "yuv422p10le", {}),
}
CONTAINERS = ["mp4", "mov", "m4v", "3gp", "mkv", "webm", "avi", "flv", "ts", "m2ts", "mpg", "wmv", "mxf", "nut"]
DECORD_READS = {
    "mp4": {"h264", "mpeg4", "mjpeg", "vp9"},
    "mov": {"h264", "mpeg4", "mjpeg"},
    "m4v": {"h264", "mpeg4"},
    "3gp": {"h264", "mpeg4"},
    "mkv": {"h264", "mpeg4", "mjpeg", "vp8", "vp9"},
    "webm": {"vp8", "vp9"},
    "avi": {"mpeg4", "mjpeg"},
}
COUNT = 20


def coloured_frames(count: int, width: int = 64, height: int = 48) -> np.ndarray:
    """`numbered_frames` under soft slopes of colour, of any size."""
    rows, columns = np.arange(height) * 48 // height, np.arange(width) * 64 // width
    grey = numbered_frames(count)[:, rows][:, :, columns].astype(np.float32)
    red, green = np.linspace(-20, 20, width)[None], np.linspace(-20, 20, height)[:, None]
    slopes = np.stack(np.broadcast_arrays(red, green, 0), axis=-1)
    return np.clip(grey + slopes, 0, 255).astype(np.uint8)


def write(path, name, size=(64, 48)):
    """The file, or None where the codec cannot be encoded so, or is not found again in that container."""
    import av

    encoder, pixels, options = ENCODERS[name]
    try:
        with av.open(str(path), "w") as container:
            stream = container.add_stream(encoder, rate=25)
            stream.width, stream.height, stream.pix_fmt, stream.options = *size, pixels, dict(options)
            for picture in coloured_frames(COUNT, *size):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        with av.open(str(path)) as container:
            found = container.streams.video[0].codec_context.codec.canonical_name
            return path if found == stream.codec.canonical_name and any(container.decode(video=0)) else None
    except (av.error.FFmpegError, ValueError, IndexError, AttributeError):  # of PyAV; no stream, or one without codec
        return None


def assert_same_by_both(path) -> str:
    """Frames in any order and in several sizes, against all of them from the beginning; returns what read them."""
    for short_side in (None, 40):
        with open_video(path, short_side) as video:
            count = video.num_frames
            whole = video.frames(range(count)).int()
        with open_video(path, short_side, decoder="decord") as video:
            assert video.num_frames == count
            for wanted in (
                range(count),
                [count - 1],
                [12, 5, 13],
                range(0, count, 7),
                [8],
                [7],
                range(count - 3, count),
            ):
                wanted = [n for n in wanted if n < count]
                difference = (video.frames(wanted).int() - whole[wanted]).abs().float()
                assert difference.mean((1, 2, 3)).max() < 1, (path.name, short_side, video.decoder, list(wanted))
    return video.decoder


@pytest.mark.parametrize("container", CONTAINERS)
def test_frames_are_pyavs_in_every_container_and_codec(tmp_path, container):
    paths = {name: write(tmp_path / f"{name}.{container}", name) for name in ENCODERS}
    readers = {name: assert_same_by_both(path) for name, path in paths.items() if path is not None}
    assert "h264" in readers or container in ("webm", "wmv")
    assert {name for name, reader in readers.items() if reader == "decord"} == DECORD_READS.get(container, set())


@pytest.mark.parametrize("size", [(64, 47), (63, 48), (63, 47)])
def test_odd_sizes_are_left_to_pyav(tmp_path, size):
    for name in ("mpeg4", "mjpeg", "vp9"):
        assert assert_same_by_both(write(tmp_path / f"{name}.mkv", name, size)) == "pyav"


def test_a_windows_media_video_is_read_by_pyav():
    """decord gave frame 0 for frame 12."""
    import av

    path = FAULTS / "wmv2.wmv"
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with open_video(path, decoder="decord") as video:
        assert video.decoder == "pyav" and video.num_frames == len(pictures) == 50
        for wanted in ([12], [49, 13, 12]):
            shown = video.frames(wanted).permute(0, 2, 3, 1).numpy().astype(int)
            assert np.abs(shown - [pictures[n] for n in wanted]).mean() < 1


def test_a_file_of_which_decord_sees_other_times_is_left_to_pyav(tmp_path):
    """Each frame a fragment of its own: decord takes times of storing for times of showing."""
    path = copy_packets(
        write(tmp_path / "a.mp4", "h264"),
        tmp_path / "b.mp4",
        movflags="empty_moov+default_base_moof+frag_every_frame+dash",
    )
    assert assert_same_by_both(path) == "pyav"


def test_a_damaged_packet_is_left_to_pyav(tmp_path):
    """decord gives some other frame for one that it cannot decode."""
    import av

    path = write(tmp_path / "a.mkv", "h264")
    with av.open(str(path)) as container:
        last_key = [packet.pos for packet in container.demux(video=0) if packet.is_keyframe][-1]
    content = bytearray(path.read_bytes())
    content[last_key + 60 : last_key + 90] = bytes(30)
    path.write_bytes(content)
    with open_video(path, decoder="decord") as video:
        assert video.decoder == "decord"
        assert read_numbers(video.frames([3])) == [3]
        assert video.decoder == "decord"
        frames = video.frames([19])
        assert video.decoder == "pyav"
    with open_video(path) as video:
        assert (video.frames([19]) == frames).all()


def facts(**changed):
    return replace(VideoFacts("mov,mp4,m4a,3gp,3g2,mj2", "h264", "yuv420p", 64, 48, False, 1, True, True), **changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"container": "asf"},
        {"container": "avi"},
        {"container": "what comes next"},
        {"codec": "hevc"},
        {"pixel_format": "yuv420p10le"},
        {"pixel_format": None},
        {"height": 47},
        {"width": 63},
        {"is_interlaced": True},
        {"video_streams": 2},
        {"shows_all_packets": False},
        {"has_closed_gops": False},
    ],
)
def test_each_fact_alone_leaves_a_file_to_pyav(changed):
    assert reads_exactly(facts())
    assert not reads_exactly(facts(**changed))
