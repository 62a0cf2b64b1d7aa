"""Makes batches of clips: data sets, collation and loaders.

A sample depends on the seed and its key alone, not on the number of workers or processes. The sampler hands out keys
of (epoch, index), and every random choice is drawn from a generator seeded with them.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import ClassVar
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from softpool3d.config import Config, DataConfig
from softpool3d.datasets.batches import EvalBatches, TrainBatches, TrainKey
from softpool3d.datasets.cache import FileCache, make_cache
from softpool3d.datasets.manifest import Clip, Manifest
from softpool3d.datasets.multigrid import Multigrid
from softpool3d.datasets.sampling import FrameTimes, train_indices, view_indices
from softpool3d.datasets.transforms import EvalTransform, Recipe, TrainTransform
from softpool3d.datasets.video.decoder import DecodeError, Video, open_as
from softpool3d.signals import leave_to_parent

_REPLACEMENTS = 20  # unreadable files in a row before a training sample is given up


@dataclass
class Batch:
    """The clips of one step, and the files that could not be read while it was made.

    video: uint8 (N, C, T, H, W) in training, (N, V, C, T, H, W) with V views in evaluation; None if no file could be
        read. With `data.transforms_on_device`, a list of tensors as decoded, which `to_device` transforms: (T, C, H, W)
        for each clip in training, (K, T, C, H, W) for each video in evaluation.
    label: int64 (N,); float32 (N, classes), 0 or 1, where clips may have several.
    index: int64 (N,), into the manifest.
    bad: the files that could not be read.
    recipes: in training, the transform of each clip.
    damaged: path -> what is missing of the file, for files that are used all the same.
    """

    video: Tensor | list[Tensor] | None
    label: Tensor
    index: Tensor
    bad: list[DecodeError] = field(default_factory=list)
    recipes: list[Recipe] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)

    def pin_memory(self) -> Batch:
        if isinstance(self.video, list):
            self.video = [video.pin_memory() for video in self.video]
        elif self.video is not None:
            self.video = self.video.pin_memory()
        return self


class TrainClips(Dataset):
    """Random clips of a manifest: for each key, `repeats` augmented clips of one video, uint8 (repeats, C, T, H, W).

    An unreadable file is reported and replaced by another one, so that batches keep their size.
    """

    def __init__(
        self, manifest: Manifest, data: DataConfig, seed: int, repeats: int = 1, cache: FileCache | None = None
    ) -> None:
        self.manifest, self.data, self.seed, self.repeats, self.cache = manifest, data, seed, repeats, cache
        self.transform = TrainTransform(data, manifest.classes)

    def __getitem__(self, key: TrainKey) -> Batch:
        epoch, index, grid = key
        rng = np.random.default_rng((self.seed, epoch, index))
        bad = []
        for _ in range(_REPLACEMENTS):
            clip = self.manifest.clips[index]
            try:
                with _naming(self.manifest, index):
                    recipes = [self.transform.recipe(clip.label, rng, grid.crop) for _ in range(self.repeats)]
                    clips, damage = self._decode(clip, max(recipe.short_side for recipe in recipes), rng, grid.frames)
                    video = self._finish(clips, recipes)
            except DecodeError as error:
                bad.append(error)
                index = int(rng.integers(len(self.manifest)))
                continue
            label = torch.stack([_target(clip, self.manifest)] * self.repeats)
            damaged = {clip.path: damage} if damage else {}
            return Batch(video, label, torch.full((self.repeats,), index), bad, recipes, damaged)
        return _nothing(bad)

    def _decode(self, clip: Clip, short_side: int, rng: np.random.Generator, frames: float) -> tuple[list[Tensor], str]:
        """Returns the decoded clips, and what is missing of the video."""
        with _opened(clip, self.data, short_side, self.cache) as video:
            first, timeline = timeline_of(clip, video, self.data)
            indices = [first + train_indices(timeline, self.data, rng, frames) for _ in range(self.repeats)]
            needed, places = np.unique(np.concatenate(indices), return_inverse=True)
            decoded = video.frames(needed)
            damage = str(video.damage or "")
        return [decoded[part] for part in places.reshape(self.repeats, -1)], damage

    def _finish(self, clips: list[Tensor], recipes: list[Recipe]) -> Tensor | list[Tensor]:
        if self.data.transforms_on_device:
            return clips
        return augmented(self.transform, clips, recipes)


class EvalClips(Dataset):
    """The views of each video: for a key (epoch, index), uint8 (1, V, C, T, H, W) with V = num_clips * num_crops."""

    def __init__(
        self,
        manifest: Manifest,
        data: DataConfig,
        num_clips: int = 1,
        num_crops: int = 1,
        cache: FileCache | None = None,
    ) -> None:
        self.manifest, self.data, self.cache = manifest, data, cache
        self.num_clips, self.num_crops = num_clips, num_crops

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        index = key[1]
        clip = self.manifest.clips[index]
        try:
            with _naming(self.manifest, index):
                clips, damage = _read_clips(clip, self.data, self.num_clips, self.cache)
                if self.data.transforms_on_device:
                    views = [clips]
                else:
                    views = crop_views(clips, self.data, self.num_crops).unsqueeze(0)
        except DecodeError as error:
            return _nothing([error])
        damaged = {clip.path: damage} if damage else {}
        return Batch(views, _target(clip, self.manifest).unsqueeze(0), torch.tensor([index]), damaged=damaged)


def to_device(batch: Batch, data: DataConfig, device: torch.device, num_crops: int | None = None) -> Tensor:
    """Moves the batch's clips to the device, and transforms them there if `data.transforms_on_device` asks for it.

    Args:
        num_crops: crops of each clip in evaluation; None in training.
    """
    if isinstance(batch.video, Tensor):
        return batch.video.to(device, non_blocking=True)
    clips = [video.to(device, non_blocking=True) for video in batch.video]
    if num_crops is None:
        return augmented(TrainTransform(data), clips, batch.recipes)
    return torch.stack([crop_views(video, data, num_crops) for video in clips])


def augmented(transform: TrainTransform, clips: list[Tensor], recipes: list[Recipe]) -> Tensor:
    """Transforms decoded clips, (T, C, H, W) each, to (N, C, T, crop, crop); all uint8."""
    pairs = zip(clips, recipes, strict=True)
    return torch.stack([transform(clip, recipe).transpose(0, 1) for clip, recipe in pairs])


def crop_views(clips: Tensor, data: DataConfig, num_crops: int) -> Tensor:
    """Returns each clip's crops, one clip after another: uint8 (K, T, C, H, W) -> (V, C, T, size, size)."""
    crops = EvalTransform(data.short_side, data.tested_crop, num_crops)(clips)
    return torch.stack(crops, 1).flatten(0, 1).transpose(1, 2)


def num_views(data: DataConfig, num_clips: int, num_crops: int) -> int:
    """Returns the number of views of a video."""
    return num_crops * (1 if data.sampling == "uniform" else num_clips)


def timeline_of(clip: Clip, video: Video, data: DataConfig) -> tuple[int, FrameTimes]:
    """Returns the first frame and the timeline of the clip's part of the video.

    Raises:
        DecodeError: if the video has no such part.
    """
    first, end = video.part(clip.start, clip.end)
    return first, FrameTimes(video.times[first:end], video.fps, data.sample_by == "time")


def clips_of(clip: Clip, video: Video, data: DataConfig, num_clips: int) -> tuple[Tensor, FrameTimes]:
    """Returns the clips of evaluation, uint8 (K, T, C, H, W), and the timeline that they are sampled from.

    Each frame is decoded once.

    Raises:
        DecodeError: if the video has no such part, or it cannot be decoded.
    """
    first, timeline = timeline_of(clip, video, data)
    indices = first + np.stack(view_indices(timeline, data, num_clips))
    needed, places = np.unique(indices, return_inverse=True)
    return video.frames(needed)[places.reshape(indices.shape)], timeline


def _read_clips(clip: Clip, data: DataConfig, num_clips: int, cache: FileCache | None = None) -> tuple[Tensor, str]:
    """Returns the clips, uint8 (K, T, C, H, W), and what is missing of the video."""
    with _opened(clip, data, data.short_side, cache) as video:
        return clips_of(clip, video, data, num_clips)[0], str(video.damage or "")


def _opened(clip: Clip, data: DataConfig, short_side: int, cache: FileCache | None) -> Video:
    path = cache.path(clip.path) if cache else clip.path
    return open_as(data, path, short_side)


@contextmanager
def _naming(manifest: Manifest, index: int) -> Iterator[None]:
    """Makes errors name the clip: its own file instead of a cached copy, its number in the manifest, and the line of
    the list if that gives it times."""
    clip = manifest.clips[index]
    try:
        yield
    except DecodeError as error:
        where = f" ({manifest.where(index)})" if clip.line and (clip.start, clip.end) != (None, None) else ""
        raise DecodeError(clip.path, f"{error.reason}{where}", index) from error
    except Exception as error:
        raise RuntimeError(f"{clip.path} (clip {index}): {type(error).__name__}: {error}") from error


def _target(clip: Clip, manifest: Manifest) -> Tensor:
    """Returns the label as int64 (); where clips may have several, as float32 (classes,) with a 1 for each."""
    if not manifest.multi_label:
        return torch.tensor(clip.label)
    target = torch.zeros(len(manifest.classes))
    target[list(clip.label)] = 1
    return target


def _nothing(bad: list[DecodeError]) -> Batch:
    empty = torch.empty(0, dtype=torch.int64)
    return Batch(None, empty, empty, bad)


def collate(samples: list[Batch]) -> Batch:
    """Joins samples into one batch; unreadable ones are left out but stay reported."""
    good = [sample for sample in samples if sample.video is not None]
    bad = [error for sample in samples for error in sample.bad]
    damaged = {path: what for sample in samples for path, what in sample.damaged.items()}
    if not good:
        return _nothing(bad)
    videos = [sample.video for sample in good]
    video = torch.cat(videos) if isinstance(videos[0], Tensor) else [one for some in videos for one in some]
    return Batch(
        video,
        torch.cat([sample.label for sample in good]),
        torch.cat([sample.index for sample in good]),
        bad,
        [recipe for sample in good for recipe in sample.recipes],
        damaged,
    )


def train_loader(manifest: Manifest, config: Config, rank: int = 0, world_size: int = 1) -> DataLoader:
    """Returns the loader of training batches of this process, which is number `rank` of `world_size`."""
    repeats = config.train.repeats
    clips = TrainClips(manifest, config.data, config.seed, repeats, make_cache(config.data))
    update_size, accumulate = config.train.update(world_size)
    multigrid = Multigrid.of(config.train.multigrid)
    batches = TrainBatches(len(manifest), update_size // repeats, config.seed, rank, world_size, accumulate, multigrid)
    return _loader(clips, batches, config.data)


def eval_loader(
    manifest: Manifest,
    config: Config,
    num_clips: int = 1,
    num_crops: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """Returns the loader of evaluation batches of this process, which is number `rank` of `world_size`."""
    clips = EvalClips(manifest, config.data, num_clips, num_crops, make_cache(config.data))
    # as many videos as have about test.batch_size views, which the network sees at a time: more only fill the memory
    videos = max(config.test.batch_size // num_views(config.data, num_clips, num_crops), 1)
    batches = EvalBatches(len(manifest), videos, rank, world_size)
    return _loader(clips, batches, config.data)


def _loader(clips: Dataset, batches: Sampler, data: DataConfig) -> DataLoader:
    workers = data.num_workers
    return Loader(
        clips,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        prefetch_factor=data.prefetch if workers else None,
        worker_init_fn=start_worker if workers else None,
        generator=torch.Generator(),  # so that starting workers draws nothing from the state that dropout uses
    )


def start_worker(_: int) -> None:
    """Prepares a process that decodes: it leaves signals to its parent, and computes in one thread."""
    leave_to_parent()
    torch.set_num_threads(1)  # one core a worker: resizing must not fight the network for the others
    sys.excepthook = _excepthook


def _excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Says nothing where a parent that ends breaks off what multiprocessing's thread tells it about a tensor."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, traceback)


class Loader(DataLoader):
    """torch's DataLoader, whose workers end with the process.

    If an error keeps a loader alive to the end of the process, multiprocessing sends its workers SIGTERM, which they
    ignore, and would wait for them for ever.
    """

    _workers: ClassVar[WeakSet] = WeakSet()

    def __iter__(self):
        if not self.num_workers:
            return super().__iter__()
        atexit.unregister(_end_workers)
        atexit.register(_end_workers, os.getpid())
        others = set(multiprocessing.active_children())
        batches = super().__iter__()
        Loader._workers.update(set(multiprocessing.active_children()) - others)
        return batches


def worker_died(error: RuntimeError) -> bool:
    """Whether this is the error that torch raises when a loader's worker crashed or was killed."""
    return "DataLoader worker (pid" in str(error)


def _end_workers(owner: int) -> None:
    """Kills the loaders' workers that are left, and no other child of this process."""
    if os.getpid() != owner:  # a forked copy of the process that has the workers
        return
    left = [worker for worker in Loader._workers if worker.is_alive()]
    if left and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would take their end for a failure
    for worker in left:
        worker.kill()
