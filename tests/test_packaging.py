"""The wheel: what is in it, what it asks of a system, and that it works where nothing else of the project is."""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OLDEST_TORCH = "2.11.0"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """What `make wheel` makes, without the CUDA library: compiling that takes minutes, and it has tests of its own."""
    source = tmp_path_factory.mktemp("source") / "tree"
    subprocess.run(["git", "clone", "-q", ROOT, source], check=True)  # so that no build product lands in the tree
    env = {**os.environ, "SOFTPOOL3D_CUDA": "0"}
    command = ["make", "-C", source, "wheel", f"VENV={sys.prefix}", "--assume-old=env"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (source / "dist").glob("*.whl")
    return path


def test_it_holds_softpool3d_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"softpool3d"}
    for part in (
        "softpool3d/models/r3d.py",
        "softpool3d/models/pools/soft.py",
        "softpool3d/datasets/sources/motion.py",
        "softpool3d/tools/train.py",
        "softpool3d/configs/r3d_softpool.yaml",
        "softpool3d/weights/x3d_xs_motion.safetensors",
        "softpool3d/visual/report.html",
        "softpool3d/py.typed",
    ):
        assert part in names
    assert [name for name in names if name.startswith("softpool3d/_C") and name.endswith(".so")]
    assert not [name for name in names if "bench" in name or name.endswith(("/demo.py", "/ship.py"))]
    for folder in ("softpool3d", "datasets", "models", "tools"):  # every room of them: setup.py lists those by name
        inside = "" if folder == "softpool3d" else "softpool3d/"
        for path in (ROOT / folder).rglob("*.py"):
            assert f"{inside}{path.relative_to(ROOT)}" in names


def test_one_wheel_for_every_python_and_the_systems_of_eight_years(wheel):
    """PyPI takes it; auditwheel has looked at the versions of glibc's and libstdc++'s symbols."""
    assert "-py3-none-" in wheel.name and f"manylinux_2_28_{platform.machine()}" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if "libtorch" in name or "libc10" in name or ".libs/" in name]


CODE = """
import softpool3d, sys, torch
from softpool3d import soft_pool3d
from softpool3d.ops import library
from softpool3d.ops.reference import soft_pool3d_reference
assert softpool3d.__file__.startswith(sys.prefix), softpool3d.__file__
assert library.build_info()["cpu"]["loaded"], library.build_info()
x = torch.randn(2, 3, 4, 7, 9, requires_grad=True)
y, truth = soft_pool3d(x, 2), soft_pool3d_reference(x, *[(2, 2, 2)] * 2, (0, 0, 0), (1, 1, 1))
torch.testing.assert_close(y, truth)
(g,), (g_truth,) = (torch.autograd.grad(z.square().sum(), x) for z in (y, truth))
torch.testing.assert_close(g, g_truth)
print(torch.__version__, sys.version)
"""


def installed(wheel: Path, environment: Path, python: str) -> Path:
    """A new environment's Python, with the wheel and nothing else."""
    subprocess.run([python, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    return python


def site(python: Path) -> Path:
    return Path(output(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())


def test_it_works_in_an_environment_of_its_own(wheel, tmp_path):
    """It sees this environment's dependencies, but not this source tree."""
    python = installed(wheel, tmp_path / "env", sys.executable)
    # a .pth line adds the folder, without running the .pth files in it: those of the editable install stay out
    (site(python) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    output(python, "-c", CODE, cwd=tmp_path)
    command = python.with_name("softpool3d")
    assert output(command, "--version").startswith("softpool3d ")
    printed = output(command, "train", "--cfg", "x3d_softpool", "--print-config", cwd=tmp_path)
    assert "name: x3d_xs" in printed


def test_without_a_library_the_reference_runs(wheel, tmp_path):
    """As on a platform for which none is compiled."""
    python = installed(wheel, tmp_path / "env", sys.executable)
    (site(python) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site(python) / "softpool3d" / "_C.so").unlink()
    code = (
        "import torch, softpool3d as s; x = torch.ones(1, 1, 2, 2, 2); print(s.backend(x), s.SoftPool3d(2)(x).item())"
    )
    assert output(python, "-c", code, cwd=tmp_path).split() == ["reference", "1.0"]


def another_python() -> str | None:
    """A Python of another minor version than this one."""
    pyenv = map(str, (Path.home() / ".pyenv/versions").glob("*/bin"))  # before the stand-ins that it has on PATH
    path = os.pathsep.join([*pyenv, os.environ["PATH"]])
    for minor in {11, 12, 13, 14} - {sys.version_info.minor}:
        found = shutil.which(f"python3.{minor}", path=path)
        if found and subprocess.run([found, "-c", "import ensurepip, venv"], capture_output=True).returncode == 0:
            return found
    return None


def test_the_oldest_torch_loads_the_same_file_and_compiles_the_sources(wheel, tmp_path, request):
    """With another Python, where there is one."""
    if not request.config.getoption("--gate"):
        pytest.skip(f"fetches torch {OLDEST_TORCH} (half a GB): run by .ci/run, or with --gate")
    python = installed(wheel, tmp_path / "env", another_python() or sys.executable)
    # NVIDIA's libraries, which are most of what torch needs, are those of this environment
    fetch = ["-m", "pip", "install", "-q"]
    output(python, *fetch, "--no-deps", f"torch=={OLDEST_TORCH}")
    output(python, *fetch, "filelock", "typing-extensions", "sympy", "networkx", "jinja2", "fsspec")
    nvidia = Path(sysconfig.get_path("purelib")) / "nvidia"
    if nvidia.exists():
        (site(python) / "nvidia").symlink_to(nvidia)
    assert output(python, "-c", CODE, cwd=tmp_path).startswith(f"{OLDEST_TORCH}")
    headers = site(python) / "torch" / "include"
    for source in ("register.cpp", "soft_pool_cpu.cpp"):  # the others know nothing of torch
        output("c++", "-std=c++20", "-fsyntax-only", "-isystem", headers, ROOT / "cuda_ext" / source)
    if shutil.which("nvcc"):
        read_by_nvcc(ROOT / "cuda_ext" / "soft_pool_cuda.cu", headers, tmp_path)


def read_by_nvcc(source: Path, headers: Path, folder: Path) -> None:
    """Runs nvcc's first two steps, which find unknown names in a second; the others take a minute for the kernels."""
    told = ["-std=c++20", "-DUSE_CUDA", '-DSOFTPOOL_TARGETS="sm_90"', "-isystem", headers]
    command = ["nvcc", "--dryrun", "--keep", "-cuda", *told, source, "-o", "out"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    lines = [line.removeprefix("#$ ") for line in said.splitlines()]
    (here,) = [line.removeprefix("_HERE_=") for line in lines if line.startswith("_HERE_=")]
    read, check = [line for line in lines if line.startswith(("gcc ", "cudafe++ "))][:2]
    env = {**os.environ, "PATH": f"{here}{os.pathsep}{os.environ['PATH']}"}
    for step in (read, check):
        done = subprocess.run(step, shell=True, capture_output=True, text=True, cwd=folder, env=env)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("target", ["env", "demo"])
def test_make_says_that_a_python_is_too_old(target, tmp_path):
    old = tmp_path / "python3.10"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 10, 12); $2"\n')
    old.chmod(0o755)
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "-C", ROOT, target, f"PYTHON={old}", f"VENV={tmp_path / 'env'}"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode and f"needs Python 3.11 or newer, and {old} is older" in done.stderr
    assert not (tmp_path / "env" / "bin").exists()


def output(*command, cwd=None) -> str:
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout
