"""Tells how a decoded frame has to be turned and mirrored to be shown upright.

A container stores this as a display matrix, which the decoder attaches to each frame. PyAV's `frame.rotation` is the
angle of that matrix alone and knows no mirrors, so the matrix itself is read here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Orientation:
    """What brings a frame upright.

    turns: quarter turns counter-clockwise, 0 to 3.
    mirrored: whether left and right are exchanged, after the turns.
    """

    turns: int = 0
    mirrored: bool = False

    @property
    def swaps_sides(self) -> bool:
        """Whether the height as stored becomes the width as shown."""
        return self.turns % 2 == 1

    def upright(self, picture: np.ndarray) -> np.ndarray:
        """Returns the picture (H, W, ...) as it is to be shown; a view where nothing has to be moved."""
        picture = np.rot90(picture, self.turns) if self.turns else picture
        return picture[:, ::-1] if self.mirrored else picture


UPRIGHT = Orientation()


def orientation_of(frame) -> Orientation:
    """Returns the orientation that a PyAV frame's display matrix asks for; the nearest quarter turn where it is another
    angle."""
    from av.sidedata.sidedata import Type

    side_data = frame.side_data.get(Type.DISPLAYMATRIX)
    if side_data is None:
        return UPRIGHT
    # Row vectors are multiplied from the left: a stored pixel (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(side_data, np.int32)[:5].astype(np.float64)
    mirrored = bool(a * d - b * c < 0)
    if mirrored:
        a, c = -a, -c  # mirrored once more, what remains is a rotation
    turns = round(np.arctan2(-b, a) / (np.pi / 2)) % 4  # y points down: a positive angle here is counter-clockwise
    return Orientation(int(turns), mirrored)


class Orientations:
    """Returns the orientation of a video's frames, which is read once for each size that they are stored in.

    PyAV puts a frame that is asked for it into a reference cycle, and it is kept until Python's collector comes.
    """

    def __init__(self) -> None:
        self._size, self._orientation = (0, 0), UPRIGHT

    def __call__(self, frame) -> Orientation:
        if self._size != (frame.width, frame.height):
            self._size, self._orientation = (frame.width, frame.height), orientation_of(frame)
        return self._orientation
