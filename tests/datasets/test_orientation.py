"""Display matrices: turned and mirrored pictures are shown as players show them."""

from __future__ import annotations

import gc

import av
import numpy as np
import pytest
from videos import with_display_matrix, write_numbered

from softpool3d.datasets.manifest import Clip
from softpool3d.datasets.reencode import Encoding, encode_copy
from softpool3d.datasets.video.decoder import open_video
from softpool3d.datasets.video.encoder import write_video
from softpool3d.datasets.video.orientation import Orientation
from softpool3d.datasets.video.pyav_reader import Scaler
from softpool3d.datasets.video.stream import FrameStream

# (a, b, c, d): a stored pixel (x, y) is shown at (a x + c y, b x + d y); y points down
MATRICES = {
    (1, 0, 0, 1): lambda p: p,
    (0, 1, -1, 0): lambda p: np.rot90(p, -1),
    (-1, 0, 0, -1): lambda p: np.rot90(p, 2),
    (0, -1, 1, 0): lambda p: np.rot90(p, 1),
    (-1, 0, 0, 1): lambda p: p[:, ::-1],
    (1, 0, 0, -1): lambda p: p[::-1],
    (0, 1, 1, 0): lambda p: p.transpose(1, 0, 2),
    (0, -1, -1, 0): lambda p: np.rot90(p, 2).transpose(1, 0, 2),
}


@pytest.fixture(scope="module")
def corners(tmp_path_factory):
    """A picture without symmetry: each quarter another grey."""
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:16, :24], picture[:16, 24:], picture[16:, :24], picture[16:, 24:] = 30, 90, 160, 230
    path = tmp_path_factory.mktemp("corners") / "plain.mp4"
    write_video(path, [picture] * 4, 25, crf=5)
    return path, picture


@pytest.mark.parametrize("matrix", MATRICES)
def test_all_eight_are_shown_upright_by_reader_and_stream(corners, tmp_path, matrix):
    path, picture = corners
    turned = with_display_matrix(path, tmp_path / "turned.mp4", *matrix)
    expected = MATRICES[matrix](picture).astype(int)
    for decoder in ("pyav", "decord"):
        with open_video(turned, decoder=decoder) as video:
            shown = video.frames([2])[0].permute(1, 2, 0).numpy()
        assert shown.shape == expected.shape and np.abs(shown - expected).mean() < 3
    with FrameStream(turned) as stream:
        _, frame = next(iter(stream))
        assert np.abs(Scaler(None)(frame) - expected).mean() < 3


def test_an_angle_between_is_the_nearest_quarter_turn(corners, tmp_path):
    path, picture = corners
    turned = with_display_matrix(path, tmp_path / "turned.mp4", 0.1, 0.99, -0.99, 0.1)
    with open_video(turned) as video:
        assert video.frames([0]).shape[2:] == (48, 32)


def test_files_that_players_show_mirrored(faults):
    pictures = {}
    for name in ("plain", "hflip", "rot90_mirror"):
        with open_video(faults / f"{name}.mp4") as video:
            pictures[name] = video.frames([0, 25]).permute(0, 2, 3, 1).numpy()
    assert (pictures["hflip"] == pictures["plain"][:, :, ::-1]).all()
    assert (pictures["rot90_mirror"] == pictures["plain"].transpose(0, 2, 1, 3)).all()


def test_what_needs_no_turn_is_not_copied():
    picture = np.zeros((4, 6, 3), np.uint8)
    assert Orientation().upright(picture) is picture
    assert Orientation(1).swaps_sides and not Orientation(2, True).swaps_sides


def test_rotation_by_numbers_still_agrees(tmp_path):
    from videos import rotated

    path = write_numbered(tmp_path / "a.mp4", 5)
    with open_video(path) as video:
        plain = video.frames([3])[0]
    with open_video(rotated(path, tmp_path / "b.mp4", 90)) as video:
        assert (video.frames([3])[0].int() - plain.rot90(1, (1, 2)).int()).abs().float().mean() < 1


def read_whole(path):
    with open_video(path) as video:
        video.frames(range(40))


def copy_whole(path):
    encode_copy(Clip(str(path), 0), str(path.with_name("copy.mp4")), Encoding(short_side=16))


@pytest.mark.parametrize("use", [read_whole, copy_whole])
def test_frames_do_not_wait_for_the_collector(use, tmp_path):
    """PyAV puts a frame whose side data are read into a reference cycle: of a file, only the first may be."""
    path = write_numbered(tmp_path / "a.mp4", 40)
    gc.collect()
    gc.disable()
    try:
        use(path)
        before = gc.get_debug()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        gc.set_debug(before)
        kept = [thing for thing in gc.garbage if isinstance(thing, av.VideoFrame)]
    finally:
        gc.garbage.clear()
        gc.enable()
    assert len(kept) <= 3
