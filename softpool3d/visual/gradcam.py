"""Grad-CAM (Selvaraju et al., ICCV 2017, arXiv 1610.02391) in three dimensions: where and when a class is seen.

A picture is a clip of one frame.
"""

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
from softpool3d.visual.sheet import Panel, Sheet, original_panel
from softpool3d.visual.source import Source

STAGES = ("stage1", "stage2", "stage3", "stage4")


@dataclass(frozen=True)
class Heat:
    """Where and when a network sees a class.

    probability: that of the class, as `classify` computes it, for the views that were looked at.
    heat: float32 (T, H, W) in [0, 1], for the source's frames; 0 outside of what the network saw.
    """

    label: str
    probability: float
    heat: Tensor

    @property
    def title(self) -> str:
        return f"{self.label}  {self.probability:.1%}"


def grad_cam(network: Staged, clip: Tensor, target: int, stage: str = "stage4") -> Tensor:
    """Returns the Grad-CAM of a class (equations 1 and 2): the ReLU of a sum over channels.

    Each channel's activation is weighted by its gradient's mean over T, H and W. The activations are the output of the
    last block of `stage` that the class depends on. After a transformer's last block, a class depends on the class
    token alone. The maps of several pathways are interpolated to the clip's size and added.

    Args:
        clip: float (1, C, T, H, W), normalised.
        target: number of the class.

    Returns:
        float (T, H, W), of the clip's size, interpolated trilinearly.
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
        pairs = zip(_maps(network, output), _maps(network, _like(output, slopes)), strict=True)
        maps = [(x * g.mean((2, 3, 4), keepdim=True)).sum(1, keepdim=True).detach() for x, g in pairs]
        heat = sum(F.interpolate(m, size=clip.shape[2:], mode="trilinear", align_corners=False)[0, 0] for m in maps)
        if heat.any():
            break
    return heat.relu()


def _tensors(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [x for x in output if isinstance(x, Tensor)]


def _like(output: Any, tensors: list[Tensor]) -> Any:
    """Returns a block's output with other tensors in it: a tensor, one for each pathway, or tokens with their sizes."""
    if isinstance(output, Tensor):
        return tensors[0]
    rest = iter(tensors)
    return type(output)(next(rest) if isinstance(x, Tensor) else x for x in output)


def _maps(network: Staged, output: Any) -> list[Tensor]:
    """Returns the feature maps of a block's output, (N, C, T, H, W) for each pathway; those of a picture have T = 1."""
    features = network.leave(output)
    parts = [features] if isinstance(features, Tensor) else features
    return [part.unsqueeze(2) if part.ndim == 4 else part for part in parts]


def explain(classifier: Classifier, source: Source, target: str | None = None, stage: str = "stage4") -> Heat:
    """Returns the Grad-CAM of a video, from views that cover all of it, interpolated to its frames.

    Args:
        source: the frames to explain, from the beginning of the file.
        target: name of a class; None for the likeliest one.

    Raises:
        UsageError: for a class that the weights do not know.
        WorkError: if nothing that the network sees speaks for the class.
    """
    config, classes = classifier.config, classifier.classes
    if target is not None and target not in classes:
        raise UsageError(f"--class {target}: the weights know no such class (they know {_few(classes)})")
    data, total = config.data, len(source.frames)
    with open_as(data, source.path) as video:
        timeline = FrameTimes(video.times[:total], video.fps, data.sample_by == "time")
        (single,) = view_indices(timeline, data, 1)
        indices = np.stack(view_indices(timeline, data, math.ceil(total / (np.ptp(single) + 1)), "ends"))
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
    """Averages maps (N, h, w) of the same frame, and interpolates linearly between frames; returns (total, h, w)."""
    known, place = np.unique(frames, return_inverse=True)
    place = torch.from_numpy(place)
    means = torch.zeros(len(known), *maps.shape[1:]).index_add_(0, place, maps)
    means /= torch.bincount(place).view(-1, 1, 1)
    at = np.interp(np.arange(total), known, np.arange(len(known)))
    low = torch.from_numpy(np.floor(at).astype(np.int64))
    share = torch.from_numpy(at).float().sub(low).view(-1, 1, 1)
    return means[low] * (1 - share) + means[(low + 1).clamp_max(len(known) - 1)] * share


def _into_frame(seen: Tensor, source: Source, decoded: tuple[int, int]) -> Tensor:
    """Returns the maps of the network's central crop, placed where the crop lies in the frames that are shown."""
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
    """Returns the frames, uint8 (T, 3, H, W), with `heat` laid over them in the colours of a thermal camera."""
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


def heat_sheet(
    classifier: Classifier, source: Source, found: Heat, stage: str = "stage4", beside: bool = True
) -> Sheet:
    """Returns a clip's Grad-CAM, to be written: beside the clip itself, or alone."""
    heat = Panel(found.title, f"Grad-CAM, {stage}", overlay(source.frames, found.heat))
    network = classifier.config.model.name
    caption = f"{source.path.name}, {network}: red speaks for the class; outside of the crop the network sees nothing"
    return Sheet([[original_panel(source), heat] if beside else [heat]], source, caption)


def _few(classes: tuple[str, ...], most: int = 10) -> str:
    return ", ".join(classes[:most]) + (", ..." if len(classes) > most else "")
