"""Builds softpool3d: maps the folders into one namespace and compiles cuda_ext/ into `softpool3d/`.

The folders models/, datasets/, tools/ and configs/ lie at the top of the source tree, where a reader looks for
them, but are installed as `softpool3d.models` and so on: as top-level packages they would collide with other
people's (Hugging Face's `datasets` first of all).

The library is built against PyTorch's stable ABI and Python's limited API, so that one wheel serves every
Python >= 3.10 and every torch >= 2.11.
"""

import sys
from glob import glob

from setuptools import setup

FOLDERS = {
    "softpool3d": "softpool3d",
    "softpool3d.engine": "softpool3d/engine",
    "softpool3d.models": "models",
    "softpool3d.datasets": "datasets",
    "softpool3d.tools": "tools",
    "softpool3d.configs": "configs",
}

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:
    sys.exit(
        "softpool3d compiles against torch's headers and there is no torch here: `pip install torch>=2.11` first, "
        "or install without --no-build-isolation."
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

setup(
    packages=list(FOLDERS),
    package_dir=FOLDERS,
    package_data={"softpool3d": ["py.typed"], "softpool3d.configs": ["*.yaml", "*/*.yaml"]},
    ext_modules=extensions,
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
