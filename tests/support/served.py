"""A server in the place of torchvision's, with random weights under a name that ends with their hash, as theirs do."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from originals import original

from softpool3d.models import public
from softpool3d.models.weights import torchvision_weights


class Server(SimpleHTTPRequestHandler):
    cut_off = False

    def log_message(self, *_):
        pass

    def copyfile(self, source, outputfile):
        content = source.read()
        outputfile.write(content[: len(content) // 2] if self.cut_off else content)


def make_weights(network: str, folder: Path) -> Path:
    """Writes random weights of a network of 400 classes, named by their hash."""
    torch.save(original(network, 400).state_dict(), folder / "weights")
    digest = hashlib.sha256((folder / "weights").read_bytes()).hexdigest()
    return (folder / "weights").rename(folder / f"{network}-{digest[:8]}.pth")


@contextmanager
def served(file: Path, network: str, home: Path, monkeypatch) -> Iterator[object]:
    """Has torchvision's Kinetics weights of a network fetched from a server of this test; yields them."""
    there = torchvision_weights(network, "kinetics400")
    monkeypatch.setenv("TORCH_HOME", str(home))
    monkeypatch.delenv(public.OFFLINE, raising=False)
    before = there.url
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(file.parent))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        set_url(there, f"http://127.0.0.1:{server.server_port}/{file.name}")
        try:
            yield there
        finally:
            set_url(there, before)
            server.shutdown()


def set_url(weights: object, url: str) -> None:
    object.__setattr__(weights.value, "url", url)


def take_away(weights: object) -> None:
    """Has nobody answer where the weights were."""
    set_url(weights, f"http://127.0.0.1:9/{weights.url.rpartition('/')[2]}")
