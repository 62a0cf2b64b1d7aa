"""test, ensemble and compare as a user types them, right and wrong."""

import json
import os
import subprocess
import sys

import pytest
from scores import CLASSES, write_data_set, write_weights
from videos import damaged_files

from softpool3d.config_file import load_config
from softpool3d.errors import UsageError, WorkError
from softpool3d.evaluation.scores import VideoScores
from softpool3d.tools import compare, ensemble
from softpool3d.tools import test as test_tool


def run_test(weights, *overrides, cfg=None, split=None, out=None, overwrite=False):
    test_tool.main(list(overrides), weights, cfg, split, out, overwrite)


def run_ensemble(*scores, weights=None, mean="arithmetic", common=False, out=None, overwrite=False):
    ensemble.main(list(scores), weights, mean, common, out, overwrite)


def run_compare(*runs, out=None, sort="given", overwrite=False):
    compare.main(list(runs), out, sort, overwrite)


def test_from_weights_to_an_ensemble(tmp_path, capsys):
    """As a process once, for the exit code of unreadable files; then the functions that the verbs are."""
    root = write_data_set(tmp_path / "data", test=5)
    with (root / "test.csv").open("a") as file:
        file.write(f"{damaged_files(tmp_path)['text']},0,,\n")
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        write_weights(tmp_path / str(seed) / "best.safetensors", root, seed=seed)
    command = [sys.executable, "-c", "from softpool3d.cli import run; run()", "test", "--weights", tmp_path / "0"]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "100"})
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert "error: 1 of 6 videos could not be read" in result.stderr and "bad_files.csv" in result.stderr
    assert "2  2 clips in the middle of equal parts; 1 crop of each" in result.stdout
    for text in ("top-1", "95% interval", "mean class accuracy", "calibration error", "most confused", *CLASSES):
        assert text in result.stdout
    with pytest.raises(WorkError, match="1 of 6 videos"):
        run_test(tmp_path / "1" / "best.safetensors")

    run_ensemble(tmp_path / "0", tmp_path / "1" / "test", weights="3,1", out=tmp_path / "both")
    assert "together, 5 videos" in capsys.readouterr().out
    one, two, both = (
        VideoScores.load(tmp_path / name / "scores.npz").scores.probabilities for name in ("0/test", "1/test", "both")
    )
    assert (0.75 * one + 0.25 * two - both).abs().max() < 1e-6
    result = json.loads((tmp_path / "both" / "results.json").read_text())
    assert [member["weight"] for member in result["members"]] == [0.75, 0.25] and result["videos"] == 5
    with pytest.raises(UsageError, match="holds results already"):
        run_ensemble(tmp_path / "0", tmp_path / "1", out=tmp_path / "both")
    run_ensemble(tmp_path / "0", tmp_path / "1", out=tmp_path / "both", overwrite=True)


def test_long_tables_of_classes_show_both_ends(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    root = write_data_set(tmp_path / "data", train=3, test=40)
    names = [f"class {n:02d}" for n in range(40)]
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    rows = [f"video {n % 3}.mp4,{n},{n * 0.02:g},{n * 0.02 + 0.3:g}" for n in range(40)]
    (root / "test.csv").write_text("\n".join(["path,label,start,end", *rows]) + "\n")
    run_test(write_weights(tmp_path / "w.safetensors", root, classes=tuple(names)))
    printed = capsys.readouterr().out
    assert "... 24 more, in per_class.csv" in printed
    assert len((tmp_path / "test" / "per_class.csv").read_text().splitlines()) == 41


def test_requests_that_are_wrong(tmp_path):
    with pytest.raises(UsageError, match="give either --weights FILE of a run, or --cfg"):
        run_test(None)
    with pytest.raises(UsageError, match="no weights file"):
        run_test(tmp_path / "absent")
    with pytest.raises(UsageError, match="two members at least"):
        run_ensemble(tmp_path / "a.npz")
    with pytest.raises(UsageError, match="no file of scores .*softpool3d test --weights RUN writes them"):
        run_ensemble(tmp_path, tmp_path)
    with pytest.raises(UsageError, match="--weights: 'x' is not a number"):
        run_ensemble(tmp_path, tmp_path, weights="1,x")
    with pytest.raises(UsageError, match="--mean harmonic"):
        run_ensemble(tmp_path, tmp_path, mean="harmonic")
    with pytest.raises(UsageError, match="--sort size: it is one of given, val, test, seconds"):
        run_compare(tmp_path, sort="size")
    with pytest.raises(UsageError, match=r"unknown format; it is one of .png, .svg, .pdf, .csv, .md"):
        run_compare(tmp_path, out=[tmp_path / "a.gif"])


def test_compare_names_what_it_cannot_read(tmp_path, capsys):
    for name, rate in (("a", "0.1"), ("b", "0.2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(load_config("r3d_softpool", [f"optim.lr={rate}"]).to_yaml())
        (tmp_path / name / "metrics.csv").write_text("epoch,train_loss,val_top1\n1,2.0,0.25\n2,1.0,0.5\n")
    (tmp_path / "b" / "summary.json").write_text('{"test_top1": 0.375, "seconds": 9, "views": 2}')
    out = [tmp_path / "curves.svg", tmp_path / "table.csv", tmp_path / "table.md"]
    with pytest.raises(WorkError, match="1 of 3 folders could not be read"):
        run_compare(tmp_path / "a", tmp_path / "b", tmp_path / "absent", out=out)
    printed = capsys.readouterr().out
    assert f"not finished: {tmp_path / 'a'} (2 of 10 epochs); softpool3d train --resume" in printed
    assert f"left out: {tmp_path / 'absent'}: there is no such folder" in printed
    assert "optim.lr" in printed and "validation top-1" in printed and "37.5% (2 views)" in printed
    assert out[0].read_text().startswith("<?xml") and "optim.lr" in out[1].read_text()
    assert out[2].read_text().splitlines()[1].startswith("|---|")
    with pytest.raises(UsageError, match="exists; name another file"):
        run_compare(tmp_path / "a", out=out)
    with pytest.raises(WorkError):
        run_compare(tmp_path / "absent")
