"""What setup.py decides about compilers and the CUDA library, and that the library it built answers."""

import re
import runpy
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
import torch

from softpool3d.ops import fit, library

SETUP = Path(__file__).parents[2] / "setup.py"


def script(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def nvcc(tmp_path, monkeypatch):
    """A machine whose nvcc knows no GPU later than Hopper; it notes its calls, and makes an empty library."""
    known = r"compute_75\ncompute_80\ncompute_86\ncompute_90\n"
    text = f"[ $1 = --list-gpu-arch ] && exec printf '{known}'\necho \"$*\" >> {tmp_path}/calls\ntouch $3"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    for name in ("SOFTPOOL3D_CUDA", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return script(tmp_path / "bin" / "nvcc", text)


def run_setup(monkeypatch) -> dict:
    """setup.py's names, and as "built" the extensions that it hands to setuptools."""
    handed = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: handed.update(arguments))
    names = runpy.run_path(str(SETUP))
    return {**names, "built": [extension.name for extension in handed["ext_modules"]]}


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Builds the CUDA library alone, and returns the lines with which nvcc was called until now."""

    def run():
        monkeypatch.chdir(SETUP.parent)
        names = run_setup(monkeypatch)
        command = names["Build"](setuptools.Distribution({"name": "it", "ext_modules": [names["CUDA_LIBRARY"]]}))
        command.build_lib, command.build_temp = str(tmp_path / "lib"), str(tmp_path / "temp")
        command.ensure_finalized()
        command.run()
        return (tmp_path / "calls").read_text().splitlines()

    return run


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
    assert run_setup(monkeypatch)["architectures"](nvcc) == expected


def test_what_is_no_architecture_is_an_error(nvcc, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0;Hopper")
    with pytest.raises(SystemExit, match="'Hopper' is not a version like"):
        run_setup(monkeypatch)["architectures"](nvcc)


def test_what_is_compiled_and_how_to_shorten_it_is_said(nvcc, build, capsys):
    (call,) = build()
    assert "-gencode=arch=compute_86,code=sm_86 -gencode=arch=compute_90,code=sm_90" in call
    assert '-DSOFTPOOL_TARGETS="sm_75 sm_80 sm_86 sm_90 compute_90"' in call and "--threads 0" in call
    said = capsys.readouterr().err
    for text in ("4 architectures (75, 80, 86, 90)", "a minute", "TORCH_CUDA_ARCH_LIST=9.0", "SOFTPOOL3D_CUDA=0"):
        assert text in said


def test_other_architectures_compile_again(nvcc, build, monkeypatch):
    build()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    assert "code=sm_80" in build()[1]


def test_pip_does_not_swallow_what_is_said(tmp_path):
    """pip keeps what a build prints; a terminal, where there is one, gets it all the same."""
    code = f"import runpy, setuptools; setuptools.setup = lambda **_: 0; runpy.run_path({str(SETUP)!r})['say']('seven')"
    child = [sys.executable, "-c", f"import sys; sys.stderr = open({str(tmp_path / 'kept')!r}, 'w'); {code}"]
    terminal = [sys.executable, "-c", f"import pty; pty.spawn({child!r})"]
    done = subprocess.run(terminal, capture_output=True, text=True, cwd=SETUP.parent, stdin=subprocess.DEVNULL)
    assert (tmp_path / "kept").read_text().endswith("seven\n")
    assert "seven" in done.stdout, done.stderr


def test_nvcc_takes_the_compiler_that_cxx_names(nvcc, build, monkeypatch):
    assert "-ccbin" not in build()[-1]
    monkeypatch.setenv("CXX", "g++")
    assert "-ccbin g++ " in build()[-1]


def test_max_jobs(nvcc, build, monkeypatch):
    monkeypatch.setenv("MAX_JOBS", "3")
    assert "--threads 3 " in build()[0]
    for wrong in ("0", "many"):
        monkeypatch.setenv("MAX_JOBS", wrong)
        with pytest.raises(SystemExit, match=f"MAX_JOBS must be a whole number above 0, but is '{wrong}'"):
            build()


def test_nvcc_that_fails_costs_the_cuda_library(nvcc, build, monkeypatch, tmp_path, capsys):
    library = tmp_path / "lib" / "softpool3d" / "_C_cuda.so"
    build()
    assert library.exists()
    script(Path(nvcc), f"echo called >> {tmp_path}/calls; exit 1")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    assert build()[-1] == "called"
    assert (
        "warning: nvcc did not compile the CUDA library, so softpool3d is installed without" in capsys.readouterr().err
    )
    assert not library.exists()  # what was built before is no longer what was asked for
    monkeypatch.setenv("SOFTPOOL3D_CUDA", "1")
    with pytest.raises(SystemExit, match="SOFTPOOL3D_CUDA=1, but nvcc did not compile"):
        build()


def test_nvcc_that_answers_nothing_fails_likewise(nvcc, build, tmp_path, capsys):
    script(Path(nvcc), f"echo called >> {tmp_path}/calls; exit 1")
    build()
    assert "warning: nvcc did not compile" in capsys.readouterr().err


@pytest.mark.parametrize(
    "answer, said",
    [
        (
            "9 __clang_major__",
            r"needs g\+\+ 11 or clang 14, or a newer one, but .*/cxx is g\+\+ 9; name a newer one as",
        ),
        ("4 13", "is clang 13; name a newer one as in CXX="),
        ("11 __clang_major__", None),
        ("4 14", None),
    ],
)
def test_compilers_that_are_too_old_are_named_first(nvcc, monkeypatch, tmp_path, answer, said):
    monkeypatch.setenv("CXX", script(tmp_path / "cxx", f"echo {answer}"))
    check = run_setup(monkeypatch)["check_compiler"]
    if said is None:
        return check()
    with pytest.raises(SystemExit, match=said):
        check()


def test_a_compiler_that_is_missing_is_named(nvcc, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit, match="there is no working no-such-compiler; install one, or name yours"):
        run_setup(monkeypatch)["check_compiler"]()


def test_windows_goes_without(nvcc, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert run_setup(monkeypatch)["built"] == []


def test_the_library_says_what_it_was_built_for():
    cuda = library.build_info()["cuda"]
    if cuda["path"] is None:
        pytest.skip("installed without the CUDA library (no nvcc, or SOFTPOOL3D_CUDA=0)")
    version, targets = fit.built_for(cuda["path"])
    assert version >= 12000 and targets
    assert all(re.fullmatch(r"(sm|compute)_\d+[af]?", target) for target in targets)


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_no_library_needs_a_glibc_after_2_17(name):
    """So that the wheel is manylinux_2_28 at most; a system's symbols are named in the file with their versions."""
    path = library.build_info()[name]["path"]
    if path is None:
        pytest.skip("installed without the CUDA library (no nvcc, or SOFTPOOL3D_CUDA=0)")
    versions = re.findall(rb"\0GLIBC_(\d+)\.(\d+)", Path(path).read_bytes())
    assert versions and max(tuple(map(int, version)) for version in versions) <= (2, 17)


def test_the_library_answers_for_cuda():
    """Built by the install, GPU or not, it loads beside this torch and has a kernel for each operator."""
    cuda = library.build_info()["cuda"]
    if cuda["path"] is None:
        pytest.skip("installed without the CUDA library (no nvcc, or SOFTPOOL3D_CUDA=0)")
    assert cuda["loaded"], cuda["why"]
    for name in ("soft_pool3d", "adaptive_soft_pool3d"):
        for operator in (f"softpool3d::{name}", f"softpool3d::{name}_backward"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(operator, "CUDA")
