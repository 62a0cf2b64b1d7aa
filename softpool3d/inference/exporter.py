"""Exports a network from a weights file to ONNX, torch.export or AOTInductor, to run without this package's Python.

A file gets its name only after its logits have been compared with the original network's.
"""

from __future__ import annotations

import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as _tracing

from softpool3d.config import Config, DataConfig
from softpool3d.errors import SoftPool3dError, UsageError, WorkError, first_line
from softpool3d.files import replacing
from softpool3d.inference.exported import INSTALL, PT2_METADATA, load_exported
from softpool3d.models import build_model
from softpool3d.ops.decomposition import decompositions
from softpool3d.runs.checkpoint import describe, load_into
from softpool3d.runs.published import open_weights

SUFFIX = {"onnx": ".onnx", "torchexport": ".pt2", "aoti": ".pt2"}
_BATCHES = (2, 1, 3)

Frames = tuple[int, int | None]  # of a clip: the fewest and the most; None for no limit


@dataclass(frozen=True)
class Export:
    """What `export_weights` wrote.

    Attributes:
        difference: the largest difference of a logit from the original's, as a fraction of the largest logit, over all
            clips compared.
        compared: (batch size, frames) of these clips.
        side: height and width of a clip in pixels, as in testing.
        frames: the fewest and the most frames of a clip; None for no limit.
        note: what was assumed about weights that do not describe themselves.
        own_operator: whether the file holds softpool3d's operator, and so needs its library where it is loaded.
    """

    path: Path
    difference: float
    compared: tuple[tuple[int, int], ...]
    side: int
    frames: Frames
    own_operator: bool
    note: str = ""


def export_weights(
    weights: str | Path, to: str, out: str | Path, *, plain: bool = False, tolerance: float = 1e-4
) -> Export:
    """Writes the network of a weights file in another format, for CPUs and any batch size.

    The exported network takes float32 clips (N, 3, T, H, W), normalised, with H and W as in testing, and returns logits
    (N, classes). The file's metadata are those of a weights file, and `preprocessing` and `frames` for programs that do
    not have softpool3d.

    Args:
        to: onnx; torchexport (torch.export.save); aoti (torch._inductor.aoti_compile_and_package).
        out: the file to write.
        plain: writes SoftPool in standard operators in a .pt2 file too, as ONNX files always do.
        tolerance: the largest difference of a logit from the original's that is allowed, as a fraction of the largest
            logit.

    Raises:
        UsageError: if the weights cannot be used, or a library is missing.
        WorkError: if the network cannot be written in this format, its logits differ too much, or the file cannot be
            written. A file that was there before stays then.
    """
    if to == "onnx":
        _need_onnx()
    out, writer = Path(out), {"onnx": _write_onnx, "torchexport": _write_program, "aoti": _write_package}[to]
    loaded = open_weights(weights)
    name, data = loaded.config.model.name, loaded.config.data
    network = build_model(loaded.config, len(loaded.classes))
    load_into(network, loaded.state, loaded.origin)
    network.eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    metadata = {**describe(loaded.config, loaded.classes), "preprocessing": json.dumps(preprocessing(loaded.config))}
    for attempt in _ATTEMPTS:
        try:
            with replacing(out) as temporary, _quiet(), _tracing.patch(backed_size_oblivious=attempt.oblivious):
                program, frames = _trace(network, data, attempt)
                if plain or to == "onnx":
                    program = program.run_decompositions(decompositions())
                writer(program, {**metadata, "frames": json.dumps(frames)}, temporary)
                exported = load_exported(temporary, torch.device("cpu"), trust=True)  # it was made here
                sizes = [(batch, data.num_frames) for batch in _BATCHES] + [(2, n) for n in _ends(frames, data)]
                difference = max(_difference(network, exported, data, *size) for size in sizes)
                if not difference <= tolerance:
                    raise _TooFar(f"{difference:.1e} of the largest, and {tolerance:.0e} is allowed (--tolerance)")
            own_operator = _holds_own_operator(program)
            return Export(out, difference, tuple(sizes), data.tested_crop, frames, own_operator, loaded.note)
        except SoftPool3dError:
            raise
        except _TooFar as error:
            failure = f"{out} was not written: its logits differ from the network's by {error}"
        except Exception as error:  # exporters raise many types, and each layer may fail in its own way
            reason = first_line(error)
            failure = f"{name} cannot be written as {to}: {type(error).__name__}: {reason}"
    raise WorkError(failure)


class _TooFar(Exception):
    """The exported network's logits differ from the original's by more than is allowed."""


def preprocessing(config: Config) -> dict:
    """Returns how a clip is prepared for the network, described for programs that do not have softpool3d."""
    data = config.data
    return {
        "layout": "NCTHW",
        "colour": "RGB",
        "frames": data.num_frames,
        "sampling": data.sampling,
        "sampling_rate": data.sampling_rate,
        "target_fps": data.target_fps,
        "short_side": data.short_side,
        "crop": data.tested_crop,
        "scale": 1 / 255,
        "mean": data.mean,
        "std": data.std,
        "output": "logits",
        "probabilities": "sigmoid" if config.optim.loss == "binary" else "softmax",
    }


# --- the three formats -----------------------------------------------------------------------------------------------


def _write_onnx(program: ExportedProgram, metadata: dict[str, str], path: Path) -> None:
    names = ({0: "batch", 2: "frames"},)
    written = torch.onnx.export(
        program, input_names=["clips"], output_names=["logits"], dynamic_shapes=names, verbose=False
    )
    written.model.metadata_props.update(metadata)
    path.write_bytes(written.model_proto.SerializeToString())


def _write_program(program: ExportedProgram, metadata: dict[str, str], path: Path) -> None:
    # else the clip that it was traced with would be written too
    program.example_inputs = (tuple(torch.zeros(1).expand(x.shape) for x in program.example_inputs[0]), {})
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={PT2_METADATA: json.dumps(metadata)})
    path.write_bytes(buffer.getvalue())


def _write_package(program: ExportedProgram, metadata: dict[str, str], path: Path) -> None:
    settings = {"aot_inductor.metadata": metadata}
    torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(f"--to onnx needs {error.name}, which is not installed; {INSTALL}") from None


# --- tracing and comparing -------------------------------------------------------------------------------------------


def _clips(data: DataConfig, batch: int, frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch * 1000 + frames)
    return torch.randn(batch, 3, frames, data.tested_crop, data.tested_crop, generator=generator)


@dataclass(frozen=True)
class _Attempt:
    """A way to trace a network.

    Attributes:
        times: length of the clip that it is traced with, as a multiple of the clips that it was trained on.
        dynamic: leaves the number of frames open.
        oblivious: treats sizes of 1 like all others, inside the network too. A size that is 1 by chance would be taken
            for one that always is, so the clip has to be long.
    """

    times: int
    dynamic: bool
    oblivious: bool


# The first leaves most open, the last always works: a network may branch on the clip's length, or be made for one
# length only.
_ATTEMPTS = (_Attempt(4, True, True), _Attempt(1, True, False), _Attempt(1, False, False))


def _trace(network: nn.Module, data: DataConfig, attempt: _Attempt) -> tuple[ExportedProgram, Frames]:
    """Returns the network as a graph for any batch size, and the range of clip lengths that the graph takes."""
    example = (_clips(data, 2, attempt.times * data.num_frames),)
    sizes = {0: Dim.AUTO, 2: Dim.AUTO} if attempt.dynamic else {0: Dim.AUTO}
    program = torch.export.export(network, example, dynamic_shapes=(sizes,))
    module = program.module()

    def works(batch: int, frames: int) -> bool:
        # the ranges are not all: there are guards on sizes inside the network too
        try:
            return _difference(network, module, data, batch, frames) < 1e-5
        except Exception:
            return False

    if not (works(1, data.num_frames) and works(3, data.num_frames)):
        raise ValueError("it is tied to one batch size or number of frames")
    (name,) = program.graph_signature.user_inputs
    length = next(node for node in program.graph.nodes if node.name == name).meta["val"].shape[2]
    if isinstance(length, int):
        return program, (data.num_frames, data.num_frames)
    allowed = program.range_constraints[length.node.expr]

    def nearest(end: int) -> int:
        """Returns the number of frames nearest to `end`, from num_frames on, that works; found by bisection."""
        good, bad = data.num_frames, end
        if good == end or works(2, end):
            return end
        while abs(good - bad) > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if works(2, middle) else (good, middle)
        return good

    least, longer = nearest(max(1, int(allowed.lower))), 2 * data.num_frames
    limited = allowed.upper < longer  # sympy has two infinities; "no limit" is checked on clips twice as long
    most = nearest(int(allowed.upper) if limited else longer)
    return program, (least, most if limited or most < longer else None)


def _ends(frames: Frames, data: DataConfig) -> list[int]:
    least, most = frames
    return sorted({least, 2 * data.num_frames if most is None else most} - {data.num_frames})


@torch.no_grad()
def _difference(
    network: nn.Module, other: Callable[[Tensor], Tensor], data: DataConfig, batch: int, frames: int
) -> float:
    """Returns the largest difference of a logit, as a fraction of the largest logit; infinity if any is NaN."""
    clips = _clips(data, batch, frames)
    wanted = network(clips)
    difference = float((other(clips) - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
    return difference if math.isfinite(difference) else math.inf


def _holds_own_operator(program: ExportedProgram) -> bool:
    return any(str(node.target).startswith("softpool3d.") for node in program.graph.nodes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the exporters' warnings, which are about their own code."""
    noisy = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in noisy]
    try:
        for logger in noisy:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(noisy, before, strict=True):
            logger.setLevel(level)
