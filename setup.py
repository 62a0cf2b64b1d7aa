"""Builds softpool3d: maps the folders into one namespace and compiles cuda_ext/ into `softpool3d/`.

The folders models/, datasets/, tools/ and configs/ lie at the top of the source tree, where a reader looks
for them, but are installed as `softpool3d.models` and so on: as top-level packages they would collide with
other people's (Hugging Face's `datasets` first of all).

The library is built against PyTorch's stable ABI and Python's limited API, so that one wheel serves every
Python >= 3.10 and every torch >= 2.11.

SOFTPOOL3D_CUDA=1 insists on the CUDA library, 0 forbids it; otherwise it is built where nvcc and a torch with
CUDA are, whether there is a GPU or not. TORCH_CUDA_ARCH_LIST (like "8.0;9.0+PTX") chooses its architectures.
"""

import os
import re
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.modified import newer_group

FOLDERS = {
    "softpool3d": "softpool3d",
    "softpool3d.ops": "softpool3d/ops",
    "softpool3d.runtime": "softpool3d/runtime",
    "softpool3d.runs": "softpool3d/runs",
    "softpool3d.evaluation": "softpool3d/evaluation",
    "softpool3d.training": "softpool3d/training",
    "softpool3d.inference": "softpool3d/inference",
    "softpool3d.analysis": "softpool3d/analysis",
    "softpool3d.visual": "softpool3d/visual",
    "softpool3d.models": "models",
    "softpool3d.models.pools": "models/pools",
    "softpool3d.datasets": "datasets",
    "softpool3d.datasets.video": "datasets/video",
    "softpool3d.datasets.sources": "datasets/sources",
    "softpool3d.tools": "tools",
    "softpool3d.configs": "configs",
}

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:
    sys.exit(
        "softpool3d compiles against torch's headers and there is no torch here: `pip install torch>=2.11` "
        "first, or install without --no-build-isolation."
    )

# Python 3.10's limited API and torch 2.11's stable ABI: the oldest of each that the wheel has to work with.
ABI_FLAGS = ["-DPy_LIMITED_API=0x030A0000", "-DTORCH_TARGET_VERSION=0x020b000000000000"]

extensions = [
    CppExtension(
        "softpool3d._C",
        sources=[
            "cuda_ext/register.cpp",
            "cuda_ext/soft_pool_cpu.cpp",
            "cuda_ext/cpu_portable.cpp",
            "cuda_ext/cpu_avx2.cpp",
            "cuda_ext/cpu_avx512.cpp",
        ],
        depends=sorted(glob("cuda_ext/*.h")),
        # -Wno-psabi: vectors wider than the baseline's registers are passed within one file only.
        extra_compile_args={
            "cxx": [
                "-O3",
                "-g0",
                "-std=c++20",
                "-ffp-contract=fast",
                "-fvisibility=hidden",
                "-Wno-psabi",
                *ABI_FLAGS,
            ]
        },
        py_limited_api=True,
    )
]

# Turing is the oldest that CUDA 13 compiles for.
ARCHITECTURES = ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]

CUDA_LIBRARY = Extension(
    "softpool3d._C_cuda",
    sources=[],  # nvcc compiles it, in Build
    depends=sorted(glob("cuda_ext/*.h") + glob("cuda_ext/*.cu*")),
    py_limited_api=True,
)


def find_nvcc() -> str | None:
    """nvcc, if the CUDA library is to be built; exits where it was asked for and cannot be."""
    wish = os.environ.get("SOFTPOOL3D_CUDA", "")
    if wish not in ("", "0", "1"):
        sys.exit(f"SOFTPOOL3D_CUDA must be 0 or 1, but is {wish!r}")
    if wish == "0":
        return None
    places = [Path(os.environ[v]) / "bin" for v in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(v)]
    path = os.pathsep.join([*map(str, places), os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    nvcc = shutil.which("nvcc", path=path)
    missing = "no nvcc on PATH or in $CUDA_HOME" if nvcc is None else None
    if torch.version.cuda is None:
        missing = "this torch was built without CUDA"
    if missing and wish == "1":
        sys.exit(f"SOFTPOOL3D_CUDA=1, but {missing}")
    return None if missing else nvcc


def architecture_flags(nvcc: str) -> list[str]:
    wish = re.split(r"[;,\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip(" ;,"))
    if wish == [""]:
        # Those that this nvcc knows; the PTX of the last serves the GPUs that come after it.
        known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
        wish = [version for version in ARCHITECTURES if f"compute_{version.replace('.', '')}" in known]
        wish[-1] += "+PTX"
    flags = []
    for entry in wish:
        match = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", entry)
        if match is None:
            sys.exit(f"TORCH_CUDA_ARCH_LIST: {entry!r} is not a version like 9.0 or 12.0+PTX")
        number = match[1] + match[2]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match[3]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


class Build(BuildExtension):
    """Builds the CUDA library with one call of nvcc.

    torch's CUDAExtension would insist on the CUDA version that torch was built with. With the stable ABI and a
    static CUDA runtime, for which no libcudart has to be found later either, the library need not.
    """

    nvcc: subprocess.Popen | None = None

    def build_extensions(self) -> None:
        super().build_extensions()  # starts nvcc and goes on to the other library meanwhile
        if self.nvcc is not None and self.nvcc.wait() != 0:
            sys.exit("the CUDA library did not compile; SOFTPOOL3D_CUDA=0 installs softpool3d without it")

    def build_extension(self, ext: Extension) -> None:
        if ext is not CUDA_LIBRARY:
            return super().build_extension(ext)
        library = Path(self.get_ext_fullpath(ext.name))
        if not self.force and not newer_group(ext.depends, str(library), "newer"):
            return
        library.parent.mkdir(parents=True, exist_ok=True)
        home = Path(torch.__file__).parent
        command = [NVCC, "-shared", "-o", str(library), "cuda_ext/soft_pool_cuda.cu"]
        # -O1 is for the host's part; device code is optimised fully whatever it says.
        command += ["-std=c++20", "-O1", "--threads", "0", "--cudart", "static", *architecture_flags(NVCC)]
        command += ["-Xcompiler", "-fPIC,-fvisibility=hidden,-g0", "-Xlinker", "--exclude-libs,ALL"]
        command += [*ABI_FLAGS, "-DUSE_CUDA", f"-I{home / 'include'}", f"-L{home / 'lib'}"]
        command += ["-ltorch_cuda", "-ltorch_cpu", "-lc10"]
        print(*command, flush=True)
        self.nvcc = subprocess.Popen(command)


NVCC = find_nvcc()
if NVCC is not None:
    extensions.insert(0, CUDA_LIBRARY)

setup(
    packages=list(FOLDERS),
    package_dir=FOLDERS,
    package_data={
        "softpool3d": ["py.typed", "weights/*.safetensors"],
        "softpool3d.configs": ["*.yaml", "*/*.yaml"],
        "softpool3d.visual": ["*.html"],
    },
    ext_modules=extensions,
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
