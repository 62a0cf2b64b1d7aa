"""Fetches torchvision's public weights, and says where they are kept and whether they can be had."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import socket
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from softpool3d.datasets.video.remote import web
from softpool3d.errors import WorkError

OFFLINE = "SOFTPOOL3D_OFFLINE"
_PATIENCE_S = 5.0  # for a server that does not answer, of which nobody asked for anything by name
_STALLED_S = 60.0  # without a byte, while a file is fetched


def is_offline() -> bool:
    return os.environ.get(OFFLINE, "") not in ("", "0")


def kept_at(published: Any) -> Path:
    """Returns where torch keeps the file of weights of torchvision, whether it is there or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / published.url.rpartition("/")[2]


def obstacle(published: Any) -> str:
    """Returns why weights of torchvision cannot be had here; "" if they are kept here or their server answers."""
    if kept_at(published).is_file():
        return ""
    if is_offline():
        return f"{OFFLINE} is set"
    try:
        with web().open(urllib.request.Request(published.url, method="HEAD"), timeout=_PATIENCE_S):
            return ""
    except (OSError, http.client.HTTPException) as error:
        return f"{urlsplit(published.url).netloc} cannot be reached: {getattr(error, 'reason', None) or error}"


def fetch(published: Any) -> dict[str, Tensor]:
    """Returns the state dict of weights of torchvision, from torch's folder or its server.

    Raises:
        WorkError: if they cannot be had, or their file is damaged.
    """
    path = kept_at(published)
    if path.is_file():
        _check(path)
    elif is_offline():
        raise WorkError(
            f"weights: {OFFLINE} is set, and {path} is not there; unset it to fetch {published.url} "
            f"({size_mb(published)} MB), or copy the file there"
        )
    try:
        # torch says on stdout that it downloads, where results go
        with redirect_stdout(sys.stderr), _impatient_sockets(_STALLED_S):
            return published.get_state_dict(progress=True, check_hash=True)
    except (OSError, http.client.HTTPException) as error:
        raise WorkError(
            f"weights: cannot fetch {published.url} into {path.parent} ({error}); give a file instead"
        ) from None
    except RuntimeError as error:
        if "hash" not in str(error):
            raise
        raise WorkError(
            f"weights: what {published.url} sent is not the file of that name ({error}): the transfer may have been "
            "cut off; nothing of it was kept, so try again"
        ) from None


@contextmanager
def _impatient_sockets(seconds: float) -> Iterator[None]:
    """Has sockets time out that give none: torch opens its own, and waits for a silent server for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def size_mb(published: Any) -> int:
    return round(published.meta["_file_size"])


def _check(path: Path) -> None:
    """Raises WorkError if a file's SHA-256 does not begin as its name says, which is how torch names them."""
    named = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if not named:
        return
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    found = digest.hexdigest()
    if not found.startswith(named[1]):
        raise WorkError(
            f"weights: {path} is damaged: its SHA-256 begins with {found[:8]} and not with {named[1]}; delete it, and "
            "it is fetched again"
        )
