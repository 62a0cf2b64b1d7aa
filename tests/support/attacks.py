"""Files as an attacker would make them; what runs code makes a file, the canary."""

from __future__ import annotations

import io
import json
import os
import shlex
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from softpool3d.config_file import load_config
from softpool3d.inference.exported import PT2_METADATA
from softpool3d.runs.checkpoint import describe


class Payload:
    """Pickled, it makes a file when it is read."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self):
        return os.system, (f"touch {shlex.quote(str(self._canary))}",)


def description(**changes: str) -> dict[str, str]:
    return {**describe(load_config("r3d_softpool"), ("a", "b")), "frames": "[4, null]", **changes}


def evil_program(path: Path, canary: Path) -> Path:
    """A program of torch.export, one of whose weights is a pickle that runs code."""
    program, plain = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), io.BytesIO()
    torch.export.save(program, plain, extra_files={PT2_METADATA: json.dumps(description())})
    evil = io.BytesIO()
    torch.save(Payload(canary), evil)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("weights_config.json"):
                content = content.replace(b'"use_pickle": false', b'"use_pickle": true')
            target.writestr(name, evil.getvalue() if name.endswith("weights/weight_0") else content)
    return path


def safetensors(path: Path, metadata: dict[str, str], length: int | None = None) -> Path:
    header = json.dumps({"__metadata__": metadata}).encode()
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header)
    return path


def external(location: str) -> bytes:
    onnx = pytest.importorskip("onnx")
    weight = onnx.TensorProto(name="w", data_type=1, dims=[6], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("length", "24")):
        weight.external_data.add(key=key, value=value)
    ends = [onnx.helper.make_tensor_value_info(name, 1, [6]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.helper.set_model_props(model, description())
    return model.SerializeToString()


def playlist(*places: object) -> str:
    return "#EXTM3U\n#EXT-X-TARGETDURATION:1\n" + "".join(f"#EXTINF:0.8,\n{p}\n" for p in places) + "#EXT-X-ENDLIST\n"


def tar(path: Path, *members: tuple[str, dict]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, values in members:
            member = tarfile.TarInfo(name)
            for key, value in values.items():
                setattr(member, key, value)
            file.addfile(member)
    return path
