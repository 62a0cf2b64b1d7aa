"""Tables of the networks and of the kinds of pooling, and the page docs/models.md that has them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from softpool3d.errors import WorkError

if TYPE_CHECKING:
    from fvcore.nn import FlopCountAnalysis

    from softpool3d.models.network import Staged
    from softpool3d.models.registry import Spec

POOL_COLUMNS = ["kind", "what it does", "learns", "paper"]
COLUMNS = ["name", "input", "parameters, M", "GFLOPs", "published", "can pool at", "public weights", "paper"]


@dataclass(frozen=True)
class Entry:
    """A network of the registry, built, with its operations counted."""

    name: str
    spec: Spec
    network: Staged
    counted: FlopCountAnalysis


def counted() -> Iterator[Entry]:
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
        yield Entry(name, spec, network, count_flops(network, clip))


def row_of(entry: Entry) -> list[str]:
    from softpool3d.models.pooling import places

    spec = entry.spec
    millions = sum(p.numel() for p in entry.network.parameters()) / 1e6
    size = f"{spec.crop}x{spec.crop}" if spec.is_image else f"{spec.frames} x {spec.crop}x{spec.crop}"
    published = "-" if spec.gflops is None else f"{spec.millions:.2f} M, {spec.gflops:.2f} G"
    where, weights = ", ".join(places(entry.network)), ", ".join(spec.weights)
    gflops = entry.counted.total() / 1e9
    return [entry.name, size, f"{millions:.2f}", f"{gflops:.2f}", published, where, weights, spec.paper]


def pool_rows() -> list[list[str]]:
    from softpool3d.models.pools import KINDS

    return [[name, kind.line, kind.learns or "-", kind.paper] for name, kind in KINDS.items()]


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
  ceil_mode stay.
- `stem`: of these, the pooling in the stem alone. With `model.pool.paper_stem=true` its 3x3 window becomes 2x2. That is
  how SoftPool's own ImageNet networks are made.
- `downsample`: each strided convolution gets stride 1, and a pooling takes over the stride. It goes after the
  convolution in the main path, and before the 1x1 convolution of a shortcut:

      main path   conv, stride 2       ->   conv, stride 1 - pool, stride 2
      shortcut    conv 1x1, stride 2   ->   pool, stride 2 - conv 1x1, stride 1

- `temporal`: time is halved before the stages that `model.pool.temporal` names (`stage1` to `stage4`).
- `head`: the global pooling before the classifier is swapped.
- `attention`, of MViT: the pooling replaces the depthwise convolutions that pool queries, keys and values.

Names and shapes of parameters do not change, so public weights load; only `attention` takes weights away.
`softpool3d.replace_pooling` does `existing`, `downsample` and `head` (`where=`) to any `nn.Module`, or only to layers
of some `names=` (patterns) or `types=`; `beta=` and `p=` are those of the kinds `soft` and `lp`. Kinds with parameters
for each channel, `beta="learnable"` among them, need the channels. They are found by a run on shapes alone, or from
`example`, an input of the network, where such a run fails.

A network that was trained with max pooling goes on as it was with `beta=16` or more. With beta 1 SoftPool is close to
average pooling on most feature maps, and the network has to be trained again ([temperature.md](temperature.md)).

A network that is trained from nothing begins with `model.pool.beta=4`: on three sets of real actions it was within two
points of the best kind, where beta 1 was up to four behind, and a learned beta no better than beta 1
([study-actions.md](study-actions.md)).

`torch.fx.symbolic_trace` and torchvision's `create_feature_extractor` take a network with SoftPool where they take it
without; SlowFast and MViT they do not.

## Kinds: `model.pool.kind`

{kinds}

`blur` and `conv` slide over windows and have no global form, so with `existing` they leave the head as it is. `conv`
also leaves strided convolutions as they are.

A learnable beta is `exp(10 raw_beta)`, one for each channel: it stays above 0, and moves at the learning rate of the
network's weights. Train it with AdamW, as [docs/temperature.md](temperature.md) does. SGD moves it well only where its
gradient is large, in heads and shortcuts, and hardly where a norm follows. Weight decay, which our training leaves out,
pulls it to 1; `model.pool.beta_start` says where it begins.
"""
_BY_HAND = "## Public weights"  # from here on the page is kept


def write_page(path: Path) -> None:
    from rich.progress import track

    from softpool3d.analysis.measuring import markdown_table
    from softpool3d.files import write_atomically
    from softpool3d.models.registry import SPECS

    if path.is_dir():
        raise WorkError(f"--save {path} is a folder; name a file")
    rows, differences = [], []
    for entry in track(counted(), "counting", total=len(SPECS), transient=True):
        rows.append(row_of(entry))
        if entry.spec.gflops is not None:
            differences.append(_difference(entry))
    text = _PAGE.format(
        networks=markdown_table(COLUMNS, rows),
        differences=markdown_table(_DIFFERENCES, differences),
        kinds=markdown_table(POOL_COLUMNS, [[cell.replace("|", "\\|") for cell in row] for row in pool_rows()]),
    )
    _, mark, kept = path.read_text("utf-8").partition(_BY_HAND) if path.exists() else ("", "", "")
    write_atomically(path, (f"{text}\n{mark}{kept}" if mark else text).encode())
    print(f"{path}: {len(rows)} networks")


_DIFFERENCES = ["network", "published, G", "counted, G", "convolutions and products"]
_DIFFERENCES += ["norms and the rest", "in training"]


def _difference(entry: Entry) -> list[str]:
    from softpool3d.models.flops import published_part, training_total

    counted = entry.counted
    part = published_part(counted)
    values = (counted.total(), part, counted.total() - part, training_total(counted))
    return [entry.name, f"{entry.spec.gflops:.2f}", *(f"{value / 1e9:.2f}" for value in values)]
