"""The commands as a user types them, right and wrong."""

import json
import os
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
from videos import damaged_files, write_numbered

from softpool3d import cli
from softpool3d.datasets.sources.motion import read_motion
from softpool3d.inference.trained import SHIPPED

ROOT = Path(__file__).parents[2]
WEIGHTS = str(SHIPPED)


def typed(*arguments, prefix=()):
    """`softpool3d ...` as the console script runs it, in a process that loads torch: most tests do without (`run`)."""
    code = "from softpool3d.cli import run; run()"
    command = [*prefix, sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def fails(result, code, *texts):
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    for text in texts:
        assert text in result.stderr
    return True


def test_help_needs_no_torch():
    code = (
        "import sys\nsys.argv = ['softpool3d', '--help']\nfrom softpool3d.cli import run\n"
        "try:\n    run()\nfinally:\n    assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert all(
        verb in result.stdout
        for verb in ("train", "test", "ensemble", "compare", "study", "classify", "visualize", "models", "doctor")
    )


@pytest.mark.parametrize(
    "script", [f"tools/{verb}.py" for verb in cli._VERBS] + [f"benchmarks/{name}.py" for name in ("op", "ship")]
)
def test_files_of_tools_are_scripts(script):
    result = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and "Usage" in result.stdout


def test_version():
    assert typed("--version").stdout.startswith("softpool3d 0.")
    assert typed("-V").stdout == typed("--version").stdout


def test_short_options(tmp_path):
    """-h and -o of each verb; `classify -o` as it is typed."""
    import typer

    verbs = typer.main.get_command(cli.app()).commands
    with_out = {name: option.opts for name, verb in verbs.items() for option in verb.params if "--out" in option.opts}
    assert len(with_out) == 10 and all(opts == ["--out", "-o"] for opts in with_out.values())
    assert "Usage" in typed("classify", "-h").stdout
    assert fails(typed("ensemble", "a.npz", "b.npz", "-o", tmp_path), 2, "no file of scores a.npz")


def test_help_is_readable_in_forty_columns():
    for arguments in ((), ("train",), ("classify",)):
        done = subprocess.run(
            [sys.executable, "-c", "from softpool3d.cli import run; run()", *arguments, "-h"],
            capture_output=True,
            text=True,
            env=os.environ | {"COLUMNS": "40"},
        )
        assert done.returncode == 0 and max(map(len, done.stdout.splitlines())) <= 40
    assert "  --topk <int range>\n    Labels of each video" in done.stdout


def test_completion_of_the_shell(monkeypatch):
    # else typer asks which shell started the tests, and knows no `sh`
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    done = typed("--show-completion", "bash")
    assert done.returncode == 0 and "complete" in done.stdout
    assert "--install-completion" in typed("--help").stdout


def test_bars_where_the_terminal_has_no_blocks(run, tmp_path):
    clip = write_numbered(tmp_path / "clip.mp4", 40)
    code = "from softpool3d.cli import run; run()"
    command = [sys.executable, "-c", code, "classify", str(clip), "--weights", "motion", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and "  #" in done.stdout and "?" not in done.stdout
    assert "█" in run(*command[3:]).stdout


def test_no_color_and_a_closed_pipe():
    code = "from softpool3d.cli import run; run()"
    plain = os.environ | {"NO_COLOR": "1", "FORCE_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", code, "-h"], capture_output=True, text=True, env=plain)
    assert "\x1b[3" not in done.stdout
    command = f"{sys.executable} -c '{code}' train --cfg r3d_softpool --print-config | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


def test_no_arguments_is_help():
    for arguments in ((), ("train",), ("classify",)):
        result = typed(*arguments)
        assert result.returncode == 2
        assert "Usage" in result.stdout + result.stderr


def test_print_config(run, tmp_path):
    result = run("train", "--cfg", "r3d_softpool", "--print-config", "optim.lr=0.5", "model.name=x3d_s")
    assert result.returncode == 0
    (tmp_path / "again.yaml").write_text(result.stdout)
    assert run("train", "--cfg", tmp_path / "again.yaml", "--print-config").stdout == result.stdout
    assert "lr: 0.5" in result.stdout and "name: x3d_s" in result.stdout
    assert "  # every n-th frame of the video\n  sampling_rate: 4\n" in result.stdout  # as config.py says it
    assert (
        "    # dense: num_frames at" not in result.stdout and "  # dense: num_frames at sampling_rate" in result.stdout
    )
    assert not list(tmp_path.glob("runs"))


def test_training_requests_that_are_wrong(run, tmp_path):
    a_file = tmp_path / "file"
    a_file.write_text("")
    config = ["--cfg", "r3d_softpool", f"output={tmp_path}", "data.motion_clips=[8,8,8]"]
    assert fails(run("train", "--cfg", "absent.yaml"), 2, "no config file absent.yaml")
    assert fails(
        run("train", *config, "model.poool.kind=avg"), 2, "unknown key model.poool; did you mean model.pool.kind?"
    )
    assert fails(run("train", *config, "optim.lr=-1"), 2, "optim.lr = -1", "greater than 0")
    assert fails(run("train", *config, "model.name=r3d_19"), 2, "unknown network 'r3d_19'", "x3d_xs")
    assert fails(run("train", *config, "data.dataset=movies"), 2, "unknown data set 'movies'", "motion, folder")
    assert fails(run("train", *config, "model.pool.kind=sof"), 2, "'soft', 'avg', 'max'")
    assert fails(run("train", *config, "data.dataset=folder", "data.root=absent"), 2, "data.root: no folder", "absent")
    assert fails(run("train", *config, f"output={a_file}"), 1, "cannot write the run's folder", "output=")
    assert fails(run("train", "--resume", tmp_path), 2, "is not the folder of a run")
    assert fails(run("train", "--resume", "auto"), 2, "--resume auto needs --cfg FILE", "or give --resume FOLDER")
    assert fails(run("train", *config, "--force-resume"), 2, "--force-resume belongs to --resume")
    assert not list(tmp_path.glob("r3d*"))


def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o555)
    # root may write everywhere, unless it gives that up
    prefix = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    if prefix and not shutil.which("setpriv"):
        pytest.skip("root may write into a read-only folder, and there is no setpriv here to give that up")
    arguments = ["train", "--cfg", "r3d_softpool", f"output={tmp_path}", "data.motion_clips=[8,8,8]"]
    result = typed(*arguments, prefix=prefix)
    assert fails(result, 1, "cannot write the run's folder", "permission denied", "output=")


def test_resume_from_a_damaged_checkpoint(run, tmp_path):
    tiny = ["data.motion_clips=[8,8,8]", "model.width=4", "train.epochs=1", "data.num_workers=0", "train.batch_size=4"]
    tiny += ["optim.warmup_epochs=0"]
    result = typed("train", "--cfg", "r3d_softpool", f"output={tmp_path}", *tiny)
    assert result.returncode == 0 and "Warning" not in result.stderr, result.stderr
    checkpoint = tmp_path / "r3d_softpool" / "last" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert fails(run("train", "--resume", tmp_path / "r3d_softpool"), 2, "is damaged", "best.safetensors")
    checkpoint.unlink()
    assert fails(run("train", "--resume", tmp_path / "r3d_softpool"), 2, "nothing to resume from")


def test_classify_prints_labels():
    clips = read_motion((8, 8, 8))["test"].clips[:2]
    paths = [clip.path for clip in clips]
    result = typed("classify", *paths, "--weights", WEIGHTS, "--topk", "3")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line for line in lines if line in paths] == paths
    assert sum("%" in line for line in lines) == 6


def test_classify_as_json_and_with_bad_files(run, tmp_path):
    clip = read_motion((8, 8, 8))["test"].clips[0].path
    bad = damaged_files(tmp_path)
    files = [
        bad["text"],
        clip,
        bad["audio"],
        bad["empty"],
        tmp_path / "absent.mp4",
        write_numbered(tmp_path / "1.mp4", 1),
    ]
    result = run("classify", *files, "--weights", WEIGHTS, "--json", "--topk", "5", "--views", "2")
    assert fails(result, 1, "2 of 6 labelled; 4 could not be read", "no video stream", "the file is empty")
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["file"] for record in records] == [str(f) for f in files]
    assert ["error" in record for record in records] == [True, False, True, True, True, False]
    labels = records[1]["labels"]
    assert len(labels) == 5
    probabilities = [label["probability"] for label in labels]
    assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) <= 1.0001


def test_classify_requests_that_are_wrong(run, tmp_path):
    weights = ["--weights", WEIGHTS]
    assert fails(run("classify", tmp_path, "--weights", tmp_path / "absent"), 2, "no weights file")
    (tmp_path / "text").write_text("weights")
    assert fails(run("classify", tmp_path, "--weights", tmp_path / "text"), 2, "is not a safetensors file")
    assert fails(run("classify", tmp_path, *weights, "--topk", "0"), 2, "--topk")
    assert fails(run("classify", tmp_path, *weights, "--device", "gpu"), 2, "device: 'gpu' does not work here")
    assert fails(run("classify", tmp_path, *weights, "--device", "meta"), 2, "device: 'meta' does not work here")


def test_doctor(run):
    result = run("doctor")
    assert result.returncode == 0, result.stdout + result.stderr
    for text in ("torch ", "decord decodes", "pyav decodes", "soft_pool3d", "cpu"):
        assert text in result.stdout


def test_doctor_names_packages_of_other_versions(run, monkeypatch):
    """As after `pip install --no-deps`: pip refuses them otherwise."""
    installed = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "17.1.0" if name == "av" else installed(name))
    monkeypatch.setattr(metadata, "requires", lambda name: ["av>=18.1", "typer>=0.1", 'ray>=99; extra == "ray"'])
    result = run("doctor")
    assert result.returncode == 1
    assert "!!  av             17.1.0" in result.stdout and "av: pip install 'av>=18.1'" in result.stdout
    assert "ok  typer" in result.stdout and "soft_pool3d" in result.stdout and "ray" not in result.stdout


def test_head_of_the_output():
    """A reader that leaves early is no reason for a traceback."""
    clip = read_motion((8, 8, 8))["test"].clips[0].path
    code = "from softpool3d.cli import run; run()"
    command = [sys.executable, "-c", code, "classify", *[clip] * 3, "--weights", WEIGHTS, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    time.sleep(0.1)
    assert "Traceback" not in process.stderr.read()
    process.wait()


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("pass", 0, ""),
        ("raise UsageError('no such thing')", 2, "error: no such thing"),
        ("sys.exit(3)", 3, ""),
        ("1 / 0", 1, "ZeroDivisionError"),
    ],
)
def test_a_process_of_torchrun_ends_before_python_takes_itself_apart(end, code, said, tmp_path):
    """There, threads of gloo ended it by SIGABRT, in half of such runs of four processes; a run was done and failed."""
    (tmp_path / "verb.py").write_text(
        "import atexit, os, sys\nfrom softpool3d import command\nfrom softpool3d.errors import UsageError\n"
        "class Aborts:\n    def __del__(self, abort=os.abort):\n        abort()\n"
        f"def main() -> None:\n    sys.kept = Aborts()\n    print('done')\n    {end}\n"
        "atexit.register(print, 'hook')\ncommand.run_tool(main)\n"
    )
    result = subprocess.run(
        [sys.executable, tmp_path / "verb.py"],
        env=os.environ | {"TORCHELASTIC_RUN_ID": "one"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == code and result.stdout == "done\nhook\n", result.stderr
    assert said in result.stderr
