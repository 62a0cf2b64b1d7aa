"""Measures what each pooling keeps: of the pixels of real clips, and of the feature maps of trained networks.

python benchmarks/kept.py actions/* clips --runs runs/study/actions/depth_actions-r3d_18-max-seed0 --save
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from shared import begin, console, run
from torch import Tensor, nn

from softpool3d.analysis.measuring import markdown_table, save_section
from softpool3d.config import DataConfig
from softpool3d.datasets import read_manifests
from softpool3d.datasets.inputs import Inputs, clip_name
from softpool3d.datasets.manifest import Clip
from softpool3d.datasets.transforms import normalize
from softpool3d.datasets.views import read_views
from softpool3d.errors import SoftPool3dError, UsageError
from softpool3d.files import replacing
from softpool3d.inference.trained import load_trained
from softpool3d.models.pools import KINDS
from softpool3d.models.sites import PooledConv3d
from softpool3d.visual.features import layer_inputs
from softpool3d.visual.pooled import STRIDE, pool_clip, poolings
from softpool3d.visual.quality import measure as measure_quality
from softpool3d.visual.source import read_source

PAGE = Path(__file__).parents[1] / "docs" / "kept.md"
FIGURE = PAGE.parent / "images" / "kept-beta.png"
BETAS = (0, 0.5, 1, 2, 4, 8, 16, 32, 64, 255)
KERNEL = (2, 2, 2)
OF_PIXELS = """\
PSNR (dB) and SSIM of clips after pooling 2x2x2 and trilinear interpolation to the old size, means over the clips of
each folder, by beta of SoftPool and by kind. Pixels lie in [0, 1]. The paper of SoftPool pools pixels of 0 to 255 with
beta 1, which is beta 255 here: close to max pooling."""
OF_MAPS = """\
The share of the variance of feature maps that a linear decoder explains from their pooled form, on clips it was not
fitted to. The decoder sees the pooled values of one channel at a place and its 26 neighbours, and predicts the values
of the window; it is fitted by least squares for each layer and kind, to maps whose channels have standard deviation 1.
That is the scale of beta here."""


def measure(
    folders: Annotated[list[Path], typer.Argument(help="Folders of videos, or data sets, whose test clips are used.")],
    runs: Annotated[list[Path] | None, typer.Option(help="Trained runs whose feature maps are pooled.")] = None,
    clips: Annotated[int, typer.Option(min=2, help="Clips of each folder, evenly chosen.")] = 24,
    save: Annotated[bool, typer.Option("--save", help="Write docs/kept.md and its figure.")] = False,
) -> None:
    """Measure what each pooling keeps of pixels, and of the feature maps of trained networks."""
    about, say = begin()
    kept = {folder.name: _pixels(folder, clips) for folder in folders}
    table = _table("pooling", kept, lambda value: f"{value['psnr']:.2f}, {value['ssim']:.3f}")
    say(table)
    if save:
        with replacing(FIGURE) as path:
            _figure(kept).savefig(path, dpi=110, format="png")
        picture = f"![PSNR by beta](images/{FIGURE.name})"
        save_section("Pixels", "\n\n".join([about, OF_PIXELS, table, picture]), PAGE)
    for name in runs or []:
        table = _table("pooling", _feature_maps(name, clips), "{:.1%}".format)
        say(f"{name.name}\n{table}")
        if save:
            save_section(f"Feature maps of {name.name}", "\n\n".join([about, OF_MAPS, table]), PAGE)
    if save:
        say(f"Written to {PAGE}")


# --- pixels -----------------------------------------------------------------------------------------------------------


def _pixels(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Returns the mean scores of each pooling over clips of a folder."""
    kinds = [*(kind for kind in KINDS if kind != "soft"), STRIDE]
    pools = [*poolings(["soft"], BETAS, KERNEL), *poolings(kinds, [1], KERNEL)]
    scores: dict[str, list[dict[str, float]]] = {}
    for clip in _some(_clips(folder), count):
        try:
            frames = read_source(Path(clip.path), seconds=2, short_side=128).frames
        except SoftPool3dError as error:
            console().print(f"left out: {clip_name(clip)}: {error}", highlight=False, markup=False)
            continue
        if len(frames) < 2 or min(frames.shape[2:]) < 24:
            continue
        found = {pool.label: measure_quality(frames, pool_clip(frames, pool, KERNEL)[0]).scores() for pool in pools}
        if all(torch.tensor(list(values.values())).isfinite().all() for values in found.values()):
            for label, values in found.items():
                scores.setdefault(label, []).append(values)
    if not scores:
        raise UsageError(f"{folder}: no clip of it could be measured")
    return {
        label: {name: fmean(each[name] for each in values) for name in ("psnr", "ssim")}
        for label, values in scores.items()
    }


def _clips(folder: Path) -> list[Clip]:
    try:
        manifests = read_manifests(DataConfig(dataset="folder", root=str(folder)))
    except SoftPool3dError:  # no data set: videos as they lie
        return list(Inputs([str(folder)]))
    return list(manifests.get("test", manifests["val"]).clips)


def _some(clips: Sequence[Clip], count: int) -> list[Clip]:
    return [clips[int(i * len(clips) / count)] for i in range(count)] if len(clips) > count else list(clips)


def _figure(kept: dict[str, dict[str, dict[str, float]]]):
    from matplotlib.figure import Figure

    result = Figure((7, 4), layout="constrained")
    axes = result.subplots()
    for number, (name, scores) in enumerate(kept.items()):
        values = [scores[f"soft, beta {beta:g}"]["psnr"] for beta in BETAS]
        axes.plot(BETAS, values, "o-", ms=3, color=f"C{number}", label=name)
        axes.axhline(scores["max"]["psnr"], color=f"C{number}", lw=0.8, ls=":")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks(BETAS, [f"{beta:g}" for beta in BETAS])
    axes.set(xlabel="beta of SoftPool on pixels in [0, 1]; 0: average; dotted: max pooling", ylabel="PSNR, dB")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return result


# --- feature maps -----------------------------------------------------------------------------------------------------


def _feature_maps(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Returns, for each pooling layer of a run's network, the variance explained by each pooling's decoder."""
    trained = load_trained(folder)
    manifests = read_manifests(trained.config.data)
    network = trained.network.eval()
    layers = [name for name, module in network.named_modules() if isinstance(module, PooledConv3d)]
    layers = [name for name in layers if not network.get_submodule(name).pool_first]
    if not layers:
        raise UsageError(
            f"{folder}: its network has no pooling after a convolution; give a run with where: [downsample]"
        )
    seen = [
        [_maps(network, layers, clip, trained.config.data) for clip in _some(list(manifests[split].clips), count)]
        for split in ("train", "test" if "test" in manifests else "val")
    ]
    return {layer: _explained(*([maps[layer] for maps in part] for part in seen)) for layer in layers}


@torch.no_grad()
def _maps(network: nn.Module, layers: Sequence[str], clip: Clip, data: DataConfig) -> dict[str, Tensor]:
    """Returns by each layer's name what its pooling sees, (C, T, H, W)."""
    views = normalize(read_views(clip, data, 1, 1).clips[:1], data.mean, data.std)
    seen = layer_inputs(network, views, [f"{layer}.pool" for layer in layers])
    return {layer: seen[f"{layer}.pool"][0] for layer in layers}


def _explained(train: Sequence[Tensor], test: Sequence[Tensor]) -> dict[str, float]:
    """Returns the explained variance by kind of pooling, of maps (C, T, H, W)."""
    channels = torch.stack([maps.flatten(1).var(1) for maps in train]).mean(0).sqrt().clamp_min(1e-6)
    kernel = tuple(min(k, size) for k, size in zip(KERNEL, train[0].shape[1:], strict=True))  # of one frame, no time
    train, test = ([_cut(maps / channels.view(-1, 1, 1, 1), kernel) for maps in part] for part in (train, test))
    pools = poolings(["soft"], BETAS[:-1], kernel) + poolings(["avg", "max", "lp", "edscw", STRIDE], [1], kernel)
    result = {}
    for pool in pools:
        gram, cross = 0.0, 0.0
        for maps in train:
            seen, wanted = _neighbours(pool.layer(maps[None])[0]), _windows(maps, kernel)
            gram, cross = gram + seen.T @ seen, cross + seen.T @ wanted
        decoder = torch.linalg.solve(gram + 1e-4 * gram.diagonal().mean() * torch.eye(len(gram)).double(), cross)
        missed = 0.0
        for maps in test:
            guess = _neighbours(pool.layer(maps[None])[0]) @ decoder
            missed += (guess - _windows(maps, kernel)).square().sum()
        mean = torch.cat([maps.flatten(1) for maps in test], 1).mean(1, keepdim=True)
        there = sum((maps.flatten(1) - mean).square().sum() for maps in test)
        result[pool.label] = float(1 - missed / there)
    return result


def _cut(maps: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """Returns the part of maps (C, T, H, W) that windows cover."""
    return maps[(slice(None), *(slice(size // k * k) for size, k in zip(maps.shape[1:], kernel, strict=True)))]


def _windows(maps: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """Returns the values of each window, float64 (channels and windows, positions of a window)."""
    for dim, k in enumerate(kernel, 1):
        maps = maps.unfold(dim, k, k)
    return maps.flatten(4).flatten(0, 3).double()


def _neighbours(pooled: Tensor) -> Tensor:
    """Returns each value with its 26 neighbours and a 1, float64 (channels and windows, 28); the edge is repeated."""
    around = F.pad(pooled[None], (1,) * 6, mode="replicate")[0].unfold(1, 3, 1).unfold(2, 3, 1).unfold(3, 3, 1)
    seen = around.reshape(-1, 27).double()
    return torch.cat([seen, torch.ones(len(seen), 1).double()], 1)


def _table(first: str, columns: dict[str, dict], show) -> str:
    labels = list(next(iter(columns.values())))
    rows = [[label, *(show(column[label]) for column in columns.values())] for label in labels]
    return markdown_table([first, *columns], rows)


if __name__ == "__main__":
    run(measure)
