"""Measures what beta does in trained networks: what was learned, how many positions weigh, what another beta costs.

python benchmarks/temperature.py runs/study/actions --save
"""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Annotated

import torch
import typer
from shared import begin, run
from torch import Tensor, nn

from softpool3d.analysis.folders import RunRecord, read_run
from softpool3d.analysis.measuring import markdown_table, save_section
from softpool3d.config import Config
from softpool3d.datasets import read_manifests
from softpool3d.datasets.loader import eval_loader
from softpool3d.datasets.transforms import normalize
from softpool3d.errors import UsageError
from softpool3d.evaluation.evaluator import evaluate
from softpool3d.files import replacing
from softpool3d.inference.trained import load_trained
from softpool3d.models import build_model
from softpool3d.models.pools import per_dimension
from softpool3d.models.sites import PooledConv3d
from softpool3d.ops.modules import SoftPool3d
from softpool3d.runtime.devices import make_accelerator

PAGE = Path(__file__).parents[1] / "docs" / "temperature.md"
FIGURE = PAGE.parent / "images" / "learned-beta.png"
BETAS = (0.0, 0.25, 1.0, 4.0, 16.0, 64.0, 1024.0)
BATCHES = 8  # of test clips, for the weights of windows
LEARNED = """\
Betas of each layer after training with `model.pool.beta=learnable`: the median of its channels, and the 5th and 95th
percentile. Layers are in the order of the network; `downsample` is the shortcut of a block, which pools its input."""
WEIGHING = """\
How many positions of a window weigh in its sum: 1 / sum of squared softmax weights, which is all of them for average
pooling and 1 for max pooling. Median over channels and windows of test clips, and the 5th and 95th percentile,
in networks trained with the beta of the row."""
SWAPPED = """\
Test top-1 of networks that were trained without SoftPool (first column: as trained), after it took the place of their
pooling without any training, by beta. It is what `replace_pooling` does to a trained network."""


def measure(
    runs: Annotated[Path, typer.Argument(help="The output of the study of actions, whose runs are finished.")],
    seed: Annotated[int, typer.Option(help="The runs of this seed are measured.")] = 0,
    save: Annotated[bool, typer.Option("--save", help="Write docs/temperature.md and its figure.")] = False,
) -> None:
    """Measure what beta does in the trained networks of a study."""
    about, say = begin()
    found = {folder.name: read_run(folder) for folder in sorted(runs.glob(f"*-seed{seed}")) if folder.is_dir()}
    done = {name: record for name, record in found.items() if record.finished}
    if not done:
        raise UsageError(f"{runs} holds no finished run of seed {seed}")
    sections = {
        "What is learned": (LEARNED, _learned(done, save)),
        "How many positions weigh": (WEIGHING, _weighing(done)),
        "SoftPool in place of another pooling, without training": (SWAPPED, _swapped(done)),
    }
    for heading, (text, table) in sections.items():
        say(f"\n{heading}\n{table}")
        if save:
            picture = [f"![Betas by layer](images/{FIGURE.name})"] if heading == "What is learned" else []
            save_section(heading, "\n\n".join([about, text, table, *picture]), PAGE)


def _soft(record: RunRecord) -> bool:
    return record.config.model.pool.kind == "soft"


# --- what is learned --------------------------------------------------------------------------------------------------


def _learned(done: dict[str, RunRecord], save: bool) -> str:
    betas = {
        name: dict(_betas(record)) for name, record in done.items() if record.config.model.pool.beta == "learnable"
    }
    if not betas:
        return "No run with a learnable beta is finished."
    if save:
        with replacing(FIGURE) as path:
            _figure(betas).savefig(path, dpi=110, format="png")
    return _by_layer(betas)


def _betas(record: RunRecord) -> Iterator[tuple[str, Tensor]]:
    network = load_trained(record.folder).network
    for name, module in network.named_modules():
        if getattr(module, "raw_beta", None) is not None:
            yield name.removesuffix(".pool").removesuffix(".soft"), module.beta.detach()


def _figure(betas: dict[str, dict[str, Tensor]]):
    from matplotlib.figure import Figure

    result = Figure((11, 1 + 2.2 * len(betas)), layout="constrained")
    for axes, (name, of_layer) in zip(result.subplots(len(betas), 1, squeeze=False)[:, 0], betas.items(), strict=True):
        for number, values in enumerate(of_layer.values()):
            spread = torch.linspace(-0.3, 0.3, len(values))
            axes.scatter(number + spread, values.sort().values, s=5, color="C0")
        axes.axhline(1, color="gray", lw=0.8, ls=":")
        axes.set_yscale("log")
        axes.set_xticks(range(len(of_layer)), list(of_layer), fontsize="x-small")
        axes.set_ylabel("beta")
        axes.set_title(name, fontsize="small")
    return result


# --- how many positions weigh -----------------------------------------------------------------------------------------


def _weighing(done: dict[str, RunRecord]) -> str:
    counts = {name: _effective_positions(record) for name, record in done.items() if _soft(record)}
    counts = {name: of_layer for name, of_layer in counts.items() if of_layer}
    if not counts:
        return "No run with SoftPool in place of strides is finished."
    return _by_layer(counts)


@torch.inference_mode()
def _effective_positions(record: RunRecord) -> dict[str, Tensor]:
    """Returns, by layer and its number of positions, 1 / sum of squared weights of a sample of windows."""
    trained = load_trained(record.folder)
    network = trained.network.eval()
    found: dict[str, list[Tensor]] = {}

    def note(name: str):
        def hook(pool: SoftPool3d, inputs: tuple[Tensor, ...]) -> None:
            positions = _positions(pool, inputs[0]).flatten()
            found.setdefault(name, []).append(positions[:: max(1, len(positions) // 20000)])

        return hook

    for name, module in network.named_modules():
        if isinstance(module, SoftPool3d):
            where = name.removesuffix(".pool")
            module.register_forward_pre_hook(note(f"{where}, of {prod(_sizes(module)[0])}"))
    for clips in _test_clips(trained.config):
        network(clips)
    return {name: torch.cat(parts) for name, parts in found.items()}


def _positions(pool: SoftPool3d, x: Tensor) -> Tensor:
    beta = pool.beta if isinstance(pool.beta, float) else pool.beta.view(-1, 1, 1, 1)
    windows = beta * x
    for dim, (size, stride) in enumerate(zip(*_sizes(pool), strict=True), 2):
        windows = windows.unfold(dim, min(size, x.shape[dim]), stride)
    return 1 / windows.flatten(5).softmax(-1).square().sum(-1)


def _sizes(pool: SoftPool3d) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return per_dimension(pool.kernel_size, 3), per_dimension(pool.stride, 3)


def _test_clips(config: Config) -> Iterator[Tensor]:
    manifests = read_manifests(config.data)
    loader = eval_loader(manifests.get("test", manifests["val"]), config, 1, 1)
    for number, batch in enumerate(loader):
        if number == BATCHES:
            return
        yield normalize(batch.video[:, 0], config.data.mean, config.data.std)


# --- SoftPool in place of another pooling -----------------------------------------------------------------------------


def _swapped(done: dict[str, RunRecord]) -> str:
    rows = []
    for name, record in done.items():
        pool = record.config.model.pool
        if pool.kind in ("max", "conv") and "downsample" in pool.where and record.config.data.num_frames > 1:
            tops = [_top1(record, beta) for beta in BETAS]
            rows.append([name, f"{record.test():.1%}", *(f"{top1:.1%}" for top1 in tops)])
    if not rows:
        return "No run with max pooling or strided convolutions is finished."
    return markdown_table(["run", "as trained", *(f"beta {beta:g}" for beta in BETAS)], rows)


def _top1(record: RunRecord, beta: float) -> float:
    """Returns the test top-1 of a run's weights with SoftPool in place of its pooling."""
    trained = load_trained(record.folder)
    config = trained.config.model_copy(deep=True)
    config.model.pool = config.model.pool.model_copy(update={"kind": "soft", "beta": beta})
    network: nn.Module = build_model(config, len(trained.classes))
    network.load_state_dict(trained.network.state_dict())
    if not any(isinstance(module, PooledConv3d) for module in network.modules()):
        raise UsageError(f"{record.folder}: its network has no stride that a pooling can take over")
    manifests = read_manifests(config.data)
    loader = eval_loader(manifests.get("test", manifests["val"]), config, config.test.num_clips, config.test.num_crops)
    return evaluate(network, loader, config, make_accelerator(config)).accuracy()


def _by_layer(values: dict[str, dict[str, Tensor]]) -> str:
    """Returns a table of run -> layer -> values."""
    layers = list(dict.fromkeys(layer for of_layer in values.values() for layer in of_layer))
    rows = [
        [name, *(_range(of_layer[layer]) if layer in of_layer else "" for layer in layers)]
        for name, of_layer in values.items()
    ]
    return markdown_table(["run", *layers], rows)


def _range(values: Tensor) -> str:
    low, middle, high = torch.quantile(values.float(), torch.tensor([0.05, 0.5, 0.95])).tolist()
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    run(measure)
