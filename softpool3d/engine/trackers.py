"""Where else a run's scalars go, by way of accelerate: Weights & Biases, MLflow, ... (train.trackers)."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from softpool3d.config import Config
from softpool3d.errors import UsageError, WorkError
from softpool3d.files import write_atomically

FILE = "trackers.json"  # in the run's folder: what trackers call it, so that it goes on as one run there
_PACKAGES = {"mlflow": ("mlflow", "mlflow-skinny")}


def check_trackers(config: Config) -> None:
    """
    Raises:
        UsageError: for a tracker whose package is not installed.
    """
    for name in config.train.trackers:
        # not by looking for a module: any folder of that name would be one, and wandb leaves such folders
        if not any(map(_installed, _PACKAGES.get(name, (name,)))):
            raise UsageError(f"train.trackers: {name} is not installed here; pip install {name.replace('_', '-')}")


def start_trackers(folder: Path, config: Config, accelerator: Accelerator) -> None:
    """On the first process alone.

    Raises:
        WorkError: if one does not start, for want of an account or a network.
    """
    if not config.train.trackers:
        return
    path = folder / FILE
    ids = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings: dict[str, dict[str, Any]] = {
        "wandb": {"name": folder.name, "dir": str(folder)},
        "mlflow": {"run_name": folder.name},
        "clearml": {"task_name": folder.name},
    }
    for name, known in ids.items():
        key = {"wandb": "id", "mlflow": "run_id", "aim": "run_hash"}[name]
        settings[name] = settings.get(name, {}) | {key: known} | ({"resume": "allow"} if name == "wandb" else {})
    # what trackers cannot store goes as text
    plain = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in config.flat().items()}
    try:
        accelerator.init_trackers("softpool3d", plain, settings)
    except Exception as error:  # each library has errors of its own
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise WorkError(
            f"train.trackers={','.join(config.train.trackers)}: {reason}; log in there, have it work offline "
            "(WANDB_MODE=offline), or leave it out with train.trackers=[]"
        ) from None
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            ids["wandb"] = tracker.tracker.id
        elif tracker.name == "mlflow":
            ids["mlflow"] = tracker.tracker.info.run_id
        elif tracker.name == "aim":
            ids["aim"] = tracker.tracker.hash
    if ids:
        write_atomically(path, json.dumps(ids).encode())


def _installed(package: str) -> bool:
    try:
        metadata(package)
    except PackageNotFoundError:
        return False
    return True
