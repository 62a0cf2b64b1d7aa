"""Which files decord reads, and that whatever it reads, and what it leaves to PyAV, is exact: frame by frame."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from videos import copy_packets, kept_priority, numbered_frames, read_numbers

from softpool3d.datasets.video import decord_reader
from softpool3d.datasets.video.decoder import open_video
from softpool3d.datasets.video.decord_files import VideoFacts, reads_exactly

FAULTS = Path(__file__).parents[1] / "data" / "faults"
needs_decord = pytest.mark.skipif(not decord_reader._decord_is_there(), reason="decord is not installed")
ENCODERS = {  # name -> encoder, pixel format, options
    "h264": ("libx264", "yuv420p", {"g": "8", "bf": "2"}),
    "h264_keys": ("libx264", "yuv420p", {"g": "1"}),
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
    "mp4": {"h264", "h264_keys", "mpeg4", "mjpeg", "vp9"},
    "mov": {"h264", "h264_keys", "mpeg4", "mjpeg"},
    "m4v": {"h264", "h264_keys", "mpeg4"},
    "3gp": {"h264", "h264_keys", "mpeg4"},
    "mkv": {"h264", "h264_keys", "mpeg4", "mjpeg", "vp8", "vp9"},
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
        with kept_priority(), av.open(str(path), "w") as container:
            stream = container.add_stream(encoder, rate=25)
            stream.width, stream.height, stream.pix_fmt, stream.options = *size, pixels, dict(options)
            for picture in coloured_frames(COUNT, *size):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        with av.open(str(path)) as container:
            found = container.streams.video[0].codec_context.codec.canonical_name
            held = found == stream.codec.canonical_name.replace("h263p", "h263") and any(container.decode(video=0))
            return path if held else None
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


@needs_decord
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


@needs_decord
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
        assert read_numbers(video.frames([3])) == [3]  # decord decodes ahead: it may have met the packet already
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
