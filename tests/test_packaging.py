"""The wheel: what is in it, and that it works where nothing else of the project is."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    source = tmp_path_factory.mktemp("source") / "tree"
    subprocess.run(["git", "clone", "-q", ROOT, source], check=True)  # so that no build product lands in the tree
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source]
    # Compiling the CUDA library for every architecture takes minutes; it has tests of its own.
    env = {**os.environ, "SOFTPOOL3D_CUDA": "0"}
    subprocess.run(command, check=True, capture_output=True, env=env)
    (path,) = out.glob("*.whl")
    return path


def test_it_holds_softpool3d_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"softpool3d"}
    for part in (
        "softpool3d/models/r3d.py",
        "softpool3d/datasets/motion.py",
        "softpool3d/tools/train.py",
        "softpool3d/configs/r3d_softpool.yaml",
        "softpool3d/py.typed",
    ):
        assert part in names
    assert [name for name in names if name.startswith("softpool3d/_C") and name.endswith(".so")]


def test_one_wheel_for_every_python(wheel):
    assert "-cp310-abi3-" in wheel.name


def test_it_works_from_an_empty_environment(wheel, tmp_path):
    """Installed into a new environment that sees this one's dependencies, but not this source tree."""
    import sysconfig

    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    zipfile.ZipFile(wheel).extractall(site)
    # a .pth line adds the folder, without running the .pth files in it: those of the editable install stay out
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    code = (
        "import softpool3d, torch\n"
        "from softpool3d import _ops, soft_pool3d\n"
        f"assert softpool3d.__file__.startswith({str(site)!r}), softpool3d.__file__\n"
        "assert _ops.build_info()['cpu']['loaded'], _ops.build_info()\n"
        "assert torch.allclose(soft_pool3d(torch.ones(1, 1, 2, 2, 2)), torch.ones(1, 1, 1, 1, 1))\n"
        "from softpool3d.cli import run\n"
        "import sys; sys.argv = ['softpool3d', 'train', '--cfg', 'x3d_softpool', '--print-config']; run()\n"
    )
    result = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "name: x3d_xs" in result.stdout
