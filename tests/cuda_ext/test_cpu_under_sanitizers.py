"""The CPU operators, tiling and kernels of every level that this processor has, run under AddressSanitizer and UBSan.

Memory of tensors, of scratch and of each buffer in it ends in a redzone, so that a wrong index is seen where it is
used, not where its number happens to matter. cpu_sweep.py says what is run.
"""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from softpool3d.ops.library import build_info

HERE = Path(__file__).parent
SOURCES = HERE.parent.parent / "cuda_ext"
COMPILER = os.environ.get("CXX", "g++")
FILES = ["cpu_portable.cpp", "cpu_avx2.cpp", "cpu_avx512.cpp", "soft_pool_cpu.cpp", "register.cpp"]
LEVELS = ["portable", "AVX2", "AVX-512"]

# Checks of null and of objects' sizes double the time to compile, and find nothing that redzones do not.
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize=null,nonnull-attribute,object-size"]
SANITIZERS += ["-fno-sanitize-recover=all", "--param", "asan-instrumentation-with-call-threshold=0"]


def runtime(name: str) -> str | None:
    """Where g++ keeps a sanitizer's library; None where it has none."""
    if shutil.which(COMPILER) is None:
        return None
    path = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    return path if Path(path).is_absolute() else None


RUNTIMES = [runtime("libasan.so"), runtime("libubsan.so")]

pytestmark = pytest.mark.skipif(None in RUNTIMES, reason=f"needs {COMPILER} with libasan and libubsan")


def compile_one(folder: Path, name: str, sanitize: bool) -> Path | str:
    """The object file, or what the compiler said."""
    to = folder / Path(name).with_suffix(".o")
    headers = Path(torch.__file__).parent / "include"
    command = [COMPILER, "-std=c++20", "-O0", "-g1", "-fPIC", "-ffp-contract=fast", "-fvisibility=hidden", "-Wno-psabi"]
    command += ["-DTORCH_TARGET_VERSION=0x020b000000000000"]  # as in setup.py
    command += SANITIZERS if sanitize else []
    command += ["-isystem", str(headers), "-isystem", str(headers / "torch/csrc/api/include")]
    command += ["-c", str(SOURCES / name), "-o", str(to)]
    done = subprocess.run(command, capture_output=True, text=True)
    return to if done.returncode == 0 else done.stderr


def test_cpu_operators_under_sanitizers_equal_the_definition(tmp_path):
    levels = LEVELS[: LEVELS.index(build_info()["cpu"]["level"]) + 1]
    # the slowest first; kernels that this processor cannot run have to be there, and that is all
    absent = [file for file, level in zip(FILES, LEVELS, strict=False) if level not in levels]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda file: compile_one(tmp_path, file, file not in absent), FILES))
    assert all(isinstance(one, Path) for one in objects), objects
    library = tmp_path / "sanitized.so"
    libraries = Path(torch.__file__).parent / "lib"
    command = [COMPILER, "-shared", SANITIZERS[0], *map(str, objects), "-o", str(library), f"-L{libraries}"]
    subprocess.run([*command, "-lc10", "-ltorch_cpu"], check=True)
    done = subprocess.run(
        [sys.executable, HERE / "cpu_sweep.py", library, "20211011", "30"],
        capture_output=True,
        text=True,
        env={**os.environ, "LD_PRELOAD": " ".join(RUNTIMES), "ASAN_OPTIONS": "detect_leaks=0"},  # Python's are not ours
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-8000:]
    assert f"levels {list(range(len(levels)))}:" in done.stdout
