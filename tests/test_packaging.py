"""The wheel: what is in it, and that it works where nothing else of the project is."""

import os
import subprocess
import sys
import sysconfig
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


def test_one_wheel_for_every_python(wheel):
    assert "-cp310-abi3-" in wheel.name


def test_it_works_in_an_environment_of_its_own(wheel, tmp_path):
    """pip installs it into a new environment that sees this one's dependencies, but not this source tree."""
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python, command = environment / "bin" / "python", environment / "bin" / "softpool3d"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    site = Path(output(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # a .pth line adds the folder, without running the .pth files in it: those of the editable install stay out
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    code = (
        "import softpool3d, torch\n"
        "from softpool3d import soft_pool3d\n"
        "from softpool3d.ops import library\n"
        f"assert softpool3d.__file__.startswith({str(site)!r}), softpool3d.__file__\n"
        "assert library.build_info()['cpu']['loaded'], library.build_info()\n"
        "assert torch.allclose(soft_pool3d(torch.ones(1, 1, 2, 2, 2)), torch.ones(1, 1, 1, 1, 1))\n"
    )
    output(python, "-c", code, cwd=tmp_path)
    assert output(command, "--version").startswith("softpool3d ")
    printed = output(command, "train", "--cfg", "x3d_softpool", "--print-config", cwd=tmp_path)
    assert "name: x3d_xs" in printed


def output(*command, cwd=None) -> str:
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout
