"""Scores of the clips of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from softpool3d.config import Config
from softpool3d.datasets.loader import Batch, to_device
from softpool3d.datasets.transforms import normalize
from softpool3d.datasets.video.decoder import DecodeError
from softpool3d.evaluation.losses import average_views
from softpool3d.evaluation.scores import Scores, check_finite
from softpool3d.runtime.devices import MEMORY_FORMATS


@torch.inference_mode()
def view_probabilities(model: nn.Module, video: Tensor, config: Config) -> Tensor:
    """Returns the probabilities of videos, float32 (N, classes): the mean over the V views of each.

    With `test.average: logits` the logits are averaged instead. The network sees at most `test.batch_size` clips at a
    time, whatever N and V are.

    Args:
        video: uint8 (N, V, C, T, H, W), on the model's device.
    """
    logits = []
    for part in video.flatten(0, 1).split(config.test.batch_size):
        clips = normalize(part, config.data.mean, config.data.std)
        clips = clips.contiguous(memory_format=MEMORY_FORMATS[config.train.memory_format])
        logits.append(model(clips).float())
    logits = torch.cat(logits).unflatten(0, video.shape[:2])
    return average_views(logits, config)


def scored_batches(
    model: nn.Module, loader: DataLoader, config: Config, accelerator: Accelerator
) -> Iterator[tuple[Batch, Tensor | None]]:
    """Yields each batch of this process's loader with its probabilities on the CPU, or None if no file was readable.

    The model has to be in evaluation mode.
    """
    for batch in loader:
        probabilities = None
        if batch.video is not None:
            video = to_device(batch, config.data, accelerator.device, loader.dataset.num_crops)
            with accelerator.autocast():
                probabilities = view_probabilities(model, video, config).cpu()
        yield batch, probabilities


def evaluate(
    model: nn.Module,
    loader: DataLoader,
    config: Config,
    accelerator: Accelerator,
    on_batch: Callable[[], None] = lambda: None,
    on_bad: Callable[[list[DecodeError], dict[str, str]], None] = lambda errors, damaged: None,
) -> Scores:
    """Returns the scores of every clip of the loader, each counted once under any number of processes.

    Args:
        on_batch: called after each batch; may raise to stop.
        on_bad: called with the errors of unreadable files in a batch, and path -> what is missing of damaged ones.

    Raises:
        WorkError: in all processes, if some probabilities are NaN or infinite.
    """
    # DDP's forward talks to the other processes, and these may have a batch fewer
    alone = model.module if isinstance(model, DistributedDataParallel) else model
    was_training = model.training
    model.eval()
    mine = []
    for batch, probabilities in scored_batches(alone, loader, config, accelerator):
        if batch.bad or batch.damaged:
            on_bad(batch.bad, batch.damaged)
        if probabilities is not None:
            mine.append(Scores(probabilities, batch.label, batch.index))
        on_batch()
    model.train(was_training)
    scores = gathered(mine)
    check_finite(scores, lambda place: loader.dataset.manifest.clips[int(scores.index[place])].path)
    return scores


def gathered(mine: list[Scores]) -> Scores:
    """Returns the scores of all processes, in the order of the manifest. Every process has to call it."""
    return joined(gather_object([joined(mine)] if mine else []))


def joined(parts: list[Scores]) -> Scores:
    """Returns several scores as one, in the order of the manifest."""
    if not parts:
        return Scores(torch.empty(0, 1), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    order = torch.cat([part.index for part in parts]).argsort()
    return Scores(*(torch.cat([getattr(part, name) for part in parts])[order] for name in _PARTS))


_PARTS = ("probabilities", "label", "index")
