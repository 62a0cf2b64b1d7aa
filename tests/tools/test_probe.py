"""`softpool3d probe` on features that are written here: what it measures, whose labels it finds, what it refuses."""

import json
import sys

import numpy as np
import pytest

from softpool3d.analysis.groups import read_groups
from softpool3d.evaluation.features import Row, write_features

ABOUT = {"weights": "w.safetensors", "sha256": "1" * 64, "network": "r3d_18", "layer": "stage4", "clips": 2}
pytest.importorskip("sklearn", reason="this machine has no scikit-learn")


def rows_of(folder, persons=5, takes=3, windows=1, confounded=False):
    """Videos of three classes; a class moves the first features apart, a person the others, and much further."""
    random = np.random.default_rng(0)
    rows = []
    for label, name in enumerate(("clap", "jump", "wave")):
        for person in range(persons):
            habit = np.zeros(40, np.float32)
            if confounded:  # a person's own way of each class: told apart within the person, and not beyond
                habit[8:] = 40 * np.random.default_rng((person, label)).standard_normal(32)
            for take in range(takes):
                for window in range(windows):
                    vector = random.standard_normal(40).astype(np.float32) + habit
                    if not confounded:
                        vector[label::3] += 9
                    place = folder / name / f"p{person}_{take}.mp4"
                    rows.append(Row(str(place), float(window), window + 1.0, vector))
    return rows


def write(path, rows, about=ABOUT):
    write_features(path, path.suffix, about, lambda: rows)
    return path


def write_lists(folder, persons=5, takes=3, grouped=True):
    names = [(c, p, t) for c in ("clap", "jump", "wave") for p in range(persons) for t in range(takes)]
    lines = [f"{c}/p{p}_{t}.mp4,{c}{f',person {p}' if grouped else ''}" for c, p, t in names]
    (folder / "all.csv").write_text("\n".join([f"path,label{',group' if grouped else ''}", *lines]) + "\n")
    for split, chosen in (("train", range(3)), ("test", range(3, persons))):
        lines = [f"{c}/p{p}_{t}.mp4,{c}" for c, p, t in names if p in chosen]
        (folder / f"{split}.csv").write_text("\n".join(["path,label", *lines]) + "\n")


def test_a_folder_whose_parts_are_of_two_networks_is_refused(run, tmp_path):
    (tmp_path / "parts").mkdir()
    kinds = [ABOUT, ABOUT | {"weights": "the same elsewhere"}, ABOUT | {"layer": "stem"}, ABOUT | {"sha256": "other"}]
    rows = rows_of(tmp_path / "videos")
    for number, about in enumerate(kinds):
        part = tmp_path / "parts" / f"{number:08d}-00000000.parquet"
        write_features(part, ".parquet", about, lambda: rows)
        found = run("probe", tmp_path / "parts")
        if number < 2:
            assert found.returncode == 0, found.stderr
        else:
            assert found.returncode == 2 and f"its part {part.name} is of another kind than 00000000-" in found.stderr
            assert {2: f"layer {ABOUT['layer']} and stem", 3: "weights "}[number] in found.stderr
            part.unlink()


def test_folders_are_classes_and_a_list_says_the_same(run, tmp_path):
    features = write(tmp_path / "a.npz", [*rows_of(tmp_path), Row("x.mp4", None, None, None, "broken")])
    write_lists(tmp_path)
    plain = run("probe", features)
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout.splitlines()[:2] == [
        "45 videos, 3 classes; 40 features of r3d_18, stage4",
        "cross-validation, 5 folds",
    ]
    assert "linear probe         100.0%\n" in plain.stdout  # without an interval: all are right
    assert "chance                33.3%" in plain.stdout and "majority class        33.3%\n" in plain.stdout
    assert plain.stderr.splitlines() == [
        "note: labels: the folders that the videos lie in",
        "note: 1 videos could not be read when the features were made",
    ]
    listed = run("probe", features, "--labels", tmp_path / "all.csv", "--folds", 3, "--json")
    found = json.loads(listed.stdout)
    assert (found["videos"], found["groups"], found["folds"], found["tested"]) == (45, 5, 3, 45)
    assert found["found"]["nearest neighbours"]["accuracy"] == 1.0 and found["features"] == ABOUT
    assert [(one["name"], one["videos"], one["recall"]) for one in found["classes"]] == [
        (name, 15, 1.0) for name in ("clap", "jump", "wave")
    ]


def test_groups_are_kept_apart(run, tmp_path):
    """Each person has ways of their own: known persons are told apart, others are not."""
    features = write(tmp_path / "a.npz", rows_of(tmp_path, takes=6, confounded=True))
    write_lists(tmp_path, takes=6)
    known = json.loads(run("probe", features, "--json", "--neighbours", 3).stdout)
    apart = json.loads(run("probe", features, "--json", "--neighbours", 3, "--labels", tmp_path / "all.csv").stdout)
    assert known["groups"] is None and known["found"]["nearest neighbours"]["accuracy"] > 0.9
    assert apart["groups"] == 5 and apart["found"]["nearest neighbours"]["accuracy"] < 0.75
    low, high = apart["found"]["linear probe"]["interval"]
    assert low < apart["found"]["linear probe"]["accuracy"] < high
    worst = apart["classes"][0]
    assert worst["recall"] < 1 and worst["taken_for"] in {"clap", "jump", "wave"} - {worst["name"]}
    (tmp_path / "all.csv").rename(tmp_path / "groups.csv")  # beside the class folders
    beside = json.loads(run("probe", features, "--json", "--neighbours", 3).stdout)
    assert beside["groups"] == 5 and beside["found"] == apart["found"]
    far = json.loads(run("probe", features, "--json", "--neighbours", 40).stdout)
    assert far["found"]["nearest neighbours"] != beside["found"]["nearest neighbours"]


def test_a_test_list_is_what_is_tested(run, tmp_path):
    rows = [row for row in rows_of(tmp_path) if "clap/p4" not in row.file]
    write_lists(tmp_path)
    features = write(tmp_path / "a.npz", rows)
    result = run("probe", features, "--labels", tmp_path / "train.csv", "--test", tmp_path / "test.csv")
    assert result.returncode == 0 and "trained on 27, tested on 15\n" in result.stdout, result.stderr
    assert f"note: 3 of 18 rows of {tmp_path / 'test.csv'} name no video of the features: " in result.stderr
    only = run("probe", features, "--labels", tmp_path / "train.csv")
    assert "note: 15 of 42 videos have no label, and are left out" in only.stderr
    (tmp_path / "all.csv").rename(tmp_path / "groups.csv")
    (tmp_path / "more.csv").write_text("path,label\njump/p3_0.mp4,jump\nwave/p3_1.mp4,wave\n")
    (tmp_path / "some.csv").write_text("path,label\njump/p3_1.mp4,jump\nwave/p3_0.mp4,wave\n")
    shared = run("probe", features, "--labels", tmp_path / "more.csv", "--test", tmp_path / "some.csv")
    assert "note: 1 groups are in" in shared.stderr and "such as person 3: what is tested is easier" in shared.stderr
    twice = run("probe", features, "--labels", tmp_path / "train.csv", "--test", tmp_path / "train.csv")
    assert twice.returncode == 2 and "train.csv:2: " in twice.stderr and "test on other videos" in twice.stderr


def test_windows_are_averaged_and_files_add_up(run, tmp_path):
    rows = rows_of(tmp_path, windows=4)
    first, second = write(tmp_path / "a.npz", rows[:90]), write(tmp_path / "b.npz", rows[90:])
    found = json.loads(run("probe", first, second, "--json").stdout)
    assert found["videos"] == 45 and found["found"]["linear probe"]["accuracy"] == 1.0
    other = write(tmp_path / "c.npz", rows, {**ABOUT, "sha256": "2" * 64, "weights": "other.safetensors"})
    mixed = run("probe", first, other)
    assert mixed.returncode == 2 and mixed.stderr == (
        f"error: {first} and {other}: features of two kinds do not mix, weights w.safetensors and other.safetensors\n"
    )


def test_paths_that_begin_elsewhere(run, tmp_path):
    """Features made in another folder, or before the videos moved, still find their labels by the ends of paths."""
    from pathlib import Path

    write_lists(tmp_path)
    features = write(tmp_path / "a.npz", rows_of(Path("old/videos")))
    found = run("probe", features, "--labels", tmp_path / "all.csv", "--json")
    assert found.returncode == 0 and json.loads(found.stdout)["videos"] == 45
    both = write(tmp_path / "b.npz", rows_of(Path("old")) + rows_of(Path("new")))
    found = run("probe", both, "--labels", tmp_path / "all.csv")
    assert (
        found.returncode == 2 and "all.csv: none of its 45 rows names a video of the features, such as" in found.stderr
    )


def test_requests_that_are_wrong(run, tmp_path, monkeypatch):
    features = write(tmp_path / "a.npz", rows_of(tmp_path))
    write_lists(tmp_path)

    def refused(*arguments):
        result = run("probe", *arguments)
        assert result.returncode == 2 and result.stderr.count("error") == 1, result.stderr
        return result.stderr

    assert f"no file of features {tmp_path / 'absent.npz'}" in refused(tmp_path / "absent.npz")
    assert "no list absent.csv" in refused(features, "--labels", "absent.csv")
    assert "--test needs --labels" in refused(features, "--test", tmp_path / "test.csv")
    (tmp_path / "other.csv").write_text("path,label\nsing/a.mp4,sing\n")
    assert "none of its 1 rows names a video of the features" in refused(features, "--labels", tmp_path / "other.csv")
    (tmp_path / "several.csv").write_text("path,labels\nclap/p0_0.mp4,clap;jump\n")
    assert "several labels each" in refused(features, "--labels", tmp_path / "several.csv")
    one = write(tmp_path / "one.npz", [row for row in rows_of(tmp_path) if "clap" in row.file])
    assert "there is one class alone, clap" in refused(one)
    single = write(tmp_path / "single.npz", rows_of(tmp_path, 1, 1))
    assert "each class has one video alone" in refused(single)
    person = write(tmp_path / "person.npz", rows_of(tmp_path, 1, 3))
    assert "all videos are of one group, person 0" in refused(person, "--labels", tmp_path / "all.csv")
    none = write(tmp_path / "none.npz", [Row("x.mp4", None, None, None, "broken")])
    assert "there are no features in it" in refused(none)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    for name in [name for name in sys.modules if name.startswith("sklearn.")]:
        monkeypatch.setitem(sys.modules, name, None)
    assert "a probe needs scikit-learn; pip install 'softpool3d[features]'" in refused(features)


def test_groups_without_their_columns(tmp_path):
    (tmp_path / "a.csv").write_text("path,label\nx.mp4,y\n")
    assert read_groups(tmp_path / "a.csv") == {} == read_groups(tmp_path / "absent.csv")
