"""List the networks, show what one looks like inside, list the kinds of pooling.

python tools/models.py
python tools/models.py slowfast_r50 --set data.num_frames=16 --set data.crop_size=112 --set model.pool.kind=lip
python tools/models.py --pools
python tools/models.py --save docs/models.md
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from softpool3d.errors import UsageError, WorkError

if TYPE_CHECKING:
    from fvcore.nn import FlopCountAnalysis

    from softpool3d.config import Config
    from softpool3d.models.network import Staged
    from softpool3d.models.registry import Spec

_POOL_COLUMNS = ["kind", "what it does", "learns", "paper"]
_COLUMNS = ["name", "input", "parameters, M", "GFLOPs", "published", "can pool at", "public weights", "paper"]


def main(
    name: str | None = typer.Argument(None, help="One network, in detail."),
    settings: list[str] | None = typer.Option(
        None, "--set", metavar="KEY=VALUE", help="A key of the configuration, as in model.pool.where=downsample."
    ),
    pools: bool = typer.Option(False, "--pools", help="List the kinds of pooling."),
    save: Path | None = typer.Option(
        None, metavar="FILE", help="Write the tables as Markdown (docs/models.md); what a file says of weights stays."
    ),
) -> None:
    """List the networks; show one of them; list the kinds of pooling."""
    if sum((name is not None, pools, save is not None)) > 1:
        raise UsageError("give a network's name, --pools or --save, one of them")
    if settings and name is None:
        raise UsageError("--set changes one network: name it, as in `softpool3d models x3d_m --set model.width=48`")
    if name is not None:
        _show(_config(name, settings or []))
    elif pools:
        _print_pools()
    elif save is not None:
        _save(save)
    else:
        _print_all()


# --- all of them -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """A network of the registry, built, with its operations counted."""

    name: str
    spec: Spec
    network: Staged
    counted: FlopCountAnalysis


def _counted() -> Iterator[_Entry]:
    """Yields the networks one after the other; counting takes a second or so for each."""
    import torch

    from softpool3d.models import create
    from softpool3d.models.flops import count_flops
    from softpool3d.models.registry import SPECS

    for name, spec in SPECS.items():
        network = create(name, 1000 if spec.is_image else 400)
        clip = torch.zeros(spec.clip_shape())
        if not spec.is_image:
            network, clip = (x.to(memory_format=torch.channels_last_3d) for x in (network, clip))
        yield _Entry(name, spec, network, count_flops(network, clip))


def _row(entry: _Entry) -> list[str]:
    from softpool3d.models.pooling import places

    spec = entry.spec
    millions = sum(p.numel() for p in entry.network.parameters()) / 1e6
    size = f"{spec.crop}x{spec.crop}" if spec.is_image else f"{spec.frames} x {spec.crop}x{spec.crop}"
    published = "-" if spec.gflops is None else f"{spec.millions:.2f} M, {spec.gflops:.2f} G"
    where, weights = ", ".join(places(entry.network)), ", ".join(spec.weights)
    gflops = entry.counted.total() / 1e9
    return [entry.name, size, f"{millions:.2f}", f"{gflops:.2f}", published, where, weights, spec.paper]


def _print_all() -> None:
    """Prints the table of networks; rows appear as they are counted."""
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    console = Console() if sys.stdout.isatty() else Console(width=200)
    table = Table(*_COLUMNS, box=None, header_style="bold", padding=(0, 1))
    with Live(table, console=console, refresh_per_second=4, vertical_overflow="visible"):
        for entry in _counted():
            table.add_row(*_row(entry))
    console.print(
        "\nParameters and GFLOPs (multiply-adds of one clip or image, norms included) are counted here; published are\n"
        "the papers' and libraries' own. One network: softpool3d models NAME [--set KEY=VALUE]. Kinds: --pools.",
        markup=False,
        highlight=False,
    )


def _pool_rows() -> list[list[str]]:
    from softpool3d.models.pools import KINDS

    return [[name, kind.line, kind.learns or "-", kind.paper] for name, kind in KINDS.items()]


def _print_pools() -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*_POOL_COLUMNS, box=None, header_style="bold", padding=(0, 1))
    for row in _pool_rows():
        table.add_row(*row)
    (Console() if sys.stdout.isatty() else Console(width=200)).print(table)


# --- one of them -----------------------------------------------------------------------------------------------------


def _config(name: str, settings: list[str]) -> Config:
    """Returns the configuration of a network with its published clip size and own pooling, changed by `settings`."""
    from softpool3d.config import Config
    from softpool3d.config_file import override_config
    from softpool3d.models.registry import spec

    try:
        entry = spec(name)
    except UsageError as error:
        raise UsageError(str(error).removeprefix("name: ")) from None
    keys = [setting.partition("=")[0] for setting in settings]
    crop = next((s.partition("=")[2] for s in settings if s.startswith("data.crop_size=")), str(entry.crop))
    base = [f"model.name={name}", f"data.num_frames={entry.frames or 8}"]
    if not any(key.startswith("data.short") or key == "data.train_short_side" for key in keys):
        base += [f"data.short_side={crop}", f"data.train_short_side=[{crop},{crop}]"]
    if not any(key.startswith("model.pool") for key in keys):
        base.append("model.pool.where=[]")
    if foreign := [key for key in keys if not key.startswith(("model.", "data.", "device", "train.memory_format"))]:
        raise UsageError(
            f"--set {foreign[0]}: what is shown depends on model, data, device and train.memory_format only"
        )
    return override_config(Config(), [*base, f"data.crop_size={crop}", *settings])


def _build(config: Config) -> tuple[Staged, tuple[int, ...]]:
    """Returns the network of a configuration (image networks too), and the shape of one clip."""
    from softpool3d.models import build_model, create
    from softpool3d.models.registry import spec

    model, data = config.model, config.data
    entry = spec(model.name)
    if entry.is_image and not model.inflate:
        network = create(model.name, 1000, pool=model.pool, crop_size=data.crop_size, width=model.width)
        return network, entry.clip_shape(None, data.crop_size)
    return build_model(config, 400), entry.clip_shape(data.num_frames, data.crop_size)


def _show(config: Config) -> None:
    # keeps the profiler, which measures memory, from warning of missing GPUs; torch reads this when it is loaded
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    import torch
    from rich.console import Console
    from rich.table import Table

    from softpool3d.analysis.measuring import interleaved, machine, peak_bytes
    from softpool3d.models import load_pretrained
    from softpool3d.models.flops import count_flops
    from softpool3d.models.pooling import places
    from softpool3d.models.registry import spec
    from softpool3d.models.sites import find_sites
    from softpool3d.runtime.devices import MEMORY_FORMATS, pick_device

    network, shape = _build(config)
    loaded = load_pretrained(network, config) if config.model.weights else None
    entry, device = spec(config.model.name), pick_device(config.device)
    clip = torch.randn(shape)
    counted = count_flops(network, clip)
    by_module = counted.by_module()
    stages = _stage_shapes(network, clip)
    if len(shape) == 5:
        network, clip = (x.to(memory_format=MEMORY_FORMATS[config.train.memory_format]) for x in (network, clip))
    network, clip = network.to(device).eval(), clip.to(device)
    with torch.inference_mode():
        timing = interleaved({"forward": lambda: network(clip)}, device, seconds=2.0)["forward"]
        memory = peak_bytes(lambda: network(clip), device)

    console = Console() if sys.stdout.isatty() else Console(width=160)

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    millions = sum(p.numel() for p in network.parameters()) / 1e6
    line(f"{config.model.name} ({entry.paper}), input {tuple(shape)}")
    line(f"{millions:.2f} M parameters, {counted.total() / 1e9:.2f} GFLOPs a clip (multiply-adds)")
    line(f"{timing.median * 1e3:.1f} ms ±{timing.spread:.0%} forward, {memory / 2**20:.0f} MiB beyond the weights")
    line(f"on {machine(device)}")
    paths = {id(module): name for name, module in network.named_modules()}
    table = Table("stage", "output", "parameters, M", "GFLOPs", box=None, header_style="bold", padding=(0, 1))
    inside = [0.0, 0.0]
    for stage, blocks in network.stages().items():
        names = [paths[id(block)] for block in blocks]
        parameters = sum(p.numel() for block in blocks for p in block.parameters()) / 1e6
        flops = sum(by_module[name] for name in names) / 1e9
        inside = [inside[0] + parameters, inside[1] + flops]
        table.add_row(stage, stages[stage], f"{parameters:.3f}", f"{flops:.3f}")
    table.add_row("rest", "logits", f"{millions - inside[0]:.3f}", f"{counted.total() / 1e9 - inside[1]:.3f}")
    console.print(table)

    changed = {change.name: change for change in getattr(network, "pooling", ())}
    sites = {site.name: (site.place, type(site.layer).__name__, str(site.geometry)) for site in find_sites(network)[0]}
    can = [*dict.fromkeys([*places(network), *(change.place for change in changed.values())])]
    line(f"it can pool at: {', '.join(can)}" + ("" if not changed else "; changed places are marked *"))
    table = Table("", "place", "layer", "what stands there", box=None, header_style="bold", padding=(0, 1))
    for path in dict.fromkeys([*paths.values(), *changed]):
        if path in changed:
            change = changed[path]
            table.add_row("*", change.place, path, f"{change.before} -> {change.after}")
        elif path in sites and not path.startswith("temporal."):
            place, kind, geometry = sites[path]
            window = f"stride of {geometry.split(' / ')[0]}" if place == "downsample" else geometry
            table.add_row("", place, path, f"{kind} {window}")
    console.print(table)
    if loaded:
        line(f"weights: {loaded}")
    elif entry.weights:
        line(f"public weights: {', '.join(entry.weights)}")


def _stage_shapes(network: Staged, clip) -> dict[str, str]:
    import torch

    from softpool3d.models.network import evaluating

    network.features_only = True
    with evaluating(network), torch.no_grad():
        features = network(clip)
    network.features_only = False
    shapes = {}
    for stage, feature in zip(network.stages(), features, strict=True):
        parts = feature if isinstance(feature, list) else [feature]
        shapes[stage] = " and ".join("x".join(map(str, part.shape[1:])) for part in parts)
    return shapes


# --- the page --------------------------------------------------------------------------------------------------------

_PAGE = """# Networks and pooling

`softpool3d models --save docs/models.md` writes this page up to "Public weights"; the rest is written by hand.
`softpool3d models x3d_m` shows one network in detail.

## Networks

Parameters and GFLOPs are counted here, on the network as this package builds it with its own pooling, for 400 classes
(image networks 1000) and one clip of the input's size. GFLOPs are multiply-adds, by fvcore's `FlopCountAnalysis`. The
column "published" has the figures of the original library or paper.

{networks}

**Where the two differ.** Papers and libraries count convolutions and matrix products; fvcore counts norms too, with two
operations for each element. Without norms the count equals the published figure to a hundredth, except for four
networks of PyTorchVideo's zoo: `c2d_r50`, `i3d_r50`, `csn_r101` and `r2plus1d_r50`. Their figures were counted in
training mode, where fvcore counts five operations for each element of a norm. The last column is that count. Soft
pooling counts two for each element of a window.

{differences}

## Places: `model.pool.where`

- `existing`: each pooling layer that the network has, its head's included, is swapped; kernel, stride, padding and
  ceil_mode stay. `model.pool.paper_stem=true` makes the stem's 3x3 window 2x2, as in SoftPool's ImageNet networks.
- `downsample`: each strided convolution gets stride 1, and a pooling takes over the stride. It goes after the
  convolution in the main path, and before the 1x1 convolution of a shortcut:

      main path   conv, stride 2       ->   conv, stride 1 - pool, stride 2
      shortcut    conv 1x1, stride 2   ->   pool, stride 2 - conv 1x1, stride 1

- `temporal`: time is halved before the stages that `model.pool.temporal` names (`stage1` to `stage4`).
- `head`: the global pooling before the classifier is swapped.
- `attention`, of MViT: the pooling replaces the depthwise convolutions that pool queries, keys and values.

Names and shapes of parameters do not change, so public weights load; only `attention` takes weights away.
`softpool3d.replace_pooling` does `existing`, `downsample` and `head` to any `nn.Module`.

## Kinds: `model.pool.kind`

{kinds}

`blur` and `conv` slide over windows and have no global form, so with `existing` they leave the head as it is. `conv`
also leaves strided convolutions as they are.
"""
_BY_HAND = "## Public weights"  # from here on the page is kept


def _save(path: Path) -> None:
    from rich.progress import track

    from softpool3d.analysis.measuring import markdown_table
    from softpool3d.files import write_atomically
    from softpool3d.models.registry import SPECS

    if path.is_dir():
        raise WorkError(f"--save {path} is a folder; name a file")
    rows, differences = [], []
    for entry in track(_counted(), "counting", total=len(SPECS), transient=True):
        rows.append(_row(entry))
        if entry.spec.gflops is not None:
            differences.append(_difference(entry))
    text = _PAGE.format(
        networks=markdown_table(_COLUMNS, rows),
        differences=markdown_table(_DIFFERENCES, differences),
        kinds=markdown_table(_POOL_COLUMNS, [[cell.replace("|", "\\|") for cell in row] for row in _pool_rows()]),
    )
    _, mark, kept = path.read_text("utf-8").partition(_BY_HAND) if path.exists() else ("", "", "")
    write_atomically(path, (f"{text}\n{mark}{kept}" if mark else text).encode())
    print(f"{path}: {len(rows)} networks")


_DIFFERENCES = ["network", "published, G", "counted, G", "convolutions and products"]
_DIFFERENCES += ["norms and the rest", "in training"]


def _difference(entry: _Entry) -> list[str]:
    from softpool3d.models.flops import published_part, training_total

    counted = entry.counted
    part = published_part(counted)
    values = (counted.total(), part, counted.total() - part, training_total(counted))
    return [entry.name, f"{entry.spec.gflops:.2f}", *(f"{value / 1e9:.2f}" for value in values)]


if __name__ == "__main__":
    from softpool3d.command import run_tool

    run_tool(main)
