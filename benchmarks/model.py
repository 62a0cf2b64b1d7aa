"""Compares networks with their own pooling, with another pooling at each place, and as their library builds them.

python benchmarks/model.py r3d_50 slow_r50
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
import torchvision
import typer
from rich.progress import Progress
from shared import Device, begin, console, run
from torch import Tensor, nn

from softpool3d.analysis.measuring import DOCUMENT, Timing, interleaved, markdown_table, peak_bytes, save_section
from softpool3d.config import PoolConfig
from softpool3d.config_file import pool_config
from softpool3d.errors import UsageError
from softpool3d.models import create
from softpool3d.models.mvit import mvit_blocks
from softpool3d.models.network import Staged
from softpool3d.models.pooling import places
from softpool3d.models.registry import SPECS, spec

HEADER = ["network", "clips", "pooling", "forward", "training step", "memory of a step"]
LEGEND = (
    "Each network's first line is its own pooling: milliseconds with half the distance between the quartiles, and the "
    "peak of what a training step allocates beyond weights and optimiser. The other lines are ratios to it (above 1x: "
    "more), of medians of rounds that take turns; weights are equal in all. library: torchvision's or pytorchvideo's "
    "own network, its head's window fitted to the clip. A training step is forward in training mode, cross entropy, "
    "backward, SGD with momentum. Networks run in channels_last_3d, as training does."
)


@dataclass(frozen=True)
class Result:
    """The times of one contender, and the peak memory of a training step, in bytes."""

    forward: Timing
    step: Timing
    memory: int


def measure_network(
    name: str, kind: str, batch: int, frames: int, crop: int, device: torch.device, seconds: float
) -> list[list[str]]:
    """Returns the rows of one network: with its own pooling, as its library has it, and with `kind` at each place."""
    entry = spec(name)
    size = (None, crop) if entry.is_image else (_frames(name, frames), max(crop, entry.least[1]))
    clip = torch.randn(entry.clip_shape(*size)).repeat(batch, *[1] * (len(entry.clip_shape(*size)) - 1))
    networks = _contenders(name, kind, size)
    layout = torch.channels_last if clip.dim() == 4 else torch.channels_last_3d
    clip = clip.contiguous(memory_format=layout).to(device)
    for label, network in networks.items():
        networks[label] = network.to(device, memory_format=layout)
    inputs = {label: _input(name, label, clip) for label in networks}

    forwards = {label: _forward(network, inputs[label]) for label, network in networks.items()}
    forward_times = interleaved(forwards, device, seconds)
    steps = {label: _step(network, inputs[label]) for label, network in networks.items()}
    step_times = interleaved(steps, device, seconds * 2)
    results = {
        label: Result(forward_times[label], step_times[label], peak_bytes(steps[label], device)) for label in networks
    }
    own = results.pop("own")
    shape = "x".join(map(str, clip.shape))
    rows = [[name, shape, "own", _ms(own.forward), _ms(own.step), f"{own.memory / 2**20:.0f} MiB"]]
    for label, result in results.items():
        forward = result.forward.median / own.forward.median
        step = result.step.median / own.step.median
        memory = result.memory / max(own.memory, 1)
        rows.append([name, shape, label, f"{forward:.3f}x", f"{step:.3f}x", f"{memory:.3f}x"])
    return rows


def _frames(name: str, frames: int) -> int:
    entry = spec(name)
    frames = max(frames, entry.least[0])
    return -(-frames // entry.frames_step) * entry.frames_step


def _ms(timing: Timing) -> str:
    return f"{timing.median * 1e3:.1f} ms ±{timing.spread:.1%}"


def _contenders(name: str, kind: str, size: tuple[int | None, int]) -> dict[str, nn.Module]:
    """Returns the networks to compare, with equal weights, by the label of their line."""
    settings = {"num_frames": size[0], "crop_size": size[1]}
    own = create(name, **settings)
    networks: dict[str, nn.Module] = {"own": own}
    theirs = library_network(name, size)
    if theirs is not None:
        theirs.load_state_dict(own.state_dict())
        networks["library"] = theirs
    for place in [place for place in places(own) if place != "stem"]:  # which is a part of existing
        temporal = ["stage2"] if place == "temporal" else []
        pool = PoolConfig(kind=kind, where=[place], temporal=temporal)
        try:
            pooled = create(name, pool=pool, **settings)
        except UsageError:  # too few frames to halve
            continue
        pooled.load_state_dict(own.state_dict(), strict=False)
        networks[f"{kind}, {place}" + (" (stage2)" if temporal else "")] = pooled
    return networks


def library_network(name: str, size: tuple[int | None, int]) -> nn.Module | None:
    """Returns the network as torchvision or pytorchvideo builds it; None if neither has it."""
    frames, crop = size
    if name == "mvit_v2_s":
        build = torchvision.models.video.mvit.MViT
        return build(
            (crop, crop),
            frames,
            mvit_blocks(96),
            True,
            False,
            True,
            True,
            0.0,
            stochastic_depth_prob=0.2,
            num_classes=400,
        )
    if hasattr(torchvision.models.video, name):
        network = getattr(torchvision.models.video, name)()
    elif hasattr(torchvision.models, name):
        network = getattr(torchvision.models, name)(num_classes=400)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pytorchvideo.models.hub as hub
        if not hasattr(hub, name):
            return None
        network = getattr(hub, name)()
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.AvgPool3d):  # the head's window fits the published clip only
            network.set_submodule(path, nn.AdaptiveAvgPool3d(1))
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.Softmax):  # our networks return logits
            network.set_submodule(path, nn.Identity())
    return network


def _input(name: str, label: str, clip: Tensor) -> Tensor | list[Tensor]:
    if name == "slowfast_r50" and label == "library":
        index = torch.linspace(0, clip.shape[2] - 1, clip.shape[2] // 4, device=clip.device).long()
        return [clip.index_select(2, index), clip]
    return clip


def _run(network: nn.Module, clip: Tensor | list[Tensor]) -> Tensor:
    return network(list(clip) if isinstance(clip, list) else clip)  # pytorchvideo writes into the list


def _forward(network: nn.Module, clip: Tensor | list[Tensor]) -> Callable[[], object]:
    def forward() -> object:
        network.eval()
        with torch.inference_mode():
            return _run(network, clip)

    return forward


def _step(network: nn.Module | Staged, clip: Tensor | list[Tensor]) -> Callable[[], object]:
    optimizer = torch.optim.SGD(network.parameters(), 1e-6, momentum=0.9)
    whole = clip[1] if isinstance(clip, list) else clip
    label = torch.zeros(len(whole), dtype=torch.long, device=whole.device)

    def step() -> object:
        network.train()
        loss = F.cross_entropy(_run(network, clip), label)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    step()  # the optimiser allocates its state
    return step


def measure(
    names: Annotated[list[str] | None, typer.Argument(help="Networks; all video networks if none is named.")] = None,
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.cpu,
    kind: Annotated[str, typer.Option(help="The kind of pooling that goes to each place.")] = "soft",
    batch: Annotated[int, typer.Option(min=1, help="Clips in a batch.")] = 2,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a clip, or the least that the network takes.")] = 8,
    crop: Annotated[int, typer.Option(min=1, help="Pixels of a clip, or the least.")] = 64,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for the forwards; steps get twice that.")] = 10.0,
    save: Annotated[bool, typer.Option("--save", help="Write the table to docs/benchmarks-models.md.")] = False,
) -> None:
    """Compare networks with their own pooling, as their library has them, and with a kind of pooling at each place."""

    pool_config(kind=kind)
    names = names or [name for name, entry in SPECS.items() if not entry.is_image]
    for name in names:
        spec(name)
    place = device.there()
    about, say = begin(place)
    rows = []
    with Progress(console=console(), transient=True) as progress:
        task = progress.add_task("measuring", total=len(names))
        for name in names:
            progress.update(task, description=name)
            found = measure_network(name, kind, batch, frames, crop, place, seconds)
            for row in found:
                progress.console.print("  ".join(f"{cell:24}" for cell in row).rstrip(), markup=False, highlight=False)
            rows += found
            progress.advance(task)
    say(LEGEND)
    if save:
        table = markdown_table(HEADER, rows)
        document = DOCUMENT.with_name("benchmarks-models.md")
        body = "\n".join([about, "", LEGEND, "", table])
        saved = save_section(f"Networks on {device.value}: {', '.join(names)}", body, document)
        say(f"Written to {saved}")


if __name__ == "__main__":
    run(measure)
