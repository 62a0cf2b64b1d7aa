"""Say what is installed, built and working here, and what to do about what is not.

python tools/doctor.py
"""

import platform
import sys
import tempfile
from pathlib import Path

from softpool3d.errors import WorkError
from softpool3d.requirements import remedy, required, version_of


def main() -> None:
    """Print versions, what is built, which devices and decoders work, and a remedy for each thing missing."""
    problems: list[str] = []

    def row(name: str, value: str, todo: str | None = None) -> None:
        print(f"{'!!' if todo else 'ok'}  {name:14} {value}")
        if todo:
            problems.append(f"{name}: {todo}")

    row("python", f"{platform.python_version()} on {platform.platform()}")
    ours = version_of("softpool3d")
    row("softpool3d", ours or "not installed", None if ours else "pip install softpool3d")
    remedies = {need.name: remedy(need) for need in required()}
    for name, todo in remedies.items():
        row(name, version_of(name) or "not installed", todo)
    if remedies.get("torch"):
        raise WorkError("; ".join(problems))
    _check_operator(row)
    _check_devices(row)
    if not remedies.get("av"):
        _check_decoders(row)
    if problems:
        print("\nto do:")
        for problem in problems:
            print(f"  {problem}")
        sys.exit(1)


def _check_operator(row) -> None:
    import torch

    from softpool3d import backend, soft_pool3d
    from softpool3d.ops import library

    for name, info in library.build_info().items():
        matters = name == "cpu" or torch.cuda.is_available()
        row(f"kernels, {name}", info["path"] if info["loaded"] else info["why"], info["remedy"] if matters else None)
    clip = torch.randn(1, 3, 4, 8, 8)
    y = soft_pool3d(clip)
    row("soft_pool3d", f"{tuple(clip.shape)} -> {tuple(y.shape)} by {backend(clip)}")


def _check_devices(row) -> None:
    import torch

    from softpool3d.ops.fit import misfit
    from softpool3d.ops.library import build_info

    row("cpu", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            row(f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
            library = build_info()["cuda"]
            unfit = misfit(library["path"], index) if library["loaded"] else None
            if unfit:
                row(f"kernels, cuda:{index}", f"the reference runs: {unfit[0]}", unfit[1])
    else:
        why = "no NVIDIA GPU found" if torch.version.cuda else "this torch is built without CUDA"
        row("cuda", f"{why}; the CPU is used")


def _check_decoders(row) -> None:
    """Checks both decoders on a clip that is made for it."""
    import numpy as np

    from softpool3d.datasets.sources.motion import FPS, render
    from softpool3d.datasets.video.decoder import open_video
    from softpool3d.datasets.video.encoder import write_video

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        pictures = render(0, np.random.default_rng(0))
        write_video(path, pictures, FPS)
        wanted = np.array([0, 15, 31])
        decoders = {}
        for name in ("decord", "pyav"):
            with open_video(path, decoder=name) as video:
                decoders[video.decoder] = video.frames(wanted).permute(0, 2, 3, 1).numpy()
    for name in ("decord", "pyav"):
        if name not in decoders:
            row(name, "does not decode; PyAV does its work", "pip install --force-reinstall decord")
            continue
        error = np.abs(decoders[name].astype(int) - pictures[wanted].astype(int)).mean()
        remedy = None if error < 10 else f"pip install --force-reinstall {name.replace('pyav', 'av')}"
        row(f"{name} decodes", f"32 frames of H.264, mean error {error:.1f} of 255", remedy)


if __name__ == "__main__":
    from softpool3d.command import run_tool

    run_tool(main)
