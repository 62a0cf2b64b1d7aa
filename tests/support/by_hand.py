"""Trainings of a network so small that each of their updates can be computed again beside them, with torch's gradients
and formulas written out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from scores import write_data_set
from torch import Tensor, nn

from softpool3d.config import Config
from softpool3d.config_file import override_config
from softpool3d.datasets import read_manifests
from softpool3d.datasets.loader import train_loader
from softpool3d.runs.checkpoint import load_weights

# nothing that changes an update beside the gradient itself: each test adds what it is about
PLAIN = [
    *("data.dataset=folder", "data.num_frames=2", "data.sampling_rate=1", "data.num_workers=0", "device=cpu"),
    *("data.crop_size=32", "data.short_side=32", "data.train_short_side=[32,32]", "data.flip=false"),
    *("optim.lr=0.5", "optim.momentum=0", "optim.nesterov=false", "optim.weight_decay=0", "optim.schedule=constant"),
    *("train.epochs=1", "train.batch_size=4", "test.num_clips=1", "test.batch_size=4"),
]


class Network(nn.Module):
    """Two linear layers on four pixels; keeps the clips that it is given."""

    def __init__(self, num_classes: int, norm: bool = False) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool3d((1, 2, 2))
        self.norm = nn.BatchNorm3d(3) if norm else nn.Identity()
        self.hidden, self.fc = nn.Linear(12, 5), nn.Linear(5, num_classes)
        self.trained: list[Tensor] = []
        self.tested: list[Tensor] = []
        self.compiled = False

    def stages(self) -> dict[str, list[nn.Module]]:
        return {"stem": [self.hidden]}

    def compile(self, **settings: object) -> None:
        self.compiled = True
        super().compile(backend="eager", **settings)

    def forward(self, clips: Tensor) -> Tensor:
        (self.trained if self.training else self.tested).append(clips.detach().clone())
        return self.fc(torch.tanh(self.hidden(self.norm(self.pool(clips)).flatten(1))))


@dataclass
class Training:
    """A run that is over: its summary, the network, and the parameters that it began with."""

    config: Config
    summary: dict
    network: Network
    begin: dict[str, Tensor]
    labels: list[Tensor] = field(default_factory=list)

    def weights(self, name: str = "last") -> dict[str, Tensor]:
        return load_weights(Path(self.summary["folder"]) / f"{name}.safetensors").state

    def updates(self, loss: Callable = F.cross_entropy, share: int = 1) -> Iterator[tuple[dict, dict]]:
        """Before each update: the parameters, to be changed in place, and their gradients.

        Args:
            share: batches of an update, of equal sizes.
        """
        parameters = {name: value.clone().requires_grad_() for name, value in self.begin.items()}
        batches = list(zip(self.network.trained, self.labels, strict=True))
        for at in range(0, len(batches), share):
            some = batches[at : at + share]
            clips, labels = (torch.cat([batch[n] for batch in some]) for n in (0, 1))
            value = loss(logits(parameters, clips), labels)
            yield parameters, dict(zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True))

    def close(self, expected: dict[str, Tensor], name: str = "last") -> bool:
        found = self.weights(name)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value.detach(), rtol=1e-5, atol=1e-6, msg=f"{name}: {key}")
            assert not torch.equal(value, self.begin[key]), f"{key} was never changed: the comparison says nothing"
        return True


def logits(parameters: dict[str, Tensor], clips: Tensor) -> Tensor:
    x = F.adaptive_avg_pool3d(clips, (1, 2, 2)).flatten(1)
    x = torch.tanh(F.linear(x, parameters["hidden.weight"], parameters["hidden.bias"]))
    return F.linear(x, parameters["fc.weight"], parameters["fc.bias"])


def descend(parameters: dict[str, Tensor], gradients: dict[str, Tensor], rate: float) -> None:
    with torch.no_grad():
        for name, value in parameters.items():
            value -= rate * gradients[name]


def training(folder: Path, monkeypatch, *overrides: str, norm: bool = False, train: int = 8) -> Training:
    """Trains on eight short videos of three classes; three are for validation and five for testing."""
    from softpool3d.training import setup, trainer

    made: list[Network] = []

    def build(config, num_classes):
        made.append(Network(num_classes, norm))
        return made[-1]

    root = folder / f"data{train}"
    if not root.exists():
        write_data_set(root, train=train, val=3, test=5)
    config = override_config(Config(), [*PLAIN, f"data.root={root}", f"output={folder / 'runs'}", *overrides])
    with monkeypatch.context() as patch:
        patch.setattr(setup, "build_model", build)
        summary = trainer.train(config)
    torch.manual_seed(config.seed)
    begin = {name: value.clone() for name, value in Network(3, norm).named_parameters()}
    loader, labels = train_loader(read_manifests(config.data)["train"], config), []
    for epoch in range(config.train.epochs):
        loader.batch_sampler.set_position(epoch)
        labels += [batch.label for batch in loader]
    return Training(config, summary, made[0], begin, labels)
