"""Reads the views of a video that a network is tested on: clips along time, crops across the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softpool3d.config import DataConfig
from softpool3d.datasets.loader import clips_of, crop_views
from softpool3d.datasets.manifest import Clip
from softpool3d.datasets.sampling import FrameTimes, view_indices
from softpool3d.datasets.video.decoder import open_as
from softpool3d.datasets.video.remote import fetched


@dataclass
class Views:
    """The views of one video.

    clips: uint8 (V, C, T, crop_size, crop_size).
    duration: seconds of the video, or of the clip's part of it.
    start: where that part begins, in seconds.
    damage: what is missing of the video, as a sentence; "" if nothing is known to be.
    """

    clips: Tensor
    duration: float
    damage: str = ""
    start: float = 0.0

    @property
    def count(self) -> int:
        return len(self.clips)


def read_views(clip: Clip, data: DataConfig, num_clips: int, num_crops: int) -> Views:
    """Reads the views of a video file, a folder of pictures, or a file at an http(s) address; decodes frames once.

    Raises:
        DecodeError: if it cannot be read.
    """
    with fetched(clip.path) as path, open_as(data, path) as video:
        clips, timeline = clips_of(clip, video, data, num_clips)
        duration = float(timeline.times[-1] - timeline.times[0]) + 1 / video.fps
        damage = str(video.damage or "")
    return Views(crop_views(clips, data, num_crops), duration, damage, clip.start or 0.0)


def sample_views(frames: Tensor, data: DataConfig, num_clips: int, num_crops: int, fps: float = 25.0) -> Views:
    """Returns the views of frames in memory, uint8 (T, C, H, W), shown at `fps`."""
    timeline = FrameTimes(np.arange(len(frames)) / fps, fps, by_time=False)
    clips = torch.stack([frames[indices] for indices in view_indices(timeline, data, num_clips)])
    return Views(crop_views(clips, data, num_crops), len(frames) / fps)


def as_frames(pictures: Tensor | np.ndarray | Sequence) -> Tensor:
    """Turns frames in memory into uint8 (T, 3, H, W).

    Args:
        pictures: such a tensor; or a list of images of one size: PIL images, arrays (H, W, 3), tensors (3, H, W); or
            one PIL image.

    Raises:
        ValueError: for anything else, as one sentence.
    """
    if isinstance(pictures, Tensor):
        if pictures.is_floating_point():
            raise ValueError("frames are uint8 from 0 to 255, not floats; scale them back first")
        if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[1] != 3 or not pictures.numel():
            raise ValueError(f"frames are uint8 (T, 3, H, W), not {_name(pictures.dtype)} {tuple(pictures.shape)}")
        return pictures.cpu()
    if hasattr(pictures, "convert"):  # PIL
        pictures = [pictures]
    if not isinstance(pictures, (Sequence, np.ndarray)):
        kind = type(pictures).__name__
        raise ValueError(f"a video is a path, uint8 frames (T, 3, H, W), or a list of images, not {kind}")
    if not len(pictures):
        raise ValueError("there are no images in the list; a clip has one at least")
    frames = [_picture(picture, number) for number, picture in enumerate(pictures)]
    for number, frame in enumerate(frames):
        if frame.shape != frames[0].shape:
            sizes = [f"{f.shape[2]}x{f.shape[1]}" for f in (frame, frames[0])]
            raise ValueError(f"image {number} is {sizes[0]} pixels and the first one {sizes[1]}; a clip has one size")
    return torch.stack(frames)


def _picture(picture: object, number: int) -> Tensor:
    """Turns an image into uint8 (3, H, W)."""
    if hasattr(picture, "convert"):  # PIL
        picture = np.array(picture.convert("RGB"))
    channels_first = isinstance(picture, Tensor)
    array = torch.as_tensor(picture) if isinstance(picture, (Tensor, np.ndarray)) else None
    if array is None or array.dtype != torch.uint8 or array.ndim != 3 or array.shape[0 if channels_first else 2] != 3:
        what = type(picture).__name__ if array is None else f"{_name(array.dtype)} {tuple(array.shape)}"
        raise ValueError(
            f"image {number} is {what}; images are PIL images, uint8 arrays (H, W, 3) or uint8 tensors (3, H, W)"
        )
    return array.cpu() if channels_first else array.permute(2, 0, 1)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
