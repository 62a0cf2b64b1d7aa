"""Labels for videos, from a weights file alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from softpool3d.datasets.loader import read_views, sample_views
from softpool3d.datasets.manifest import Clip
from softpool3d.engine.checkpoint import load_into, load_weights
from softpool3d.engine.devices import MEMORY_FORMATS, autocast, pick_device
from softpool3d.engine.evaluator import view_probabilities
from softpool3d.models import build_model


@dataclass(frozen=True)
class Label:
    name: str
    probability: float


class Classifier:
    """The network of a weights file, with its classes and preprocessing.

        classifier = Classifier("runs/r3d_softpool/best.safetensors")
        for label in classifier("clip.mp4"):
            print(label.name, label.probability)

    Args:
        weights: a file written by training.
        device: auto, cpu, cuda, cuda:1.
        num_clips, num_crops: views whose probabilities are averaged; as in the run's own test if not given.

    Raises:
        UsageError: if the weights file cannot be used, or there is no such device.
    """

    def __init__(
        self,
        weights: str | Path,
        device: str = "auto",
        num_clips: int | None = None,
        num_crops: int | None = None,
    ) -> None:
        loaded = load_weights(weights)
        self.config, self.classes = loaded.config, loaded.classes
        self.num_clips = num_clips or self.config.test.num_clips
        self.num_crops = num_crops or self.config.test.num_crops
        self.device = pick_device(device)
        model = build_model(self.config, len(self.classes))
        load_into(model, loaded.state, weights)
        memory_format = MEMORY_FORMATS[self.config.train.memory_format]
        self.model = model.to(self.device, memory_format=memory_format).eval()
        self._autocast = autocast(self.device, self.config.train.precision)

    def __call__(self, video: str | Path | Tensor, top_k: int = 5) -> list[Label]:
        """The `top_k` likeliest classes of a video, likeliest first.

        Args:
            video: a file, or its frames: uint8 (T, 3, H, W), RGB.

        Raises:
            DecodeError: if the file cannot be read.
            ValueError: for a tensor of another shape or type.
        """
        data, views = self.config.data, (self.num_clips, self.num_crops)
        if isinstance(video, Tensor):
            if video.dtype != torch.uint8 or video.ndim != 4 or video.shape[1] != 3 or not len(video):
                raise ValueError(f"frames are uint8 (T, 3, H, W), not {video.dtype} {tuple(video.shape)}")
            clips = sample_views(video, data, *views)
        else:
            clips = read_views(Clip(str(video), 0), data, *views)
        clips = clips.unsqueeze(0).to(self.device)
        with self._autocast:  # as in the run's own test
            probabilities = view_probabilities(self.model, clips, self.config)[0]
        top = probabilities.topk(min(top_k, len(self.classes)))
        return [
            Label(self.classes[index], probability)
            for probability, index in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ]
