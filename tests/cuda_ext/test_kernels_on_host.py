"""The CUDA kernels, compiled by the host's compiler and run under sanitizers against loops of the definition.

So a machine without a GPU still catches a wrong index (AddressSanitizer: every tensor ends where its memory
ends, and so does shared memory), undefined arithmetic (UBSan) and a missing __syncthreads (ThreadSanitizer).
"""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
SOURCES = HERE.parent.parent / "cuda_ext"
COMPILER = os.environ.get("CXX", "g++")

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"needs {COMPILER}")

# dtype in C++, sanitizers, random cases; threads are dear under ThreadSanitizer
BUILDS = {
    "float32": ("float", "address,undefined", 320),
    "bfloat16": ("torch::headeronly::BFloat16", "address,alignment", 320),
    "float64": ("double", "address,undefined", 150),
    "float32-races": ("float", "thread", 24),
}


def compile_host_test(folder: Path, name: str) -> Path | str:
    """The program, or what the compiler said."""
    dtype, sanitizers, _ = BUILDS[name]
    program = folder / name
    headers = Path(torch.__file__).parent / "include"
    command = [COMPILER, "-std=c++20", "-O1", "-g1", "-rdynamic", "-Wall", "-Werror", "-Wno-unknown-pragmas"]
    command += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", f"-DSOFTPOOL_TEST_TYPE={dtype}"]
    command += [f"-I{SOURCES}", f"-I{HERE}", "-isystem", str(headers)]
    command += [str(HERE / "host_test.cpp"), "-o", str(program), "-pthread", "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    return program if done.returncode == 0 else done.stderr


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> dict[str, Path | str]:
    folder = tmp_path_factory.mktemp("host_test")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(BUILDS, pool.map(lambda name: compile_host_test(folder, name), BUILDS), strict=True))


def kernels_run(output: str) -> set[str]:
    """Names with their template arguments, without the namespaces and the dtype."""
    names = re.findall(r"^\d+ (?:void )?(.*?)\((?!anonymous)", output, re.M)
    names = [re.sub(r"(softpool3d|cuda|torch|headeronly|c10)::", "", name) for name in names]
    return {re.sub(r"<(float|double|BFloat16)(, )?", "<", name).replace(" >", ">") for name in names}


@pytest.mark.parametrize("build", BUILDS)
def test_kernels_equal_the_definition(programs, build):
    assert isinstance(programs[build], Path), programs[build]
    cases = BUILDS[build][2]
    done = subprocess.run([programs[build], "20211011", str(cases)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    if cases < 100:
        return
    # Every kernel that a GPU may run was among them.
    wide = {"float32": 4, "bfloat16": 8, "float64": 2}[build]
    wanted = {"sum_shares<>", "merge_segments<int>", "merge_segments<long>"}
    for index, v in (("int", 1), ("int", wide), ("long", 1)):
        wanted |= {f"forward_windows<{index}, {v}, Any>", f"beta_shares<{index}, {v}>"}
        # Over an inner dimension, and across windows without one; squares for a learned beta.
        wanted |= {f"reduce_windows<{index}, {v}, false, false, {squares}>" for squares in ("true", "false")}
        wanted |= {f"reduce_windows<{index}, {v}, true, false, true>", f"spread_gradient<{index}, {v}, false, false>"}
        wanted |= {f"backward_gather<{index}, {v}, {ready}>" for ready in ("true", "false")}
    for index in ("int", "long"):
        wanted |= {f"reduce_windows<{index}, 1, true, false, false>", f"spread_gradient<{index}, 1, true, false>"}
    for v, across in ((1, "true"), (wide, "true"), (wide, "false")):
        wanted |= {f"reduce_windows<int, {v}, {across}, true, false>", f"spread_gradient<int, {v}, {across}, true>"}
    wanted |= {f"backward_windows<int, {v}, Any>" for v in (1, wide)}
    if build != "float64":
        two, one_two, one_three = "Fixed<2, 2, 2>", "Fixed<1, 2, 2>", "Fixed<1, 3, 3>"
        for v in (1, wide):
            wanted |= {f"{way}_windows<int, {v}, {one_two}>" for way in ("forward", "backward")}
            wanted |= {f"forward_windows<int, {v}, {two}>"}
        for v in (1, 4):
            wanted |= {f"forward_windows<int, {v}, {one_three}>", f"backward_windows<int, {v}, {two}>"}
        wanted |= {"forward_windows<int, 1, Fixed<3, 3, 3>>"}
        wanted |= {f"{way}_windows<int, {wide}, Fixed<2, 1, 1>>" for way in ("forward", "backward")}
        for kernel in (1, 2):
            wanted |= {f"{way}_windows<int, {wide // 2}, Rows<{kernel}, 2, 2>>" for way in ("forward", "backward")}
        one, halved, same = "Along<1, 1, 0>", "Along<3, 2, 1>", "Along<3, 1, 1>"
        for along in (f"{one}, {halved}, {halved}", f"{halved}, {halved}, {halved}", f"{same}, {same}, {same}"):
            for beside in ("Inner<1>", "Inner<2>", "Row", "WideRow"):
                wanted |= {f"{way}_overlap<Overlap<{along}, {beside}>>" for way in ("forward", "backward")}
    assert kernels_run(done.stdout) == wanted
