"""What names on the command line mean: runs by their folder, their name or a file of theirs, and what is said of typos,
before torch is loaded."""

import subprocess
import sys

import pytest
from videos import write_numbered

from softpool3d.config_file import load_config
from softpool3d.errors import UsageError
from softpool3d.naming import check_files, check_weights, run_named, runs_named, weights_named
from softpool3d.runs import resume
from softpool3d.runs.run import Run


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with two runs, of which the first has weights."""
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "other"):
        Run.create(load_config("r3d_softpool", [f"name={name}"]))
    (tmp_path / "runs/mine/best.safetensors").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize("name", ["runs/mine", "mine", "runs/mine/", "runs/mine/best.safetensors", "runs/mine/last"])
def test_a_run_has_several_names(here, name):
    (here / "runs/mine/last").mkdir()
    assert str(run_named(name)) == "runs/mine"
    if name != "runs/mine/last":
        assert str(weights_named(name)) == "runs/mine/best.safetensors"


def test_a_folder_means_the_only_run_in_it(here):
    assert str(weights_named("runs")) == "runs/mine/best.safetensors"  # the other has none
    with pytest.raises(UsageError, match="--resume: 2 runs are in runs: runs/mine, runs/other"):
        run_named("runs")
    (here / "runs/other/config.yaml").unlink()
    assert str(run_named("runs")) == "runs/mine"


def test_compare_takes_all_runs_of_a_folder(here):
    assert [str(path) for path in runs_named("runs")] == ["runs/mine", "runs/other"]
    assert [str(path) for path in runs_named("other")] == ["runs/other"]
    assert [str(path) for path in runs_named("absent")] == ["absent"]


@pytest.mark.parametrize(
    ("check", "name", "said"),
    [
        (run_named, "mien", "--resume: mien is not the folder of a run .*; did you mean runs/mine?"),
        (run_named, "xyz", "is not the folder of a run .*; there are runs/mine, runs/other"),
        (check_weights, "runs/mien", "no weights file runs/mien; did you mean runs/mine?"),
        (check_weights, "other", "runs/other has no weights yet; softpool3d train --resume runs/other goes on"),
        (check_weights, "r3d_18", r"no weights file r3d_18; .*public weights are named as in r3d_18:kinetics400"),
        (check_weights, "x3d_m:X3D_N.pyth", "no weights file X3D_N.pyth; did you mean X3D_M.pyth?"),
        (check_weights, "r3d_18:kinetic400", "r3d_18:kinetic400: there is no file .* did you mean r3d_18:kinetics400?"),
        (check_weights, "resnet50:imagenet", "did you mean resnet50:imagenet1k?"),
        (check_weights, "r3d_18:", "no public weights have such a name; those are r3d_18:kinetics400"),
        (lambda name: check_files([name]), "clip.mp3", "no file clip.mp3; did you mean clip.mp4?"),
        (lambda name: check_files([name, "a"]), "*.mp3", "no file ..mp3, nor the other 1"),
    ],
)
def test_typos_are_answered_with_what_there_is(here, check, name, said):
    for file in ("X3D_M.pyth", "clip.mp4"):
        (here / file).write_bytes(b"")
    with pytest.raises(UsageError, match=said):
        check(name)


def test_what_is_there_is_let_through(here):
    for name in (None, "motion", "kinetics400", "r3d_18:kinetics400", "resnet50:IMAGENET1K_V2", "mine", "runs/mine"):
        check_weights(name)
    check_files(["absent.mp4", "runs"])
    check_files(["ru*"])


@pytest.mark.parametrize(
    "command",
    [
        ["test", "--weights", "absent"],
        ["test", "--weights", "mine", "data.root=absent"],
        ["test", "--cfg", "absent"],
        ["test", "--cfg", "r3d_softpool", "model.absent=1"],
        ["classify", "absent.mp4"],
        ["classify", "runs", "--weights", "r3d_18:absent"],
        ["embed", "runs", "--out", "a.npz", "--weights", "r3d_18:absent"],
        ["explain", "runs", "--out", "a.png", "--weights", "r3d_18:absent"],
        ["test", "--weights", "r3d_18:absent"],
        ["export", "--weights", "r3d_18:absent", "--out", "a.onnx"],
        ["classify", "runs", "--weights", "absent"],
        ["explain", "absent.mp4"],
        ["visualize", "absent.mp4"],
        ["export", "--weights", "absent", "--out", "a.onnx"],
        ["train", "--resume", "absent"],
        ["train", "absent"],
        ["train", "--cfg", "r3d_softpool", "model.weights=absent.pth"],
        ["train", "--cfg", "r3d_softpool", "data.dataset=folder", "data.root=absent"],
        ["prepare", "folder", "--root", "absent"],
        ["ensemble", "absent", "b"],
        ["study", "--cfg", "absent"],
    ],
    ids=" ".join,
)
def test_a_path_that_is_not_there_is_said_before_torch_is_loaded(here, command):
    code = (
        f"import sys\nsys.argv = ['softpool3d', *{command!r}]\nfrom softpool3d.cli import run\n"
        "try:\n    run()\nfinally:\n    assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "absent" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("prepare folder --root videos --reencode --out s3://b/c", "--out s3://b/c is an address"),
        ("prepare folder --root s3://b/c", "--root s3://b/c is an address"),
        ("train --cfg r3d_softpool --print-config output=gs://b/c", "output: gs://b/c is an address"),
        ("train --cfg r3d_softpool --print-config data.root=s3://b", "data.root: s3://b is an address"),
        ("visualize videos/a/0.mp4 --out s3://b/c.mp4", "s3://b/c.mp4 is an address, and this is written to"),
        ("export --weights motion --out s3://b/c.onnx", "s3://b/c.onnx is an address, and this is written to"),
    ],
)
def test_what_is_written_here_is_not_written_to_an_address(tmp_path, monkeypatch, run, command, said):
    monkeypatch.chdir(tmp_path)
    for name in ("a/0", "a/1", "b/0", "b/1"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        write_numbered(tmp_path / "videos" / f"{name}.mp4", 4)
    done = run(*command.split())
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["videos"]


def test_a_name_whose_run_is_not_finished_is_said_before_another_begins(here):
    config = load_config("r3d_softpool", ["name=mine"])
    lines = resume.begin(config, None, 1, auto=False, force=False)[3]
    assert lines == [
        "runs/mine is not finished; this is another run. To go on with it: softpool3d train --resume runs/mine"
    ]
    (here / "runs/mine/last").mkdir()
    (here / "runs/mine/last/checkpoint.pt").write_bytes(b"")
    (here / "runs/mine/summary.json").write_text("{}")
    assert resume.begin(config, None, 1, auto=False, force=False)[3] == []
