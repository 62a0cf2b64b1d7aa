"""The folder of a test: which test it belongs to, and what an interrupted test left there."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import torch

from softpool3d import __version__
from softpool3d.config import Config, Effect, has_effect
from softpool3d.datasets.manifest import Manifest
from softpool3d.errors import UsageError
from softpool3d.evaluation.evaluator import joined
from softpool3d.evaluation.results import RESULTS
from softpool3d.evaluation.scores import Scores, video_names
from softpool3d.evaluation.subject import Subject
from softpool3d.files import write_atomically
from softpool3d.runs.lock import Taken, claim


def digest_of(subject: Subject, config: Config, split: str, manifest: Manifest, classes: tuple[str, ...]) -> str:
    """Returns a digest (SHA-256, hexadecimal) of all that the scores depend on."""
    digest = hashlib.sha256()
    for name, tensor in subject.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    settings = {
        "version": __version__,
        "model": config.model.model_dump(),
        "data": {
            key: value for key, value in config.data.model_dump().items() if not has_effect(f"data.{key}", Effect.HOW)
        },
        "test": config.test.model_dump(exclude={"batch_size"}),
        "loss": config.optim.loss,  # it says how logits become probabilities
        "precision": config.train.precision,
        "split": split,
        "classes": classes,
        "videos": video_names(manifest.clips),
        "labels": [clip.label for clip in manifest.clips],
    }
    digest.update(json.dumps(settings).encode())
    return digest.hexdigest()


def claim_folder(
    subject: Subject, split: str, out: Path | None, request: str, overwrite: bool, claims: ExitStack
) -> Path:
    """Claims and returns the folder for the results: one without results, or with those of this request.

    Raises:
        UsageError: if `out` holds the results of another test, unless `overwrite`; or if another process is at work.
    """
    if out is not None:
        claims.enter_context(claim(out, is_folder=True, request=request))
        other = _held(out)
        if other not in (None, request) and not overwrite:
            raise UsageError(f"--out {out} holds the results of another test; name another folder, or give --overwrite")
        return out
    weights = Path(subject.weights)
    base = (weights.parent if weights.is_file() else Path()) / ("test" if split == "test" else f"test-{split}")
    number = 1
    while True:
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        try:
            with ExitStack() as mine:
                mine.enter_context(claim(folder, is_folder=True, request=request))
                if _held(folder) in (None, request):
                    claims.enter_context(mine.pop_all())
                    return folder
        except Taken as taken:
            if taken.owner.get("request") == request:
                raise
        number += 1


def _held(folder: Path) -> str | None:
    """Returns the request whose results, whole or in part, a folder holds; None if it holds none."""
    with suppress(OSError, ValueError, AttributeError):
        return json.loads((folder / RESULTS).read_text(encoding="utf-8")).get("request", "")
    if (folder / RESULTS).is_file():
        return ""
    for path in sorted((folder / "partial").glob("*.npz")):
        part = _load_part(path)
        if part is not None:
            return part[1]
    return None


def save_part(path: Path, scores: Scores, request: str) -> None:
    content = io.BytesIO()
    arrays = {name: getattr(scores, name).numpy() for name in ("probabilities", "label", "index")}
    np.savez(content, request=np.array(request), **arrays)
    write_atomically(path, content.getvalue())


def _load_part(path: Path) -> tuple[Scores, str] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            parts = (torch.from_numpy(file[name]) for name in ("probabilities", "label", "index"))
            return Scores(*parts), str(file["request"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # it was not written by us, or is damaged: those videos are tested again


def take_up(folder: Path, request: str) -> Scores | None:
    """Returns the scores that an interrupted test kept, and replaces its files by one; None if there are none."""
    paths = sorted((folder / "partial").glob("*.npz"))
    parts = [part for path in paths if (part := _load_part(path)) is not None]
    mine = [scores for scores, theirs in parts if theirs == request]
    if not mine:
        return None
    together = joined(mine)
    _, first = np.unique(together.index.numpy(), return_index=True)
    together = Scores(together.probabilities[first], together.label[first], together.index[first])
    save_part(folder / "partial" / "earlier.npz", together, request)
    for path in paths:
        if path.name != "earlier.npz":
            path.unlink(missing_ok=True)
    return together
