"""Studies: the statistics by hand, the runs with a stand-in for training, and one small study whole."""

import io
import json
import os
import shutil
import signal

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from scores import write_data_set, write_weights

import softpool3d
from softpool3d import cli
from softpool3d.analysis.comparison import compare, curve, curves_figure, curves_text, names, picture
from softpool3d.analysis.folders import read_run
from softpool3d.analysis.measuring import machine
from softpool3d.analysis.statistics import grouped_interval, paired_difference, spread, t_quantile
from softpool3d.analysis.study import load_study
from softpool3d.analysis.study_findings import Findings, findings
from softpool3d.analysis.study_report import study_page, write_study
from softpool3d.analysis.study_results import Results
from softpool3d.analysis.study_run import run_study
from softpool3d.errors import UsageError
from softpool3d.evaluation.scores import Scores, VideoScores
from softpool3d.runs.checkpoint import load_state, save_state
from softpool3d.runtime.interrupt import Interrupted


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


class StandIn:
    """Takes the place of the runs' processes: `work(trial)` does what a training would, and returns its exit code."""

    def __init__(self, work):
        self.work, self.started = work, []

    def __call__(self, trial, jobs):
        self.started.append(trial)
        self.code = self.work(trial)
        return self

    def poll(self):
        return self.code

    wait = poll

    def kill(self):
        pytest.fail("it has ended")


def unexpected(trial):
    pytest.fail(f"{trial.folder} is not to be trained")


def run(trials, work, results=None):
    return run_study(trials, results or Results(), Console(file=io.StringIO()), 1, StandIn(work))


def results_of(trials):
    results = Results()
    results.gather(trials)
    return results


def page_of(study, trials, failed=()):
    return page_from(study, trials, results_of(trials), failed)


def page_from(study, trials, results, failed=()):
    failed = dict(failed)
    return study_page(study, trials, findings(study, trials, results, failed), failed, "command", "study.png")


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

    def stand_in(trial):
        trained.append(trial)
        if len(trained) == 3:
            (trial.folder / "last").mkdir(parents=True)
            (trial.folder / "config.yaml").write_text(trial.config.to_yaml())
            os.kill(os.getpid(), signal.SIGTERM)
            return 128 + signal.SIGTERM
        if len(trained) == 5:
            trial.folder.with_name(f"{trial.folder.name}.log").write_text("epoch 1\nerror: the loss is nan\n")
            return 1
        if trial.folder.exists():
            shutil.rmtree(trial.folder)
        write_run(trial.folder, trial.config, top1[trial.variant, trial.seed])
        return 0

    with pytest.raises(Interrupted, match="the same command goes on where it was"):
        run(trials, stand_in)
    assert "2 of 4 runs are finished" in page_of(study, trials)
    failed = run(trials, stand_in)
    assert trained == [trials[n] for n in (0, 1, 2, 2, 3)]
    page = page_of(study, trials, failed)
    assert "3 of 4 runs are finished" in page and "- tiny-max-seed1: the loss is nan" in page
    assert run(trials, stand_in) == {}
    page = page_of(study, trials)
    assert f"4 of 4 runs are finished; they took 12 seconds on {machine(torch.device('cpu'))}." in page
    assert "| soft | 85.0% | 7.1 | 80.0, 90.0 | 60.0% | 80.0% | 0.00 M | 3 |  |" in page
    assert "| max | +10.0 | +10.0 to +10.0 |  | +10.0, +10.0 | soft is better |" in page
    assert "**tiny**: soft 85.0%, max 75.0% (top-1 on 0 test clips, mean of 2 seeds). soft is better than max." in page


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
    write_run(trials[0].folder, trials[0].config, 0.5)
    (trials[0].folder / "run.json").write_text('[{"versions": {"softpool3d": "0.0.1"}}]')
    trials[2].folder.mkdir()
    trained = []
    failed = run(trials, lambda trial: trained.append(trial) or write_run(trial.folder, trial.config, 0.5) or 0)
    assert trained == trials[3:]  # the others go on
    assert [failed[str(trial.folder)].partition(";")[0] for trial in trials[:3]] == [
        f"softpool3d 0.0.1 made it, and this is {softpool3d.__version__}",
        "it is a run with another seed",
        "it is not the folder of a run (it has no config.yaml)",
    ]


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
    assert run_study(trials, Results(), Console(file=io.StringIO()), jobs=2) == {}
    page = page_of(study, trials)
    assert "4 of 4 runs are finished" in page
    summary = json.loads((trials[0].folder / "summary.json").read_text())
    row = next(line for line in page.splitlines() if line.startswith("| soft | ") and "%" in line)
    assert f"{summary['test_top1']:.1%}" in row
    scores = VideoScores.load(trials[0].folder / "scores.npz")
    assert scores.scores.accuracy() == summary["test_top1"] and len(scores.videos) == 5 == summary["test_clips"]
    assert scores.about["split"] == "test" and scores.about["num_clips"] == 1
    assert run(trials, unexpected) == {}


SETS = (
    STUDY.replace(
        "variants:",
        """\
sets:
  first: [data.num_frames=4]
  second: []
  third: []
variants:""",
    )
    .replace(
        "reference",
        """\
once: [max]
chosen: {best: [soft, sharp]}
pairs: {first: [[jump, run]]}
reference""",
    )
    .replace("  max:", "  sharp: [model.pool.beta=4]\n  max:")
)


@pytest.fixture
def study_of_sets(tmp_path, study_file):
    study_file.write_text(SETS.replace("{output}", str(tmp_path / "runs")))
    small = ["data.short_side=32", "data.train_short_side=[32,32]", "data.crop_size=32", "data.sampling_rate=1"]
    (tmp_path / "tiny.yaml").write_text(
        NETWORK
        + "data: {num_frames: 2, num_workers: 0, "
        + ", ".join(small).replace("data.", "").replace("=", ": ")
        + "}\n"
    )
    for name in ("first", "second"):
        write_data_set(tmp_path / "data" / name, train=4, val=2, test=5)
    return study_file


def test_a_study_of_several_data_sets(study_of_sets, tmp_path):
    study, trials = load_study(study_of_sets, None, tmp_path / "data")
    assert [trial.config.name for trial in trials[:3]] == [
        f"first-tiny-{kind}-seed0" for kind in ("soft", "sharp", "max")
    ]
    assert len(trials) == 2 * (3 + 2)  # max with the first seed alone
    assert {trial.data_set: trial.config.data.num_frames for trial in trials} == {"first": 4, "second": 2}
    assert trials[0].config.data.root == str(tmp_path / "data" / "first")
    top1 = {"soft": 0.5, "sharp": 0.75, "max": 0.625}
    assert run(trials, lambda t: write_run(t.folder, t.config, top1[t.variant]) or 0) == {}
    page = page_of(study, trials)
    assert "- third: its folder was not there" in page and "## first, tiny" in page and "## second, tiny" in page
    assert "With seed 0 alone: max." in page
    rows = [line for line in page.splitlines() if line.startswith("| best | ") and "%" in line]
    assert len(rows) == 3 and all("50.0%" in row or "75.0%" in row or "0%, 0%" in row for row in rows)


def test_a_data_set_that_changed_is_not_mixed_with_what_it_was(study_of_sets, tmp_path):
    _, trials = load_study(study_of_sets, None, tmp_path / "data")
    done = lambda t: write_run(t.folder, t.config, 0.5) or 0  # noqa: E731
    assert run(trials[:1], done) == {}
    clip = next((tmp_path / "data" / "first").rglob("*.mp4"))
    times, content = clip.stat(), clip.read_bytes()
    clip.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(clip, (times.st_atime, times.st_mtime))
    failed = run(trials, done)
    assert {trial.data_set for trial in trials if str(trial.folder) in failed} == {"first"}
    assert all("holds other clips than when this study began" in problem for problem in failed.values())
    clip.write_bytes(content)
    assert run(trials, done) == {}


def test_a_study_goes_on_from_the_results_beside_its_page(study_of_sets, tmp_path):
    """On a machine that has no folder of a run, or no more: nothing is trained twice, and the page is the same."""
    study, trials = load_study(study_of_sets, None, tmp_path / "data")
    done = lambda t: write_run(t.folder, t.config, 0.5) or write_scores(t.folder, {"a": (True, False)}) or 0  # noqa: E731
    results = Results()
    assert run(trials[:4], done, results) == {}
    page = page_from(study, trials, results)
    assert "4 of 10 runs are finished" in page and "| soft | 50%, 50% |" in page
    write_study(tmp_path / "study.md", study, trials, results, {}, "command")
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG") and "](study.png)" in page
    shutil.rmtree(tmp_path / "runs")
    there = Results.read(tmp_path / "study.json")
    assert there == results and page_from(study, trials, there) == page
    trained = []
    assert run(trials, lambda t: trained.append(t) or done(t), there) == {}
    assert trained == trials[4:] and len(there.runs) == 10
    assert all(len(line) < 600 for line in (tmp_path / "study.json").read_text().splitlines())


def test_results_that_do_not_fit_are_not_used(study_of_sets, tmp_path):
    study, trials = load_study(study_of_sets, None, tmp_path / "data")
    results = Results()
    assert run(trials[:1], lambda t: write_run(t.folder, t.config, 0.5) or 0, results) == {}
    shutil.rmtree(tmp_path / "runs")
    _, others = load_study(study_of_sets, ["optim.lr=0.5", "data.num_workers=3"], tmp_path / "data")
    failed = run(others[:1], unexpected, results)
    assert "was made with other settings; name another page with --out" in failed[str(others[0].folder)]
    assert "0 of 10 runs are finished" in page_from(study, others, results, failed)
    _, elsewhere = load_study(study_of_sets, ["data.num_workers=3", f"output={tmp_path / 'r'}"], tmp_path / "data")
    assert run(elsewhere[:1], unexpected, results) == {}  # neither matters to a result
    next((tmp_path / "data" / "first").rglob("*.mp4")).write_bytes(b"another clip")
    failed = run(trials[:1], unexpected, results)
    assert "holds other clips than when this study began" in failed[str(trials[0].folder)]
    assert "0 of 10 runs are finished" in page_from(study, trials, results, failed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-20], "is no file of a study's results, or it is damaged"),
        (lambda text: text.replace('"test":0.5', '"test":"high"'), r"\(runs.first-tiny-soft-seed0.test: Input should"),
        (lambda text: text.replace('"labels":[0,', '"labels":[7,'), "labels of first fit neither its videos nor"),
        (lambda text: text.replace('"answers":[0,', '"answers":['), "answers of first-tiny-soft-seed0 are not one for"),
        (lambda text: text.replace(softpool3d.__version__, "0.0.1"), "holds runs of softpool3d 0.0.1, and this is"),
    ],
)
def test_a_damaged_or_foreign_file_of_results(study_of_sets, tmp_path, change, message):
    _, trials = load_study(study_of_sets, None, tmp_path / "data")
    write_run(trials[0].folder, trials[0].config, 0.5)
    write_scores(trials[0].folder, {"a": (True, False)})
    path = tmp_path / "study.json"
    results_of(trials).write(path)
    path.write_text(change(path.read_text()))
    with pytest.raises(UsageError, match=message):
        Results.read(path)


def test_any_folder_of_videos_may_stand_for_the_data_sets(study_of_sets, tmp_path):
    with pytest.raises(
        UsageError, match="--data: the study is on first, second, third; name the folder that holds them"
    ):
        load_study(study_of_sets)
    with pytest.raises(UsageError, match="--data: there is no folder .*nowhere"):
        load_study(study_of_sets, None, tmp_path / "nowhere")
    _, trials = load_study(study_of_sets, None, tmp_path / "data" / "second")  # as it holds none of them
    assert {trial.data_set for trial in trials} == {"second"} and len(trials) == 5
    study_of_sets.write_text(STUDY.format(output=tmp_path / "runs"))
    _, trials = load_study(study_of_sets, None, tmp_path / "data" / "first")
    assert {(trial.config.data.dataset, trial.data_set) for trial in trials} == {("folder", "first")}


def test_intervals_over_groups_of_clips():
    values = [1.0, 1.0, 1.0, 0.0, 0.0, 0.5]
    assert grouped_interval(values, ["a"] * 6) is None
    assert grouped_interval([1.0] * 6, list("aaabbb")) is None  # all right: no resample would differ
    assert grouped_interval(values, ["a", "a", "a", "b", "b", "b"]) == (pytest.approx(1 / 6), 1.0)
    low, high = grouped_interval([0.0, 1.0] * 50, list(range(100)))
    assert low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.02) and high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.02)


def write_scores(folder, right, classes=("jump", "run")):
    """Scores of one clip of each group and class: right[group][class] says whether the answer is right."""
    labels = torch.tensor([label for _ in right for label in (0, 1)])
    answers = torch.tensor(
        [label if good else 1 - label for goods in right.values() for label, good in enumerate(goods)]
    )
    probabilities = torch.nn.functional.one_hot(answers, 2).float()
    videos = tuple(f"{classes[label]}/{group}.mp4" for group in right for label in (0, 1))
    VideoScores(Scores(probabilities, labels, torch.arange(len(labels))), videos, classes, {}).save(
        folder / "scores.npz"
    )


def test_clips_of_one_person_count_as_one_and_pairs_are_told_apart(study_of_sets, tmp_path, monkeypatch):
    study, trials = load_study(study_of_sets, None, tmp_path / "data")
    mine = [t for t in trials if t.data_set == "first" and t.variant in ("soft", "sharp")]
    people = {"ann": (True, True), "bob": (True, False), "cat": (True, True)}
    for trial in mine:
        write_run(trial.folder, trial.config, 5 / 6 if trial.variant == "soft" else 0.5)
        write_scores(trial.folder, people if trial.variant == "soft" else {name: (True, False) for name in people})
    names = [f"{label}/{name}.mp4" for name in people for label in ("jump", "run")]
    monkeypatch.setattr(Findings, "groups", {name: name.split("/")[1] for name in names})
    finding = findings(study, trials, results_of(trials))["first", "tiny"]
    compared = finding.compared("sharp")
    assert compared.by_seed.mean == pytest.approx(1 / 3) and compared.by_clip == (0.0, 0.5)
    assert finding.pairs("soft") == [(pytest.approx(5 / 6), pytest.approx(1 / 6))]
    page = page_of(study, trials)
    assert "| soft | 83%, 17% |" in page and "| sharp | 50%, 50% |" in page
    assert "| sharp | +33.3 | +33.3 to +33.3 | +0.0 to +50.0 | +33.3, +33.3 | not told apart |" in page


def test_the_groups_of_a_data_set_are_read(study_of_sets, tmp_path):
    study, trials = load_study(study_of_sets, None, tmp_path / "data")
    root = tmp_path / "data" / "first"
    rows = [f"video {number}.mp4,x,person {number}" for number in range(3)]
    (root / "groups.csv").write_text("\n".join(["path,label,group", *rows]) + "\n")
    write_run(trials[0].folder, trials[0].config, 0.5)
    groups = findings(study, trials, results_of(trials))["first", "tiny"].groups
    assert groups["video 1.mp4#0.05-0.55"] == "person 1" and len(groups) == 5 and len(set(groups.values())) == 3


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
    assert problems[1] == "it is not the folder of a run (it has no config.yaml)"
    assert problems[2].startswith("there is no such folder; there are ")
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
    assert run_study(trials[:1], Results(), Console(file=io.StringIO())) == {}
    folder = trials[0].folder
    config = read_run(folder).config
    assert config.data.mean == [0.5, 0.4, 0.3] != trials[0].config.data.mean
    text = (folder / "config.yaml").read_text()
    assert "loss: null" in text
    (folder / "config.yaml").write_text(text.replace("loss: null", "loss: binary"))  # as several labels leave it
    state = load_state(folder / "last" / "checkpoint.pt")
    save_state(folder / "last" / "checkpoint.pt", {**state, "processes": 2})  # a part of it was done elsewhere
    (folder / "summary.json").touch()
    assert run(trials[:1], unexpected) == {}
    _, changed = load_study(study_file, [*small, "data.mean=[0.5,0.5,0.5]"])
    assert "it is a run with another data.mean; move it away" in run(changed[:1], unexpected)[str(folder)]


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
    page = page_of(study, trials)
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


def test_the_study_of_digits_says_what_it_is_of_and_what_not():
    study, trials = load_study("study/digits")
    assert {trial.config.data.dataset for trial in trials} == {"digits"} and len(trials) == 12
    page = page_of(study, trials)
    assert "scikit-learn's 1797 handwritten digits of 8x8 pixels" in page and ": pictures of 32x32;" in page
    assert "says nothing of ImageNet" in page.replace("\n", " ") and "of each video" not in page
