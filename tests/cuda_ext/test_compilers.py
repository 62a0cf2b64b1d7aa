"""The CPU library by the compilers that users have: the oldest g++ and a clang, beside the g++ that built the package.

Each compiles the library's sources with setup.py's own flags, and cpu_sweep.py compares every level that this processor
has with the plain PyTorch definition.
"""

import os
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import setuptools
import torch

from softpool3d.ops.library import build_info

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LEVELS = ["portable", "AVX2", "AVX-512"]
# .ci/run installs both where apt can
COMPILERS = {"g++-11": ["g++-11"], "clang": ["clang++", *(f"clang++-{version}" for version in range(18, 13, -1))]}


def found(name: str) -> str:
    compiler = next(filter(None, map(shutil.which, COMPILERS[name])), None)
    if compiler is None:
        pytest.skip(f"this machine has no {name}")
    return compiler


def cpu_extension(monkeypatch):
    """The CPU library as setup.py hands it to setuptools."""
    handed = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: handed.update(arguments))
    monkeypatch.setenv("SOFTPOOL3D_CUDA", "0")
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    (extension,) = handed["ext_modules"]
    return extension


@pytest.mark.parametrize("name", COMPILERS)
def test_every_level_equals_the_definition(name, tmp_path, monkeypatch):
    compiler, extension = found(name), cpu_extension(monkeypatch)
    flags = [*extension.extra_compile_args["cxx"], "-fPIC", "-Werror", "-Wno-deprecated-declarations"]
    headers = [f"-isystem{folder}" for folder in extension.include_dirs]  # torch's; nothing of Python's

    def compiled(source: str) -> Path:
        to = tmp_path / f"{Path(source).stem}.o"
        subprocess.run([compiler, *flags, *headers, "-c", source, "-o", to], check=True)
        return to

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, extension.sources))
    library = tmp_path / "library.so"
    folder = Path(torch.__file__).parent / "lib"
    subprocess.run([compiler, "-shared", *objects, "-o", library, f"-L{folder}", "-lc10", "-ltorch_cpu"], check=True)
    sweep = [sys.executable, HERE / "cpu_sweep.py", library, "20211011", "30"]
    done = subprocess.run(sweep, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-8000:]
    levels = list(range(LEVELS.index(build_info()["cpu"]["level"]) + 1))
    assert f"levels {levels}:" in done.stdout
