"""Grad-CAM (Selvaraju et al., ICCV 2017, arXiv 1610.02391) in three dimensions: where and when a class is seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from softpool3d.datasets.loader import crop_views
from softpool3d.datasets.sampling import FrameTimes, view_indices
from softpool3d.datasets.transforms import crop_boxes, normalize
from softpool3d.datasets.video.decoder import open_as
from softpool3d.errors import UsageError, WorkError
from softpool3d.inference.classifier import Classifier
from softpool3d.models.network import Staged
from softpool3d.visual.source import Source

STAGES = ("stage1", "stage2", "stage3", "stage4")


@dataclass(frozen=True)
class Heat:
    """What speaks for a class.

    probability: what `classify` gives for these views.
    heat: float32 (T, H, W) in [0, 1], of the source's frames; 0 where nothing was seen.
    """

    label: str
    probability: float
    heat: Tensor


def grad_cam(network: Staged, clip: Tensor, target: int, stage: str = "stage4") -> Tensor:
    """ReLU of the sum over channels of activation times mean gradient (equations 1 and 2), over T, H and W.

    It is taken where the last block of `stage` ends whose activations the class depends on: behind a transformer's last
    block it is the class token alone. Pathways are brought to the clip's size and added up.

    Args:
        clip: float (1, C, T, H, W), normalised.

    Returns:
        float (T, H, W), interpolated trilinearly.
    """
    outputs: list[Any] = []
    hooks = [
        block.register_forward_hook(lambda _, inputs, output: outputs.append(output))
        for block in network.stages()[stage]
    ]
    try:
        with torch.enable_grad():
            score = network(clip.detach().requires_grad_())[0, target]
    finally:
        for hook in hooks:
            hook.remove()
    heat = torch.zeros(clip.shape[2:], device=clip.device)
    for output in reversed(outputs):
        gradients = torch.autograd.grad(score, _tensors(output), retain_graph=True, allow_unused=True)
        slopes = [torch.zeros_like(x) if g is None else g for x, g in zip(_tensors(output), gradients, strict=True)]
        pairs = zip(_parts(network.leave(output)), _parts(network.leave(_like(output, slopes))), strict=True)
        maps = [(x * g.mean((2, 3, 4), keepdim=True)).sum(1, keepdim=True).detach() for x, g in pairs]
        heat = sum(F.interpolate(m, size=clip.shape[2:], mode="trilinear", align_corners=False)[0, 0] for m in maps)
        if heat.any():
            break
    return heat.relu()


def _tensors(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [x for x in output if isinstance(x, Tensor)]


def _like(output: Any, tensors: list[Tensor]) -> Any:
    """A block's output with other tensors: one, one for each pathway, or tokens with their sizes."""
    if isinstance(output, Tensor):
        return tensors[0]
    rest = iter(tensors)
    return type(output)(next(rest) if isinstance(x, Tensor) else x for x in output)


def _parts(features: Tensor | list[Tensor]) -> list[Tensor]:
    return [features] if isinstance(features, Tensor) else list(features)


def explain(classifier: Classifier, source: Source, target: str | None = None, stage: str = "stage4") -> Heat:
    """Grad-CAM of views that cover all of a video, interpolated to its frames.

    Args:
        source: the frames to explain, from the beginning of the file.
        target: a class; the likeliest one if None.

    Raises:
        UsageError: for a class that the weights do not know.
        WorkError: if nothing that the network sees speaks for it.
    """
    config, classes = classifier.config, classifier.classes
    if target is not None and target not in classes:
        raise UsageError(f"--class {target}: the weights know no such class (they know {_few(classes)})")
    data, total = config.data, len(source.frames)
    with open_as(data, source.path) as video:
        timeline = FrameTimes(video.times[:total], video.fps, data.sample_by == "time")
        (single,) = view_indices(timeline, data, 1)
        indices = np.stack(view_indices(timeline, data, math.ceil(total / (np.ptp(single) + 1))))
        needed, places = np.unique(indices, return_inverse=True)
        frames = video.frames(needed)
    clips = crop_views(frames[places.reshape(indices.shape)], data, 1)
    views = [normalize(clip[None].to(classifier.device), data.mean, data.std) for clip in clips]
    with torch.no_grad():
        probabilities = classifier.average(torch.cat([classifier.model(view) for view in views]))
    chosen = int(probabilities.argmax()) if target is None else classes.index(target)
    maps = torch.stack([grad_cam(classifier.model, view, chosen, stage).cpu() for view in views])
    if not maps.any():
        raise WorkError(
            f"{source.path}: nothing at {stage} speaks for {classes[chosen]!r}; try another --stage or --class"
        )
    seen = _over_time(maps.flatten(0, 1), indices.ravel(), total)
    heat = _into_frame(seen / seen.max(), source, tuple(frames.shape[-2:]))
    return Heat(classes[chosen], float(probabilities[chosen]), heat)


def _over_time(maps: Tensor, frames: np.ndarray, total: int) -> Tensor:
    """(N, h, w), each of one of the frames -> (total, h, w): the mean of those of one frame, between frames linear."""
    known, place = np.unique(frames, return_inverse=True)
    place = torch.from_numpy(place)
    means = torch.zeros(len(known), *maps.shape[1:]).index_add_(0, place, maps)
    means /= torch.bincount(place).view(-1, 1, 1)
    at = np.interp(np.arange(total), known, np.arange(len(known)))
    low = torch.from_numpy(np.floor(at).astype(np.int64))
    share = torch.from_numpy(at).float().sub(low).view(-1, 1, 1)
    return means[low] * (1 - share) + means[(low + 1).clamp_max(len(known) - 1)] * share


def _into_frame(seen: Tensor, source: Source, decoded: tuple[int, int]) -> Tensor:
    """The network's central crop of the decoded frames, put where it lies in the frames shown."""
    crop = seen.shape[-1]
    ((top, left),) = crop_boxes(*decoded, crop, 1)
    height, width = source.frames.shape[-2:]
    rows = [round(y * height / decoded[0]) for y in (top, top + crop)]
    columns = [round(x * width / decoded[1]) for x in (left, left + crop)]
    heat = torch.zeros(len(seen), height, width)
    size = (rows[1] - rows[0], columns[1] - columns[0])
    heat[:, rows[0] : rows[1], columns[0] : columns[1]] = F.interpolate(
        seen[:, None], size=size, mode="bilinear", align_corners=False
    )[:, 0]
    return heat


def overlay(frames: Tensor, heat: Tensor) -> Tensor:
    """uint8 (T, 3, H, W) with `heat` laid over it in the colours of a thermal camera."""
    from matplotlib import colormaps

    colours = torch.from_numpy(colormaps["turbo"](np.arange(256))[:, :3]).float() * 255
    result = torch.empty_like(frames)
    for t, (frame, hot) in enumerate(zip(frames, heat, strict=True)):  # one by one, because they are floats here
        opacity = 0.7 * hot
        colour = colours[(hot * 255).round().long()].permute(2, 0, 1)
        grey = frame.float().mean(0, keepdim=True)
        result[t] = (
            ((1 - opacity) * (0.5 * frame + 0.5 * grey) + opacity * colour).round().clamp(0, 255).to(torch.uint8)
        )
    return result


def _few(classes: tuple[str, ...], most: int = 10) -> str:
    return ", ".join(classes[:most]) + (", ..." if len(classes) > most else "")
