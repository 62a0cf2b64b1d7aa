"""Whether the CUDA library fits a GPU and its driver. The library itself says what it was built with and for."""

import ctypes
from functools import cache

import torch

CUDA_REMEDY = (
    "build it with `SOFTPOOL3D_CUDA=1 pip install --no-build-isolation --force-reinstall --no-deps -e .` "
    "in the source tree (needs nvcc)"
)


@cache
def built_for(path: str) -> tuple[int, list[str]]:
    """Returns the CUDA version of the CUDA library, as 12040 for 12.4, and its targets, as sm_90 or compute_90."""
    ask = ctypes.CDLL(path).softpool3d_built_for
    ask.restype = ctypes.c_char_p
    version, *targets = ask().decode().split()
    return int(version), targets


@torch.compiler.assume_constant_result
def misfit(path: str, index: int) -> tuple[str, str] | None:
    """Returns why the CUDA library cannot run on GPU `index`, and what to do; None if it can.

    Before CUDA has been started there are no tensors on a GPU, but a compiler may pretend: nothing is asked then.
    """
    return _misfit(path, index) if torch.cuda.is_initialized() else None


@cache
def _misfit(path: str, index: int) -> tuple[str, str] | None:
    built, targets = built_for(path)
    driver, capability = _driver(), torch.cuda.get_device_capability(index)
    if driver // 1000 < built // 1000:
        why = f"it was built with CUDA {_cuda(built)}, and the driver here serves CUDA {_cuda(driver)} at most"
        return why, f"update the driver, or, with nvcc of CUDA {driver // 1000}, {CUDA_REMEDY}"
    if any(_runs(target, capability, driver >= built) for target in targets):
        return None
    here = "{}.{}".format(*capability)
    why = f"it was built for {' '.join(targets)}, and cuda:{index} has compute capability {here}"
    nvcc = "nvcc of CUDA 12, the last for this GPU" if capability < (7, 5) else "an nvcc that knows this GPU"
    return why, CUDA_REMEDY.replace("`SOFT", f"`TORCH_CUDA_ARCH_LIST={here} SOFT").replace("nvcc", nvcc)


def _driver() -> int:
    """Returns the newest CUDA that the driver serves, as 12040 for 12.4."""
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value


def _cuda(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _runs(target: str, capability: tuple[int, int], compiles: bool) -> bool:
    """Whether code for `target` runs on a GPU; `compiles`: whether its driver knows the PTX of the library's CUDA."""
    kind, number = target.split("_")
    major, minor, feature = int(number.rstrip("af")[:-1]), int(number.rstrip("af")[-1]), number.lstrip("0123456789")
    if feature == "a":  # for this GPU and no other
        return capability == (major, minor)
    if kind == "sm" or feature == "f":
        return capability[0] == major and capability[1] >= minor
    return compiles and capability >= (major, minor)
