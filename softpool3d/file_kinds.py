"""Tells what a file is from its first bytes. Readers of weights ask this about a file that they cannot read."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

_TORCH_BEFORE_ZIP = (
    b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # the magic number of torch.save, pickled
)
_HEAD = 4096
_MAGIC = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; fetch that with `git lfs pull`"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and MATLAB write them; weights of PyTorch are read"),
    (b"\x1f\x8b", "packed by gzip; unpack it first"),
    (b"\xfd7zXZ\x00", "packed by xz; unpack it first"),
    (b"BZh", "packed by bzip2; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it first"),
    (b"Rar!\x1a\x07", "a RAR archive; unpack it first"),
)
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml")


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors files do: with the length of a JSON object, then the object."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 100_000_000


def is_pickled(path: Path) -> bool:
    """Whether a file begins as those of torch.save do: with a zip archive's first bytes, or a pickle's."""
    with path.open("rb") as file:
        head = file.read(4)
    return head == b"PK\x03\x04" or head[:1] == b"\x80"


def what_is(path: str | Path) -> str:
    """Returns what a file is and what to do about it, as words that follow "PATH is"; "" if its kind is unknown.

    The result is "" too for complete files of torch.save and safetensors, which readers of weights take.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return ""
    if not head:
        return "empty: its copy or download broke off; fetch it again"
    for magic, what in _MAGIC:
        if head.startswith(magic):
            return what
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES):
        return "an HTML or XML page, not a file of weights: the download went wrong (a login, a moved file, a quota)"
    if head.startswith(b"PK\x03\x04"):
        return _archive(path)
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    if head.startswith(b"\x80") and not head.startswith(_TORCH_BEFORE_ZIP):
        return _pickle(path)
    if head.startswith(b"\x08") and (b"pytorch" in head[:64] or b"onnx" in head[:64]):
        return "an ONNX file; give it a name that ends in .onnx"
    if is_safetensors(path):
        return _safetensors(path, size)
    return ""


def _archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return (
            "broken off or damaged: it begins as a zip archive, as torch.save writes, and lacks its end; fetch it again"
        )
    inner = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in inner:
        return (
            "a TorchScript archive, which holds a program beside the weights, and programs are not run; save the "
            "network's state_dict() with torch.save"
        )
    if "archive_format" in inner or "serialized_exported_program.json" in inner:
        return "a package of torch.export or AOTInductor; give it a name that ends in .pt2"
    if "data.pkl" in inner:
        return ""
    return f"a zip archive of {names[0]}; unpack it first" if names else "an empty zip archive"


def _pickle(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(1 << 20)
    if b"blobs" in start or b"model_param" in start:
        return (
            "a pickle of Caffe2, and those are not run; take the file of PyTorch (.pyth) of the same network, or have "
            "PySlowFast write it (TEST.CHECKPOINT_TYPE caffe2 reads this one)"
        )
    return "a pickle that torch.save did not write, and those are not run; save the network's state_dict() with it"


def _safetensors(path: Path, size: int) -> str:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if 8 + length <= size else b""
    try:
        ends = [entry["data_offsets"][1] for key, entry in json.loads(header).items() if key != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return "broken off or damaged: it begins as a safetensors file; fetch it again" if not header else ""
    return "" if size >= whole else f"broken off or damaged: {size} of {whole} bytes are there; fetch it again"
