"""Pictures as videos: folders of frames, and moving pictures."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from videos import numbered_frames, read_numbers

from softpool3d.datasets.manifest import Clip
from softpool3d.datasets.reencode import Encoding, encode_copy
from softpool3d.datasets.video.decoder import DecodeError, open_video
from softpool3d.datasets.video.find import find_videos, left_out
from softpool3d.datasets.video.pictures import read_picture
from softpool3d.visual.source import read_source

DURATIONS = [40, 100, 40, 40, 500, 40, 20, 70, 40]


def save_numbered(folder, pattern, count=3):
    folder.mkdir(exist_ok=True, parents=True)
    for number, picture in enumerate(numbered_frames(count)):
        Image.fromarray(picture).save(folder / pattern.format(number))
    return folder


def save_moving(path):
    first, *others = map(Image.fromarray, numbered_frames(len(DURATIONS)))
    kind = {".apng": {"format": "PNG"}, ".webp": {"lossless": True}, ".gif": {}}[path.suffix]
    first.save(path, save_all=True, append_images=others, duration=DURATIONS, loop=0, **kind)
    return path


def numbers(path):
    with open_video(path) as video:
        return read_numbers(video.frames(range(video.num_frames)))


# --- moving pictures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["gif", "webp", "apng"])
def test_a_moving_picture_is_a_video_with_its_own_times(tmp_path, ending):
    path = save_moving(tmp_path / f"moving.{ending}")
    with open_video(path) as video:
        assert np.allclose(video.times, np.cumsum([0, *DURATIONS[:-1]]) / 1000)
        assert read_numbers(video.frames([7, 0, 3, 3])) == [7, 0, 3, 3]
    with open_video(path, short_side=24) as video:
        assert video.frames([8]).shape == (1, 3, 24, 32)
    assert list(find_videos(tmp_path)) == [str(path)]
    encode_copy(Clip(str(path), 0), str(tmp_path / "copy.mp4"), Encoding())
    assert numbers(tmp_path / "copy.mp4") == list(range(len(DURATIONS)))


def test_a_webp_that_stands_still_is_a_picture_and_a_moving_one_a_video(tmp_path):
    still = save_numbered(tmp_path / "clip", "{}.webp") / "0.webp"
    moving = save_moving(tmp_path / "moving.webp")
    assert set(find_videos(tmp_path)) == {str(moving), str(tmp_path / "clip")}
    assert read_source(still).is_picture
    assert len(read_source(moving).frames) == len(DURATIONS)


def test_a_damaged_moving_webp_is_a_sentence(tmp_path):
    path = save_moving(tmp_path / "moving.webp")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DecodeError, match="moving.webp: "), open_video(path) as video:
        video.frames(range(video.num_frames))


# --- which pictures of a folder are its frames -----------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["bmp", "jpeg", "jpg", "PNG", "tif", "tiff", "webp"])
def test_frames_of_every_format(tmp_path, ending):
    folder = save_numbered(tmp_path / "clip", "frame{}." + ending, 12)
    assert numbers(folder) == list(range(12))
    assert list(find_videos(tmp_path)) == [str(folder)]


@pytest.mark.parametrize(
    "beside", ["flow_x_{:05}.jpg", "x_{:05}.jpg", "{}_flow_y.png", "thumb_{}.jpg", "thumbnail.jpg", "Cover.PNG"]
)
def test_optical_flow_and_thumbnails_beside_frames_are_left_out_and_counted(tmp_path, beside):
    folder = save_numbered(tmp_path / "clip", "img_{:05}.jpg")
    count = 3 if "{" in beside else 1
    for number in range(count):
        Image.new("RGB", (20, 10)).save(folder / beside.format(number))
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "._img_00000.jpg").write_bytes(b"x")
    assert numbers(folder) == [0, 1, 2]
    assert sum(left_out(tmp_path).values()) == count


def test_what_is_left_out_beside_frames_is_named(tmp_path):
    folder = save_numbered(tmp_path / "clip", "img_{}.jpg")
    save_numbered(folder, "flow_x_{}.jpg", 2)
    save_numbered(tmp_path / "other" / "rgb", "{}.png")
    save_numbered(tmp_path / "other" / "flow_y", "{}.png")
    assert left_out(tmp_path) == {"flow_y/*.png": 3, "flow_x_*.jpg": 2}
    assert set(find_videos(tmp_path)) == {str(folder), str(tmp_path / "other" / "rgb")}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["left_{}.png", "right_{}.png"], r"of several kinds \(3 left_\*, 3 right_\*\)"),
        (["flow_x_{}.jpg", "flow_y_{}.jpg"], r"of several kinds"),
        (["{}.jpg", "{}.png"], "0.jpg and 0.png are the same frame"),
        (["{}.jpg", "{:04}.jpg"], "are the same frame"),
        (["{} copy.jpg", "{}.jpg"], "of several kinds"),
    ],
)
def test_several_streams_of_pictures_are_refused(tmp_path, patterns, message):
    for pattern in patterns:
        save_numbered(tmp_path, pattern)
    with pytest.raises(DecodeError, match=message + ".*; put each kind into a folder of its own"):
        open_video(tmp_path)


def test_pictures_without_numbers_are_no_clip(tmp_path):
    for name in ("cat.jpg", "dog.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    with pytest.raises(DecodeError, match=r"its pictures \(cat.jpg, ...\) have no numbers in their names"):
        open_video(tmp_path)


# --- what pictures store ---------------------------------------------------------------------------------------------


RAMP = np.linspace(0, 65535, 64 * 4).astype(np.uint16).reshape(4, 64)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_grey_is_scaled(tmp_path, ending):
    Image.fromarray(RAMP).save(tmp_path / f"0.{ending}")
    with open_video(tmp_path) as video:
        frame = video.frames([0])[0].numpy()
    assert (frame == RAMP >> 8).all()
    assert (read_source(tmp_path / f"0.{ending}").frames[0].numpy() == RAMP >> 8).all()


def test_16_bit_colour_is_scaled(tmp_path):
    colour = np.stack([RAMP, RAMP[::-1], np.full_like(RAMP, 0x8000)], axis=-1)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in colour)
    header = struct.pack(">IIBBBBB", 64, 4, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    stored = [struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks]
    (tmp_path / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(stored))
    with open_video(tmp_path) as video:
        assert (video.frames([0])[0].permute(1, 2, 0).numpy() == colour >> 8).all()


@pytest.mark.parametrize(
    ("mode", "ending"),
    [("1", "png"), ("L", "png"), ("P", "png"), ("LA", "png"), ("RGBA", "png"), ("RGBA", "tif"), ("CMYK", "tif")]
    + [("CMYK", "jpg"), ("P", "bmp"), ("RGBA", "webp")],
)
def test_palettes_transparency_and_cmyk_become_colours(tmp_path, mode, ending):
    picture = Image.new("RGB", (16, 16), (255, 255, 255) if mode in ("1", "L", "LA") else (255, 0, 0))
    picture.paste((0, 0, 0), (0, 0, 16, 8))
    path = tmp_path / f"0.{ending}"
    picture.convert(mode).save(path, **({"lossless": True} if ending == "webp" else {}))
    with open_video(tmp_path) as video:
        frame = video.frames([0])[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(frame - np.asarray(picture)).max() <= 4
    assert (np.asarray(read_picture(path)) == frame).all()


def test_pixels_without_a_known_range_are_refused(tmp_path):
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "0.tif")
    with open_video(tmp_path) as video, pytest.raises(DecodeError, match="frame 0.tif: its pixels are 32-bit numbers"):
        video.frames([0])


def test_a_stack_of_pictures_in_one_file_is_refused(tmp_path):
    pages = [Image.new("L", (8, 8)) for _ in range(3)]
    pages[0].save(tmp_path / "0.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DecodeError, match="0.tif: it holds 3 pictures where one is wanted"):
        read_source(tmp_path / "0.tif")
