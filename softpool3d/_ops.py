"""The compiled library: finds and loads it, and says what it found."""

from functools import cache
from pathlib import Path

import torch

REMEDY = "build it with `pip install --no-build-isolation -e .` in the source tree (needs g++)"


@cache
def build_info() -> dict:
    """What is compiled: {"cpu": {"path", "loaded", "why", "remedy"}, "cuda": ...}."""
    info = {"path": None, "loaded": False, "why": "not built", "remedy": REMEDY}
    for path in sorted(Path(__file__).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(path)
            info = {"path": str(path), "loaded": True, "why": None, "remedy": None}
        except OSError as error:
            info = {"path": str(path), "loaded": False, "why": str(error), "remedy": REMEDY}
    return {"cpu": info}
