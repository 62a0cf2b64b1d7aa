"""Batches of clips: data set, sampler, collation.

A sample depends on (seed, epoch, index) alone, not on how many workers or processes there are: the sampler hands out
(epoch, index) pairs and every random choice is drawn from a generator seeded with them.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from softpool3d.config import Config, DataConfig
from softpool3d.datasets.decoder import DecodeError, Video, open_video
from softpool3d.datasets.manifest import Clip, Manifest
from softpool3d.datasets.sampling import random_clip, segment_frames, spaced_clips
from softpool3d.datasets.transforms import EvalTransform, TrainTransform

_REPLACEMENTS = 20  # unreadable files in a row before a training sample is given up


@dataclass
class Batch:
    """Clips of one step, and the files that turned out unreadable while it was made.

    video: uint8 (N, C, T, H, W) in training, (N, V, C, T, H, W) with V views in evaluation; None if there was no
        readable file.
    label, index: int64 (N,); `index` counts into the manifest.
    """

    video: Tensor | None
    label: Tensor
    index: Tensor
    bad: list[DecodeError] = field(default_factory=list)

    def pin_memory(self) -> Batch:
        if self.video is not None:
            self.video = self.video.pin_memory()
        return self


class TrainClips(Dataset):
    """Random clips of a manifest: (epoch, index) -> one augmented clip, uint8 (C, T, H, W).

    An unreadable file is replaced by another one, so that batches keep their size, and reported.
    """

    def __init__(self, manifest: Manifest, data: DataConfig, seed: int) -> None:
        self.manifest, self.data, self.seed = manifest, data, seed
        self.transform = TrainTransform(data.train_short_side, data.crop_size, data.flip)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        bad = []
        for _ in range(_REPLACEMENTS):
            clip = self.manifest.clips[index]
            try:
                with open_video(clip.path, timeout_s=self.data.decode_timeout_s) as video:
                    first, total = frame_range(clip, video)
                    frames = video.frames(first + self._indices(total, rng))
            except DecodeError as error:
                bad.append(error)
                index = int(rng.integers(len(self.manifest)))
                continue
            generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
            picture = self.transform(frames, generator).transpose(0, 1)
            return Batch(picture, torch.tensor(clip.label), torch.tensor(index), bad)
        return Batch(None, torch.empty(0), torch.empty(0), bad)

    def _indices(self, total: int, rng: np.random.Generator) -> np.ndarray:
        data = self.data
        if data.sampling == "uniform":
            return segment_frames(total, data.num_frames, rng)
        return random_clip(total, data.num_frames, data.sampling_rate, rng, data.short_clip)


class EvalClips(Dataset):
    """The views of each video: (epoch, index) -> uint8 (V, C, T, H, W) with V = num_clips * num_crops."""

    def __init__(self, manifest: Manifest, data: DataConfig, num_clips: int = 1, num_crops: int = 1) -> None:
        self.manifest, self.data = manifest, data
        self.num_clips, self.num_crops = num_clips, num_crops

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        clip = self.manifest.clips[key[1]]
        try:
            views = read_views(clip, self.data, self.num_clips, self.num_crops)
        except DecodeError as error:
            return Batch(None, torch.empty(0), torch.empty(0), [error])
        return Batch(views, torch.tensor(clip.label), torch.tensor(key[1]))


def read_views(clip: Clip, data: DataConfig, num_clips: int, num_crops: int) -> Tensor:
    """The views of a video file, as `sample_views` draws them.

    Raises:
        DecodeError: if the file cannot be read.
    """
    with open_video(clip.path, timeout_s=data.decode_timeout_s) as video:
        first, total = frame_range(clip, video)
        return sample_views(lambda indices: video.frames(first + indices), total, data, num_clips, num_crops)


def sample_views(
    frames: Callable[[np.ndarray], Tensor], total: int, data: DataConfig, num_clips: int, num_crops: int
) -> Tensor:
    """`num_clips` clips evenly spaced in time, each in `num_crops` crops: uint8 (V, C, T, H, W).

    With `sampling: uniform` every clip would be the same one, so there is one.

    Args:
        frames: gives the frames of ascending indices, uint8 (T, C, H, W); each is asked for once.
        total: how many there are.
    """
    if data.sampling == "uniform":
        clips = [segment_frames(total, data.num_frames)]
    else:
        clips = spaced_clips(total, data.num_frames, data.sampling_rate, num_clips, data.short_clip)
    needed = np.unique(np.concatenate(clips))
    decoded = frames(needed)
    transform = EvalTransform(data.short_side, data.crop_size, num_crops)
    crops = [transform(decoded[np.searchsorted(needed, indices)]) for indices in clips]
    return torch.stack([crop.transpose(0, 1) for views in crops for crop in views])


def num_views(data: DataConfig, num_clips: int, num_crops: int) -> int:
    """How many views `sample_views` draws."""
    return num_crops * (1 if data.sampling == "uniform" else num_clips)


def frame_range(clip: Clip, video: Video) -> tuple[int, int]:
    """(first frame, number of frames) of the part of the video that belongs to the clip."""
    first = 0 if clip.start is None else min(round(clip.start * video.fps), video.num_frames - 1)
    end = video.num_frames if clip.end is None else min(round(clip.end * video.fps), video.num_frames)
    return first, max(end - first, 1)


class TrainBatches(Sampler):
    """Batches of (epoch, index) in an order that depends on (seed, epoch) alone.

    Each process takes its share of every global batch. An incomplete last batch is left out, unless it is the only one.
    """

    def __init__(self, count: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch, self.start = 0, 0

    def set_position(self, epoch: int, start: int = 0) -> None:
        """The epoch to draw next, and how many of its batches were done before an interruption."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return max(self.count // (self.batch_size * self.world_size), 1)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count).tolist()
        size = self.batch_size * self.world_size
        for number in range(self.start, len(self)):
            mine = order[number * size : (number + 1) * size][self.rank :: self.world_size]
            yield [(self.epoch, index) for index in mine]


class EvalBatches(Sampler):
    """Every clip once, in order, dealt out to the processes in turn."""

    def __init__(self, count: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        mine = range(rank, count, world_size)
        self.batches = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(0, index) for index in batch] for batch in self.batches)


def collate(samples: list[Batch]) -> Batch:
    """Samples without their first dimension -> one batch; unreadable ones are left out but stay reported."""
    good = [sample for sample in samples if sample.video is not None]
    bad = [error for sample in samples for error in sample.bad]
    if not good:
        return Batch(None, torch.empty(0), torch.empty(0), bad)
    return Batch(
        torch.stack([sample.video for sample in good]),
        torch.stack([sample.label for sample in good]),
        torch.stack([sample.index for sample in good]),
        bad,
    )


def train_loader(manifest: Manifest, config: Config, rank: int = 0, world_size: int = 1) -> DataLoader:
    clips = TrainClips(manifest, config.data, config.seed)
    batches = TrainBatches(len(manifest), config.train.batch_size, config.seed, rank, world_size)
    return _loader(clips, batches, config.data.num_workers)


def eval_loader(
    manifest: Manifest,
    config: Config,
    num_clips: int = 1,
    num_crops: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    clips = EvalClips(manifest, config.data, num_clips, num_crops)
    batches = EvalBatches(len(manifest), config.test.batch_size, rank, world_size)
    return _loader(clips, batches, config.data.num_workers)


def _loader(clips: Dataset, batches: Sampler, num_workers: int) -> DataLoader:
    return DataLoader(
        clips,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        worker_init_fn=_start_worker if num_workers else None,
        generator=torch.Generator(),  # so that starting workers draws nothing from the state that dropout uses
    )


def _start_worker(_: int) -> None:
    # Both reach every process of a terminal or a job; the main one decides when the workers stop.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)  # one core a worker: resizing must not fight the network for the others
