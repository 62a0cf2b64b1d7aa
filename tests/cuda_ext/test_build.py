"""What setup.py decides about the CUDA library, and that the library it built answers."""

import runpy
import shutil
import stat
from pathlib import Path

import pytest
import setuptools
import torch

from softpool3d.ops import library

SETUP = Path(__file__).parents[2] / "setup.py"


@pytest.fixture
def nvcc(tmp_path, monkeypatch):
    """A machine whose nvcc knows no GPU later than Hopper."""
    path = tmp_path / "bin" / "nvcc"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\nprintf 'compute_75\\ncompute_80\\ncompute_86\\ncompute_90\\n'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("SOFTPOOL3D_CUDA", raising=False)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return str(path)


def run_setup(monkeypatch) -> dict:
    """setup.py's names, and as "built" the extensions that it hands to setuptools."""
    handed = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: handed.update(arguments))
    names = runpy.run_path(str(SETUP))
    return {**names, "built": [extension.name for extension in handed["ext_modules"]]}


def test_built_where_nvcc_is(nvcc, monkeypatch):
    names = run_setup(monkeypatch)
    assert names["NVCC"] == nvcc
    assert names["built"] == ["softpool3d._C_cuda", "softpool3d._C"]


def test_0_forbids(nvcc, monkeypatch):
    monkeypatch.setenv("SOFTPOOL3D_CUDA", "0")
    assert run_setup(monkeypatch)["built"] == ["softpool3d._C"]


@pytest.mark.parametrize("wish", [None, "1"])
@pytest.mark.parametrize("lacking", ["nvcc", "CUDA in torch"])
def test_1_insists(nvcc, monkeypatch, lacking, wish):
    if lacking == "nvcc":
        monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    else:
        monkeypatch.setattr(torch.version, "cuda", None)
    if wish is None:
        assert run_setup(monkeypatch)["built"] == ["softpool3d._C"]
        return
    monkeypatch.setenv("SOFTPOOL3D_CUDA", wish)
    with pytest.raises(SystemExit, match="SOFTPOOL3D_CUDA=1, but .*(no nvcc|without CUDA)"):
        run_setup(monkeypatch)


def test_other_wishes_are_errors(nvcc, monkeypatch):
    monkeypatch.setenv("SOFTPOOL3D_CUDA", "yes")
    with pytest.raises(SystemExit, match="must be 0 or 1, but is 'yes'"):
        run_setup(monkeypatch)


@pytest.mark.parametrize(
    "wish, expected",
    [
        (None, ["sm_75", "sm_80", "sm_86", "sm_90", "compute_90"]),
        ("", ["sm_75", "sm_80", "sm_86", "sm_90", "compute_90"]),
        ("9.0", ["sm_90"]),
        ("8.0;9.0a+PTX", ["sm_80", "sm_90a", "compute_90a"]),
        ("8.0 12.0 ", ["sm_80", "sm_120"]),
    ],
)
def test_architectures(nvcc, monkeypatch, wish, expected):
    if wish is not None:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wish)
    flags = run_setup(monkeypatch)["architecture_flags"](nvcc)
    assert [flag.split("code=")[-1] for flag in flags] == expected


def test_what_is_no_architecture_is_an_error(nvcc, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0;Hopper")
    with pytest.raises(SystemExit, match="'Hopper' is not a version like"):
        run_setup(monkeypatch)["architecture_flags"](nvcc)


def test_the_library_answers_for_cuda():
    """Built by the install, GPU or not, it loads beside this torch and has a kernel for each operator."""
    cuda = library.build_info()["cuda"]
    if cuda["path"] is None:
        pytest.skip("installed without the CUDA library (no nvcc, or SOFTPOOL3D_CUDA=0)")
    assert cuda["loaded"], cuda["why"]
    for name in ("soft_pool3d", "adaptive_soft_pool3d"):
        for operator in (f"softpool3d::{name}", f"softpool3d::{name}_backward"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(operator, "CUDA")
