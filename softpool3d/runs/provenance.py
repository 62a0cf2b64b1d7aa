"""Where a run comes from: the command, the code, the libraries, the machine and the data, in its folder's run.json."""

from __future__ import annotations

import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from softpool3d import __version__
from softpool3d.datasets.manifest import Manifest
from softpool3d.files import write_atomically
from softpool3d.foreign import parse_json
from softpool3d.requirements import version_of

FILE = "run.json"
_LIBRARIES = (
    *("torch", "torchvision", "pytorchvideo", "accelerate", "torchmetrics", "safetensors", "av", "decord", "numpy"),
    *("timm", "pillow"),
)


def write_provenance(folder: Path, manifests: dict[str, Manifest], accelerator: Accelerator) -> None:
    """Adds an entry to the run's run.json; called each time that the run is started or resumed."""
    path = folder / FILE
    try:
        entries = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        entries = []
    entries.append(
        {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join(sys.argv),
            "working_directory": os.getcwd(),
            "git": _git(),
            "versions": {"softpool3d": __version__, "python": platform.python_version()} | _versions(),
            "machine": _machine(accelerator),
            "data": {split: _data(manifest) for split, manifest in manifests.items()},
        }
    )
    write_atomically(path, json.dumps(entries, indent=2, ensure_ascii=False).encode(errors="surrogateescape"))


def _git() -> dict[str, Any] | None:
    """Returns the commit of the code that runs, or else of the folder that it was started in; None without one."""
    for folder in (Path(__file__).parents[1], Path.cwd()):
        try:
            commit, changes = (
                subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
                for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
            )
        except (OSError, subprocess.SubprocessError):
            continue
        changed = [line[3:] for line in changes.stdout.splitlines()]
        return {"commit": commit.stdout.strip(), "changed_files": changed}
    return None


def _versions() -> dict[str, str]:
    versions = {library: version_of(library) for library in _LIBRARIES}
    return {library: version for library, version in versions.items() if version}


def _machine(accelerator: Accelerator) -> dict[str, Any]:
    device = accelerator.device
    machine: dict[str, Any] = {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "processes": accelerator.num_processes,
    }
    if device.type == "cuda":
        machine |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return machine


def _data(manifest: Manifest) -> dict[str, Any]:
    counts = manifest.class_counts()
    return {
        "source": manifest.source,
        "clips": len(manifest),
        "missing": len(manifest.missing),
        "classes": len(manifest.classes),
        "clips_per_class": {"fewest": int(counts.min()), "most": int(counts.max())},
        "several_labels": manifest.multi_label,
    }
