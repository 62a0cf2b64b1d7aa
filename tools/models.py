"""List the networks, show what one looks like inside, list the kinds of pooling.

python tools/models.py
python tools/models.py slowfast_r50 --set data.num_frames=16 --set data.crop_size=112 --set model.pool.kind=lip
python tools/models.py --pools
python tools/models.py --save docs/models.md
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from softpool3d.errors import UsageError

if TYPE_CHECKING:
    from softpool3d.config import Config
    from softpool3d.models.network import Staged


# the keys that change what is shown; clips have to fit into the short sides
_SHOWN = ("model", "data.num_frames", "data.crop_size", "data.short_side", "data.train_short_side", "device")
_SHOWN += ("train.memory_format",)


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
        from softpool3d.analysis.models_page import write_page

        write_page(save)
    else:
        _print_all()


# --- all of them -----------------------------------------------------------------------------------------------------


def _print_all() -> None:
    """Prints the table of networks; rows appear as they are counted."""
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    from softpool3d.analysis.models_page import COLUMNS, counted, row_of

    console = Console() if sys.stdout.isatty() else Console(width=200)
    table = Table(*COLUMNS, box=None, header_style="bold", padding=(0, 1))
    with Live(table, console=console, refresh_per_second=4, vertical_overflow="visible"):
        for entry in counted():
            table.add_row(*row_of(entry))
    console.print(
        "\nParameters and GFLOPs (multiply-adds of one clip or image, norms included) are counted here; published are\n"
        "the papers' and libraries' own. One network: softpool3d models NAME [--set KEY=VALUE]. Kinds: --pools.",
        markup=False,
        highlight=False,
    )


def _print_pools() -> None:
    from rich.console import Console
    from rich.table import Table

    from softpool3d.analysis.models_page import POOL_COLUMNS, pool_rows

    table = Table(*POOL_COLUMNS, box=None, header_style="bold", padding=(0, 1))
    for row in pool_rows():
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
    if foreign := [key for key in keys if not key.startswith(_SHOWN)]:
        raise UsageError(f"--set {foreign[0]}: what is shown depends on {', '.join(_SHOWN)} only")
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


if __name__ == "__main__":
    from softpool3d.command import run_tool

    run_tool(main)
