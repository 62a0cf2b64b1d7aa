"""A CUDA library that fits neither driver nor GPU: torch.cuda's answers are stood in for, as no test has such a GPU."""

import re
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from softpool3d.ops import fit, library

BUILT = (13000, ["sm_75", "sm_80", "sm_90", "compute_90"])


@pytest.fixture
def gpu(monkeypatch):
    """gpu(built, driver, capability): a machine with this library and this GPU."""

    def stand_in(built=BUILT, driver=13000, capability=(8, 0)):
        fit._misfit.cache_clear()
        library.warn_of_reference.cache_clear()
        monkeypatch.setattr(fit, "built_for", lambda path: built)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(fit, "_driver", lambda: driver)

    yield stand_in
    fit._misfit.cache_clear()
    library.warn_of_reference.cache_clear()


@pytest.mark.parametrize(
    "built, driver, capability",
    [
        (BUILT, 13000, (7, 5)),
        (BUILT, 13010, (8, 6)),  # code for 8.0 runs on every 8.x
        (BUILT, 13010, (12, 0)),  # the driver compiles the PTX for 9.0
        ((12040, ["sm_90"]), 13000, (9, 0)),  # a later driver serves all earlier versions
        ((12060, ["sm_90"]), 12040, (9, 0)),  # and any driver of its CUDA's major version
        ((13000, ["sm_90a"]), 13000, (9, 0)),
        ((13000, ["sm_100f"]), 13000, (10, 3)),
        ((12060, ["sm_61"]), 12060, (6, 1)),
    ],
)
def test_it_fits(gpu, built, driver, capability):
    gpu(built, driver, capability)
    assert fit.misfit("library", 0) is None


@pytest.mark.parametrize(
    "built, driver, capability, why, remedy",
    [
        (BUILT, 12040, (9, 0), "built with CUDA 13.0, and the driver here serves CUDA 12.4", "update the driver, or,"),
        (BUILT, 13000, (6, 1), "for sm_75 sm_80 sm_90 compute_90, and cuda:0 has .* 6.1", "LIST=6.1 .*of CUDA 12, the"),
        ((12060, ["sm_80", "compute_80"]), 12040, (9, 0), "capability 9.0", "LIST=9.0 SOFTPOOL3D_CUDA=1 pip"),
        ((13000, ["sm_90"]), 13000, (12, 0), "capability 12.0", "LIST=12.0 .*an nvcc that knows"),
        ((13000, ["sm_86"]), 13000, (8, 0), "capability 8.0", "LIST=8.0"),
        ((13000, ["sm_100a"]), 13000, (10, 3), "capability 10.3", "LIST=10.3"),
    ],
)
def test_it_does_not_fit(gpu, built, driver, capability, why, remedy):
    gpu(built, driver, capability)
    found = fit.misfit("library", 0)
    assert found and re.search(why, found[0]) and re.search(remedy, found[1]), found


class OnGpu:
    """As much of a tensor on a GPU as the choice looks at."""

    device, is_cpu, is_cuda, layout = torch.device("cuda:0"), False, True, torch.strided
    __torch_dispatch__ = torch.Tensor.__torch_dispatch__


def test_the_reference_runs_after_one_warning(gpu, monkeypatch):
    monkeypatch.setitem(library.build_info(), "cuda", {"path": "library", "loaded": True, "why": None, "remedy": None})
    gpu(capability=(6, 1))
    assert library.choose(OnGpu()) == "reference"
    with pytest.warns(
        UserWarning, match="no compiled library for cuda .it was built for.*6.1.*plain PyTorch"
    ) as caught:
        for _ in range(3):
            library.warn_of_reference("cuda", 0)
    assert len(caught) == 1
    gpu(capability=(8, 0))
    assert library.choose(OnGpu()) == "cuda"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        library.warn_of_reference("cuda", 0)


def test_a_compiler_takes_the_answer_for_a_constant(gpu):
    gpu(capability=(6, 1))

    def f(x):
        return x + 1 if fit.misfit("library", 0) is None else x + 2

    assert torch.compile(f, backend="eager", fullgraph=True)(torch.zeros(1)) == 2
    gpu()
    torch._dynamo.reset()
    assert torch.compile(f, backend="eager", fullgraph=True)(torch.zeros(1)) == 1
    torch._dynamo.reset()


def test_doctor_says_the_same(gpu, monkeypatch, run):
    monkeypatch.setitem(library.build_info(), "cuda", {"path": "library", "loaded": True, "why": None, "remedy": None})
    gpu(driver=12040)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    properties = SimpleNamespace(name="GeForce", total_memory=2**33)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    result = run("doctor")
    assert result.returncode == 1
    assert "!!  kernels, cuda:0 the reference runs: it was built with CUDA 13.0, and the driver" in result.stdout
    assert "kernels, cuda:0: update the driver, or, with nvcc of CUDA 12, build it with" in result.stdout


def test_loading_does_not_start_cuda():
    """A process that has started CUDA cannot be forked, as the loaders of clips are."""
    code = "import torch; from softpool3d.ops import library; library.build_info()\n"
    code += "library.choose(torch.zeros(1, 1, 1, 1, 1)); assert not torch.cuda.is_initialized()"
    subprocess.run([sys.executable, "-c", code], check=True)
