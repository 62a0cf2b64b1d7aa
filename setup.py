"""Builds softpool3d: maps the folders into one namespace and compiles cuda_ext/ into `softpool3d/`.

The folders models/, datasets/, tools/ and configs/ lie at the top of the source tree, where a reader looks
for them, but are installed as `softpool3d.models` and so on: as top-level packages they would collide with
other people's (Hugging Face's `datasets` first of all).

The libraries are built against PyTorch's stable ABI and know nothing of Python, so that one wheel serves every
Python >= 3.11 and every torch >= 2.11. On Windows none is built: the kernels are written for g++ and clang.

SOFTPOOL3D_CUDA=1 insists on the CUDA library, 0 forbids it; otherwise it is built where nvcc and a torch with
CUDA are, whether there is a GPU or not. TORCH_CUDA_ARCH_LIST (like "8.0;9.0+PTX") chooses its architectures,
MAX_JOBS how many compilers run at once.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel

FOLDERS = {
    "softpool3d": "softpool3d",
    "softpool3d.ops": "softpool3d/ops",
    "softpool3d.runtime": "softpool3d/runtime",
    "softpool3d.runs": "softpool3d/runs",
    "softpool3d.evaluation": "softpool3d/evaluation",
    "softpool3d.training": "softpool3d/training",
    "softpool3d.inference": "softpool3d/inference",
    "softpool3d.analysis": "softpool3d/analysis",
    "softpool3d.choosing": "softpool3d/choosing",
    "softpool3d.visual": "softpool3d/visual",
    "softpool3d.app": "softpool3d/app",
    "softpool3d.cluster": "softpool3d/cluster",
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
    from torch.utils.cpp_extension import BuildExtension, CppExtension, get_cxx_compiler
except ImportError:
    sys.exit(
        "softpool3d compiles against torch's headers and there is no torch here: `pip install torch>=2.11` "
        "first, or install without --no-build-isolation."
    )

# torch 2.11's stable ABI: the oldest that the wheel has to work with
ABI_FLAG = "-DTORCH_TARGET_VERSION=0x020b000000000000"

CPU_LIBRARY = CppExtension(
    "softpool3d._C",
    sources=[
        "cuda_ext/register.cpp",
        "cuda_ext/soft_pool_cpu.cpp",
        "cuda_ext/cpu_portable.cpp",
        "cuda_ext/cpu_avx2.cpp",
        "cuda_ext/cpu_avx512.cpp",
    ],
    depends=sorted(glob("cuda_ext/*")),  # of the CUDA library too: a source distribution holds what is named here
    # -Wno-psabi: vectors wider than the baseline's registers are passed within one file only.
    extra_compile_args={
        "cxx": ["-O3", "-g0", "-std=c++20", "-ffp-contract=fast", "-fvisibility=hidden", "-Wno-psabi", ABI_FLAG]
    },
    py_limited_api=True,  # leaves out libtorch_python
)
extensions = [] if sys.platform == "win32" else [CPU_LIBRARY]

# Turing is the oldest that CUDA 13 compiles for.
ARCHITECTURES = ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]

CUDA_LIBRARY = Extension(
    "softpool3d._C_cuda",
    sources=[],  # nvcc compiles it, in Build
    optional=os.environ.get("SOFTPOOL3D_CUDA") != "1",
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


def architectures(nvcc: str) -> list[str]:
    """What to compile for: real architectures as "sm_90", and as "compute_90" those whose PTX is kept."""
    wish = re.split(r"[;,\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip(" ;,"))
    if wish == [""]:
        # Those that this nvcc knows; the PTX of the last serves the GPUs that come after it.
        known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
        wish = [version for version in ARCHITECTURES if f"compute_{version.replace('.', '')}" in known]
        wish = wish[:-1] + [f"{version}+PTX" for version in wish[-1:]]
    found = []
    for entry in wish:
        match = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", entry)
        if match is None:
            sys.exit(f"TORCH_CUDA_ARCH_LIST: {entry!r} is not a version like 9.0 or 12.0+PTX")
        found += [f"{kind}_{match[1]}{match[2]}" for kind in ("sm", "compute")[: 2 if match[3] else 1]]
    return found


def say(sentence: str) -> None:
    """Prints a sentence, on the terminal itself where pip keeps to itself what a build prints."""
    print(sentence, file=sys.stderr, flush=True)
    if not sys.stderr.isatty():
        with contextlib.suppress(OSError), open("/dev/tty", "w") as terminal:
            print(f"\n{sentence}", file=terminal)


def check_compiler() -> None:
    """Exits where the C++ compiler is missing, or older than those that compile the sources."""
    compiler = get_cxx_compiler()
    needed = "softpool3d needs g++ 11 or clang 14, or a newer one"
    command = [*shlex.split(compiler), "-E", "-P", "-x", "c++", "-"]
    try:
        done = subprocess.run(command, input="__GNUC__ __clang_major__", capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        sys.exit(f"{needed}, but there is no working {compiler}; install one, or name yours as in CXX=g++-11")
    gnu, clang = done.stdout.split()
    name, version, oldest = ("clang", clang, 14) if clang.isdigit() else ("g++", gnu, 11)
    if int(version) < oldest:
        sys.exit(f"{needed}, but {compiler} is {name} {version}; name a newer one as in CXX=g++-11")


def old_glibc(folder: Path) -> list[str]:
    """Compiles what makes a library load where glibc is older than here: cuda_ext/old_glibc.c says how."""
    if sys.platform != "linux":
        return []
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libpthread.so"
    command = [*shlex.split(get_cxx_compiler()), "-x", "c", "cuda_ext/old_glibc.c", "-shared", "-fPIC", "-nostdlib"]
    command += ["-Wl,-soname,libpthread.so.0", "-Wl,--version-script,cuda_ext/old_glibc.map", "-o", str(library)]
    subprocess.run(command, check=True)
    return [str(library)]


class Build(BuildExtension):
    """Builds the CUDA library with one call of nvcc.

    torch's CUDAExtension would insist on the CUDA version that torch was built with. With the stable ABI and a
    static CUDA runtime, for which no libcudart has to be found later either, the library need not.
    """

    nvcc: subprocess.Popen | None = None

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.so"  # no Python's name in it: it is torch that loads it

    def build_extensions(self) -> None:
        if not self.extensions:
            return
        check_compiler()
        self.jobs = os.environ.get("MAX_JOBS", "")
        if self.jobs and not (self.jobs.isdigit() and int(self.jobs)):
            sys.exit(f"MAX_JOBS must be a whole number above 0, but is {self.jobs!r}")
        CPU_LIBRARY.extra_link_args += old_glibc(Path(self.build_temp))
        super().build_extensions()  # starts nvcc and goes on to the other library meanwhile
        if self.nvcc is not None:
            self.finish_cuda()

    def build_extension(self, ext: Extension) -> None:
        if ext is not CUDA_LIBRARY:
            return super().build_extension(ext)
        library = Path(self.get_ext_fullpath(ext.name))
        targets = architectures(NVCC)
        command = self.nvcc_command(library, targets)
        library.parent.mkdir(parents=True, exist_ok=True)
        real = [target[3:] for target in targets if target.startswith("sm_")]
        say(
            f"softpool3d: nvcc compiles the CUDA library for {len(real)} architectures ({', '.join(real)}): "
            "about a minute for each on two free cores; TORCH_CUDA_ARCH_LIST=9.0 (say) compiles for that one, and "
            "SOFTPOOL3D_CUDA=0 leaves the library out"
        )
        print(*command, flush=True)
        self.nvcc = subprocess.Popen(command)
        if self.jobs:
            self.nvcc.wait()

    def nvcc_command(self, library: Path, targets: list[str]) -> list[str]:
        home = Path(torch.__file__).parent
        command = [NVCC, "-shared", "-o", str(library), "cuda_ext/soft_pool_cuda.cu"]
        # -O1 is for the host's part; device code is optimised fully whatever it says.
        command += ["-std=c++20", "-O1", "--threads", self.jobs or "0", "--cudart", "static"]
        command += [f"-gencode=arch={target.replace('sm', 'compute')},code={target}" for target in targets]
        command += [f'-DSOFTPOOL_TARGETS="{" ".join(targets)}"']
        command += ["-Xcompiler", "-fPIC,-fvisibility=hidden,-g0", "-Xlinker", "--exclude-libs,ALL"]
        if os.environ.get("CXX"):  # nvcc refuses a host's compiler that is newer than itself: this one is to be used
            command += ["-ccbin", shlex.split(os.environ["CXX"])[-1]]
        command += [ABI_FLAG, "-DUSE_CUDA", f"-I{home / 'include'}", f"-L{home / 'lib'}"]
        return [*command, *CPU_LIBRARY.extra_link_args, "-ltorch_cuda", "-ltorch_cpu", "-lc10"]

    def finish_cuda(self) -> None:
        if self.nvcc.wait() == 0:
            return
        Path(self.get_ext_fullpath(CUDA_LIBRARY.name)).unlink(missing_ok=True)
        if not CUDA_LIBRARY.optional:
            sys.exit("SOFTPOOL3D_CUDA=1, but nvcc did not compile the CUDA library; what it printed says why")
        say(
            "softpool3d: warning: nvcc did not compile the CUDA library, so softpool3d is installed without it and "
            "runs plain PyTorch on GPUs; `pip install -v` shows what nvcc said, SOFTPOOL3D_CUDA=1 makes it an error"
        )


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


NVCC = find_nvcc() if extensions else None
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
    cmdclass={"build_ext": Build, "bdist_wheel": Wheel},
)
