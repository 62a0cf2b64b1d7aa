"""Loads and runs the networks that `softpool3d export` wrote.

.onnx    run by ONNX Runtime
.pt2     a program of torch.export, which is unpickled, or a package of AOTInductor, which is machine code. Both can run
         code, so they are loaded only with `trust`
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from softpool3d.config import Config
from softpool3d.errors import UsageError, first_line, os_reason
from softpool3d.file_kinds import what_is
from softpool3d.foreign import parse_json
from softpool3d.runs.checkpoint import read_description

INSTALL = "install it with: pip install 'softpool3d[export]'"
PT2_METADATA = "softpool3d.json"  # a file beside an exported program
SUFFIXES = (".onnx", ".pt2")
_Sizes = tuple[tuple[int, int | None], int]  # the fewest and the most frames, and pixels of height and width
# A tensor's entry `location` of its external data, and the mark that its data is there, as ONNX's protobuf has them.
_EXTERNAL = re.compile(rb"\x0a\x08location\x12.{1,4096}?\x70\x01", re.DOTALL)


def is_exported(path: str | Path) -> bool:
    """Whether a file is an exported network, for `load_exported`, by the ending of its name."""
    return Path(path).suffix.lower() in SUFFIXES


def check_open(path: str | Path) -> None:
    """Raises UsageError for an exported network, of which no layer can be looked at."""
    if is_exported(path):
        raise UsageError(f"{path} was exported and hides its layers; give the weights file that it was made from")


class ExportedNetwork:
    """An exported network, which maps float clips (N, 3, T, H, W) to logits, float32 (N, classes), without autocast.

    Attributes:
        config, classes: settings (preprocessing included) and classes of the run that it comes from.
        path: the file.
        frames: the fewest and the most frames of a clip; None for no limit.
        side: height and width of a clip in pixels.
    """

    def __init__(
        self, run: Callable[[Tensor], Tensor], path: Path, config: Config, classes: tuple[str, ...], sizes: _Sizes
    ) -> None:
        self._run, self.path, self.config, self.classes = run, path, config, classes
        self.frames, self.side = sizes

    def content(self) -> Iterator[bytes]:
        """Yields what the file holds, in pieces."""
        with self.path.open("rb") as file:
            while piece := file.read(1 << 20):
                yield piece

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        """Runs the network.

        Raises:
            UsageError: for clips of a size that it was not exported for, or if its runtime refuses them.
        """
        channels, length, *sides = clips.shape[1:]
        given = f"{channels} x {length} x {' x '.join(map(str, sides))}"
        least, most = self.frames
        # some runtimes do not check sizes, and return wrong results
        if channels != 3 or length < least or length > (most or length) or sides != [self.side, self.side]:
            frames = str(least) if least == most else f"{least} {f'to {most}' if most else 'or more'}"
            raise UsageError(f"{self.path} takes clips of 3 x {frames} x {self.side} x {self.side}, not {given}")
        try:
            with torch.autocast(clips.device.type, enabled=False):
                return self._run(clips.float().contiguous())
        except torch.OutOfMemoryError:  # the caller tries again with fewer clips
            raise
        except Exception as error:  # each runtime raises types of its own
            told = " ".join(str(error).split())[:300] or type(error).__name__
            raise UsageError(f"{self.path} cannot run clips of {given} ({told}); export it again") from error


def load_exported(path: str | Path, device: torch.device, trust: bool = False) -> ExportedNetwork:
    """Loads a network that `softpool3d export` wrote.

    Args:
        device: where it is to run.
        trust: allows a .pt2 file, which can run code. Without it, such a file is refused before a byte of it is read.

    Raises:
        UsageError: if there is no such file, it is damaged or another program's, it is a .pt2 file without `trust`, it
            does not run on this device, or the library that runs it is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no weights file {path}")
    onnx = path.suffix.lower() == ".onnx"
    if not (onnx or trust):
        raise UsageError(
            f"{path}: a .pt2 file can run code when it is loaded; add --trust (in Python trust=True) if you made it or "
            "trust who did; the same network as .onnx or .safetensors needs no trust"
        )
    run, metadata = _load_onnx(path, device) if onnx else _load_pt2(path, device)
    config, classes = read_description(metadata, path)
    return ExportedNetwork(run, path, config, classes, _sizes(metadata, config, path))


def _sizes(metadata: dict[str, str], config: Config, path: Path) -> _Sizes:
    try:
        least, most = parse_json(metadata["frames"])
        side = parse_json(metadata["preprocessing"])["crop"]
    except (KeyError, ValueError, TypeError):
        raise UsageError(f"{path}: its description does not say how large its clips are") from None
    tested = config.data.tested_crop
    if side != tested:  # early versions exported for training's crops
        raise UsageError(
            f"{path} is for crops of {side} pixels, and the network that it comes from is tested on crops of {tested}; "
            "export it again"
        )
    return (least, most), side


def _load_onnx(path: Path, device: torch.device) -> tuple[Callable, dict[str, str]]:
    try:
        import onnxruntime
    except ImportError:
        raise UsageError(f"{path} needs onnxruntime, which is not installed; {INSTALL}") from None
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device.type)
    if provider not in onnxruntime.get_available_providers():
        raise UsageError(
            f"device: this onnxruntime does not run on {device}; take cpu, or install onnxruntime-gpu in its place"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors are raised, and need no log
    place = (provider, {"device_id": device.index or 0} if device.type == "cuda" else {})
    try:
        content = path.read_bytes()
        if _EXTERNAL.search(content):
            raise UsageError(
                f"{path} keeps weights in another file, which is not read; write it as one file "
                "(`softpool3d export` does; onnx.save with save_as_external_data=False)"
            )
        # as bytes it has no folder, and ONNX Runtime opens no other file for it
        session = onnxruntime.InferenceSession(content, options, providers=[place])
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"cannot read {path}: {os_reason(error)}") from None
    except Exception as error:  # onnxruntime has a type for each of its codes, without a common base
        what = what_is(path)
        what = "" if what.startswith("an ONNX file") else what
        raise UsageError(f"{path} is {what or f'not an ONNX file, or it is damaged ({first_line(error)})'}") from None
    name = session.get_inputs()[0].name

    def run(clips: Tensor) -> Tensor:
        (logits,) = session.run(None, {name: clips.cpu().numpy()})
        return torch.from_numpy(logits).to(clips.device)

    return run, dict(session.get_modelmeta().custom_metadata_map)


def _load_pt2(path: Path, device: torch.device) -> tuple[Callable, dict[str, str]]:
    import softpool3d.ops.library  # noqa: F401 (it may hold our operator)

    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            compiled = any("/data/aotinductor/" in name for name in names)
            ending = ".wrapper_metadata.json" if compiled else f"/{PT2_METADATA}"
            found = next((name for name in names if name.endswith(ending)), None)
            metadata = parse_json(archive.read(found)) if found else {}
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        what = what_is(path) or f"not a .pt2 file of torch.export, or it is damaged ({first_line(error)})"
        raise UsageError(f"{path} is {what}") from None
    read_description(metadata, path)  # before anything in it is run
    try:
        if not compiled:
            program = torch.export.load(path)
            if device.type != "cpu":
                program = torch.export.passes.move_to_device_pass(program, device)
            return program.module(), metadata
        built_for = metadata["AOTI_DEVICE_KEY"]
        if built_for != device.type:
            raise UsageError(f"device: {path} was compiled for {built_for} and does not run on {device}")
        return torch._inductor.aoti_load_package(str(path), device_index=device.index or -1), metadata
    except UsageError:
        raise
    except Exception as error:  # a damaged archive, another release of torch, another processor
        raise UsageError(f"{path} cannot be loaded here ({first_line(error)})") from None
