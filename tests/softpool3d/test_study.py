"""Studies: the statistics by hand, the runs with a stand-in for training, and one small study whole."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from scores import write_data_set, write_weights

from softpool3d import cli
from softpool3d.analysis.comparison import compare, curve, curves_figure, curves_text, names, picture
from softpool3d.analysis.folders import read_run
from softpool3d.analysis.statistics import paired_difference, spread, t_quantile
from softpool3d.analysis.study import load_study, run_study
from softpool3d.analysis.study_report import study_page
from softpool3d.errors import UsageError, WorkError
from softpool3d.runs.checkpoint import load_state, save_state
from softpool3d.runtime.interrupt import Interrupted
from softpool3d.training.trainer import train


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (9, 2.2622), (30, 2.0423)])
def test_t_quantiles_are_those_of_the_tables(freedom, t):
    assert t_quantile(0.95, freedom) == pytest.approx(t, abs=5e-5)


def test_paired_differences():
    found = paired_difference([0.8, 0.9, 0.7], [0.7, 0.7, 0.6])
    assert found.mean == pytest.approx(0.4 / 3)
    half = 4.302653 * 0.0577350 / 3**0.5
    assert found.interval == pytest.approx((0.4 / 3 - half, 0.4 / 3 + half), abs=1e-6)
    assert not found.excludes_zero
    assert paired_difference([0.8, 0.9, 0.7], [0.70, 0.81, 0.59]).excludes_zero
    alone = paired_difference([0.8], [0.7])
    assert alone.interval is None and not alone.excludes_zero and spread([0.8]) is None


NETWORK = "name: tiny\nmodel:\n  width: 4\ntrain:\n  epochs: 2\n"
STUDY = """\
title: Two kinds
output: {output}
seeds: [0, 1]
networks: [tiny.yaml]
variants:
  soft: [model.pool.kind=soft]
  max: [model.pool.kind=max]
reference: soft
"""


@pytest.fixture
def study_file(tmp_path):
    (tmp_path / "tiny.yaml").write_text(NETWORK)
    (tmp_path / "study.yaml").write_text(STUDY.format(output=tmp_path / "runs"))
    return tmp_path / "study.yaml"


def write_run(folder, config, top1=None, epochs=2, parameters=12, seconds=3.0):
    """A run's folder as training leaves it; finished where `top1` is given."""
    (folder / "last").mkdir(parents=True)
    (folder / "config.yaml").write_text(config.to_yaml())
    rows = [f"{n},{1 / n},0.8,{0.4 + 0.1 * n},{n}.0" for n in range(1, epochs + 1)]
    (folder / "metrics.csv").write_text("\n".join(["epoch,train_loss,train_top1,val_top1,seconds", *rows]) + "\n")
    save_file({"w": torch.zeros(parameters), "n.running_mean": torch.zeros(5)}, folder / "best.safetensors")
    if top1 is not None:
        summary = {"val_top1": 0.6, "test_top1": top1, "seconds": seconds, "tested_on": "test"}
        (folder / "summary.json").write_text(json.dumps(summary))


def test_a_study_trains_what_is_not_finished(study_file):
    study, trials = load_study(study_file)
    assert [(t.network, t.variant, t.seed) for t in trials] == [
        ("tiny", "soft", 0),
        ("tiny", "max", 0),
        ("tiny", "soft", 1),
        ("tiny", "max", 1),
    ]
    assert [t.config.model.pool.kind for t in trials] == ["soft", "max"] * 2
    top1 = {("soft", 0): 0.8, ("max", 0): 0.7, ("soft", 1): 0.9, ("max", 1): 0.8}
    trained = []

    def stand_in(config, run):
        trained.append((config.name, run is not None))
        if len(trained) == 3:
            (trials[2].folder / "last").mkdir(parents=True)
            (trials[2].folder / "config.yaml").write_text(config.to_yaml())
            raise Interrupted("stopped")
        if len(trained) == 5:
            raise WorkError("the loss is nan")
        if run is not None:
            shutil.rmtree(run.folder)
        trial = next(trial for trial in trials if trial.config.name == config.name)
        write_run(trial.folder, config, top1[trial.variant, trial.seed])

    with pytest.raises(Interrupted):
        run_study(trials, stand_in, lambda text: None)
    assert "2 of 4 runs are finished" in study_page(study, trials, {}, "command", "a machine")
    failed = run_study(trials, stand_in, lambda text: None)
    assert [name for name, _ in trained] == [trials[n].config.name for n in (0, 1, 2, 2, 3)]
    assert [resumed for _, resumed in trained] == [False, False, False, True, False]
    page = study_page(study, trials, failed, "command", "a machine")
    assert "3 of 4 runs are finished" in page and "- tiny-max-seed1: the loss is nan" in page
    assert run_study(trials, stand_in, lambda text: None) == {}
    page = study_page(study, trials, {}, "command", "a machine")
    assert "4 of 4 runs are finished; they took 12 seconds on a machine" in page
    assert "| soft | 85.0% | 7.1 | 80.0% | 90.0% | 60.0% | 80.0% | 0.00 M | 3 |" in page
    assert "| max | +10.0 | +10.0 to +10.0 | +10.0, +10.0 | soft is better |" in page


def test_the_study_that_is_shipped():
    study, trials = load_study("study/motion")
    assert len(trials) == 24 == len({trial.folder for trial in trials})
    assert {trial.config.model.pool.kind for trial in trials} == {"soft", "max", "avg", "conv"}
    pairs = {(t.network, t.seed, t.config.model.width, tuple(t.config.data.motion_clips)) for t in trials}
    assert len(pairs) == 6  # nothing but the pooling differs within a pair
    assert study.reference == "soft"


def test_a_run_of_another_configuration_is_not_taken_for_a_finished_one(study_file):
    _, trials = load_study(study_file)
    write_run(trials[1].folder, trials[1].config.model_copy(update={"seed": 7}), 0.5)
    with pytest.raises(UsageError, match="tiny-max-seed0 is a run with another seed; move it away"):
        run_study(trials, lambda *_: pytest.fail("nothing is to be trained"), lambda text: None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("reference: soft", "reference: avg", "reference 'avg' is none of the variants"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "has one of them twice"),
        ("seeds: [0, 1]", "seeds: []", "study.yaml:3: seeds: list should have at least 1 item"),
        ("title:", "titel:", r"study.yaml:1: unknown key titel; did you mean title\?"),
        ("kind=max", "kind=mix", "override model.pool.kind=mix: model.pool.kind = 'mix'"),
        ("tiny.yaml", "absent.yaml", "no config file .*absent.yaml"),
    ],
)
def test_mistakes_in_a_study(study_file, old, new, message):
    study_file.write_text(study_file.read_text().replace(old, new))
    with pytest.raises(UsageError, match=message):
        load_study(study_file)


def test_a_study_from_file_to_page(tmp_path, study_file):
    root = write_data_set(tmp_path / "data", train=4, val=2, test=5)
    small = ["data.dataset=folder", f"data.root={root}", "data.num_frames=4", "data.sampling_rate=1"]
    small += ["data.short_side=32", "data.train_short_side=[32,32]", "data.crop_size=32", "data.num_workers=0"]
    study, trials = load_study(study_file, [*small, "train.epochs=1", "train.batch_size=4", "test.num_clips=1"])
    assert run_study(trials, train, lambda text: None) == {}
    page = study_page(study, trials, {}, "command", "a machine")
    assert "4 of 4 runs are finished" in page
    summary = json.loads((trials[0].folder / "summary.json").read_text())
    row = next(line for line in page.splitlines() if line.startswith("| soft | ") and "%" in line)
    assert f"{summary['test_top1']:.1%}" in row
    assert run_study(trials, lambda *_: pytest.fail("all of it is finished"), lambda text: None) == {}


def test_runs_side_by_side(study_file, tmp_path):
    _, trials = load_study(study_file)
    write_run(trials[0].folder, trials[0].config, 0.75)
    write_run(trials[1].folder, trials[1].config, None, epochs=1)
    write_run(tmp_path / "damaged", trials[0].config, 0.75)
    (tmp_path / "damaged" / "summary.json").write_text("{")
    (tmp_path / "empty").mkdir()
    folders = [trials[0].folder, trials[1].folder, tmp_path / "damaged", tmp_path / "empty", tmp_path / "absent"]
    comparison = compare([read_run(folder) for folder in folders])
    heads, rows = comparison.table()
    assert heads == [
        *("run", "model.pool.kind", "epochs", "best val top-1", "test top-1", "seconds", "parameters"),
    ]
    assert rows == [
        ["tiny-soft-seed0", "soft", "2/2", "60.0%", "75.0%", "3", "0.00 M"],
        ["tiny-max-seed0", "max", "1/2", "50.0%", "", "1", "0.00 M"],
    ]
    for name, views, split in (("test", 1, "test"), ("test-2", 10, "test"), ("test-3", 30, "val")):
        result = {"top1": 0.7 + views / 100, "num_clips": views, "num_crops": 3, "split": split}
        (trials[0].folder / name).mkdir()
        (trials[0].folder / name / "results.json").write_text(json.dumps(result))
    heads, rows = compare([read_run(folder) for folder in folders]).table()
    assert heads[-1] == "tested since" and [row[-1] for row in rows] == ["80.0% (10x3)", ""]
    problems = [record.problem for record in comparison.bad]
    assert "summary.json is damaged" in problems[0]
    assert problems[1:] == ["it is not the folder of a run (it has no config.yaml)", "there is no such folder"]
    text = curves_text(comparison.runs, width=21, height=5)
    assert text[1] == "  60% |" + " " * 20 + "a" and text[5] == "  50% |" + " " * 10 + "*"
    assert picture(curves_figure(comparison.runs), "png").startswith(b"\x89PNG")
    assert read_run(trials[0].folder).parameters == 12


def test_evaluations_within_an_epoch_lie_between_whole_numbers(study_file):
    _, trials = load_study(study_file)
    write_run(trials[0].folder, trials[0].config)
    rows = ["1,5,2.0,0.1", "1,10,1.5,0.2", "2,15,1.2,", "2,20,1.0,0.4"]
    (trials[0].folder / "metrics.csv").write_text("\n".join(["epoch,step,train_loss,val_top1", *rows]) + "\n")
    record = read_run(trials[0].folder)
    assert curve(record) == ([0.5, 1, 2], [0.1, 0.2, 0.4])
    assert curve(record, "train_loss") == ([0.5, 1, 1.5, 2], [2, 1.5, 1.2, 1])


def test_runs_of_the_same_name_are_told_apart(study_file, tmp_path):
    _, trials = load_study(study_file)
    for where in ("one", "two"):
        write_run(tmp_path / where / "run", trials[0].config)
    assert names([read_run(tmp_path / where / "run") for where in ("one", "two")]) == ["one/run", "two/run"]


def test_a_study_takes_up_runs_that_filled_in_what_was_left_open(tmp_path, study_file):
    """The mean and std of their weights, the loss of clips with several labels; by another number of processes too."""
    root = write_data_set(tmp_path / "data", train=4, val=2, test=2)
    weights = write_weights(tmp_path / "weights.safetensors", root, "data.mean=[0.5,0.4,0.3]", "model.pool.kind=avg")
    small = ["data.dataset=folder", f"data.root={root}", "data.num_frames=4", "data.sampling_rate=1", "device=cpu"]
    small += ["data.short_side=32", "data.train_short_side=[32,32]", "data.crop_size=32", "data.num_workers=0"]
    small += ["train.epochs=1", "train.batch_size=2", "test.num_clips=1", f"model.weights={weights}"]
    _, trials = load_study(study_file, small)
    assert run_study(trials[:1], train, lambda text: None) == {}
    folder = trials[0].folder
    config = read_run(folder).config
    assert config.data.mean == [0.5, 0.4, 0.3] != trials[0].config.data.mean
    text = (folder / "config.yaml").read_text()
    assert "loss: null" in text
    (folder / "config.yaml").write_text(text.replace("loss: null", "loss: binary"))  # as several labels leave it
    state = load_state(folder / "last" / "checkpoint.pt")
    save_state(folder / "last" / "checkpoint.pt", {**state, "processes": 2})  # a part of it was done elsewhere
    (folder / "summary.json").touch()
    assert run_study(trials[:1], lambda *_: pytest.fail("it is finished"), lambda text: None) == {}
    _, changed = load_study(study_file, [*small, "data.mean=[0.5,0.5,0.5]"])
    with pytest.raises(UsageError, match="tiny-soft-seed0 is a run with another data.mean; move it away"):
        run_study(changed[:1], lambda *_: pytest.fail("nothing is to be trained"), lambda text: None)


def write_multi_label_run(folder, config, test_map=0.625):
    """As training on clips with several labels leaves it: mAP beside top-1, and by another order."""
    write_run(folder, config, 0.9)
    rows = ["1,1.0,0.8,0.95,0.3,1.0", "2,0.5,0.8,0.9,0.6,2.0"]
    header = "epoch,train_loss,train_top1,val_top1,val_map,seconds"
    (folder / "metrics.csv").write_text("\n".join([header, *rows]) + "\n")
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"val_map": 0.6, "test_map": test_map}))


def test_runs_on_several_labels_are_compared_by_map(study_file, tmp_path):
    study, trials = load_study(study_file)
    write_multi_label_run(trials[0].folder, trials[0].config)
    write_multi_label_run(trials[1].folder, trials[1].config, test_map=0.5)
    records = [read_run(trial.folder) for trial in trials[:2]]
    heads, rows = compare(records).table()
    scores = ["best val mAP", "test mAP", "best val top-1", "test top-1"]
    assert heads == ["run", "model.pool.kind", "epochs", *scores, "seconds", "parameters"]
    assert [row[3:7] for row in rows] == [["60.0%", "62.5%", "95.0%", "90.0%"], ["60.0%", "50.0%", "95.0%", "90.0%"]]
    assert curve(records[0]) == ([1, 2], [0.3, 0.6])
    assert curves_text(records)[0] == "validation mAP"
    assert curves_figure(records).axes[1].get_ylabel() == "validation mAP"
    result = {"top1": 0.7, "mean_average_precision": 0.65, "num_clips": 10, "num_crops": 3, "split": "test"}
    (trials[0].folder / "test").mkdir()
    (trials[0].folder / "test" / "results.json").write_text(json.dumps(result))
    heads, rows = compare([read_run(trial.folder) for trial in trials[:2]]).table()
    assert [row[-1] for row in rows] == ["mAP 65.0% (10x3)", ""]
    page = study_page(study, trials, {}, "command", "a machine")
    assert "| variant | test mAP, mean |" in page and "| best val mAP, mean |" in page
    assert "| soft | 62.5% | " in page and "| max | +12.5 |" in page
    write_run(tmp_path / "one_label", trials[0].config, 0.75)
    mixed = [*records, read_run(tmp_path / "one_label")]
    assert curves_text(mixed)[0] == "validation top-1 or mAP"
    _, rows = compare(mixed).table()
    assert rows[2][2:7] == ["2/2", "", "", "60.0%", "75.0%"]


def test_compare_sorts_by_what_runs_are_judged_by(study_file, tmp_path, monkeypatch, capsys):
    _, trials = load_study(study_file)
    write_multi_label_run(trials[0].folder, trials[0].config, test_map=0.5)
    write_multi_label_run(trials[1].folder, trials[1].config, test_map=0.7)
    command = ["softpool3d", "compare", str(trials[0].folder), str(trials[1].folder), "--sort", "test"]
    monkeypatch.setattr("sys.argv", [*command, "--out", str(tmp_path / "table.csv")])
    with pytest.raises(SystemExit):
        cli.run()
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert "test mAP" in lines[0]
    assert [line.partition(",")[0] for line in lines[1:]] == [
        "tiny-max-seed0",
        "tiny-soft-seed0",
    ]
