"""What is said of a data set before training, and what is refused there."""

import shutil
from pathlib import Path

import pytest
from layouts import files, hmdb51, kinetics

from softpool3d.config import DataConfig
from softpool3d.datasets import read_manifests
from softpool3d.datasets.manifest import Clip, Manifest
from softpool3d.datasets.overview import absent_classes, odd_files, overview
from softpool3d.errors import UsageError


def config(root, dataset="folder", **settings):
    return DataConfig(dataset=dataset, root=str(root), **settings)


def said(root, dataset="folder", **settings):
    data = config(root, dataset, **settings)
    return overview(read_manifests(data), data)


def listed(root, train, val, clips=4, classes=None):
    """Lists with so many clips of each of these labels, and the files."""
    for split, labels in (("train", train), ("val", val)):
        names = [(f"v/{split}_{label}_{n}.mp4", label) for label in labels for n in range(clips)]
        files(root, [name for name, _ in names])
        (root / f"{split}.csv").write_text("".join(f"{name} {label}\n" for name, label in names))
    if classes:
        (root / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    return root


def foldered(root, **counts):
    files(root, [f"{label}/{n}.mp4" for label, count in counts.items() for n in range(count)])
    return root


def test_each_split_has_a_line_with_its_smallest_and_largest_class(tmp_path):
    files(tmp_path, ["train/a/1.mp4", "train/a/2.mp4", "train/a/3.mp4", "train/b/1.mp4", "train/c/1.mp4"])
    files(tmp_path, ["train/c/2.mp4", "val/a/8.mp4", "val/b/8.mp4", "val/c/8.mp4"])
    found = said(tmp_path)
    assert found.lines == (
        f"folder: 3 classes (a, b, c), from {tmp_path}",
        "  train  6 clips of 3 classes: 1 (b) to 3 (a)",
        "  val    3 clips of 3 classes: 1 of each",
    )
    assert found.notes == ()


def test_it_is_as_short_for_four_hundred_classes(tmp_path):
    classes = [f"class {number:03}" for number in range(400)]
    listed(tmp_path, range(400), range(0, 400, 2), 1, classes)
    found = said(tmp_path)
    assert len(found.lines) == 3 and found.lines[2] == "  val    200 clips of 200 of the 400 classes: 1 of each"
    assert found.notes == ("val has no clips of 200 of the 400 classes (class 001, class 003, class 005, ...)",)
    assert all(len(line) < 200 for line in (*found.lines, *found.notes))


def test_the_embedded_data_set_has_one_line():
    data = DataConfig(motion_clips=[16, 8, 8])
    lines, notes = overview(read_manifests(data), data)
    assert notes == () and len(lines) == 1
    assert lines[0].startswith("motion: 16 train, 8 val, 8 test clips, 8 classes (")


def test_labels_that_start_at_one(tmp_path):
    found = said(listed(tmp_path, (1, 2, 3, 4), (1, 2, 3, 4)))
    assert "  train  16 clips of 4 of the 5 classes: 4 of each" in found.lines
    assert found.notes == (
        "labels start at 1: class 0 has no clips, and an output of the network; if your list counts from 1, subtract 1",
    )


def test_labels_that_start_at_five(tmp_path):
    (note,) = said(listed(tmp_path, (5, 6), (5, 6))).notes
    assert note.startswith("labels start at 5: classes 0 to 4 have no clips")


def test_labels_with_gaps(tmp_path):
    (note,) = said(listed(tmp_path, (0, 100, 200, 300), (0, 100, 200, 300))).notes
    assert note.startswith("labels have gaps: of 0 to 300 only 4 have clips") and "number them from 0 to 3" in note


def test_names_without_clips(tmp_path):
    (note,) = said(listed(tmp_path, (0, 1), (0, 1), classes="abcde")).notes
    assert note == "without clips in any split: 3 of the 5 classes (c, d, e)"


def test_classes_that_only_some_splits_have(tmp_path):
    found = said(listed(tmp_path, (0, 1, 2), (0, 1, 3)))
    assert found.notes == (
        "without training clips, but in other splits: 1 of the 4 classes (3)",
        "val has no clips of 1 of the 4 classes (2)",
    )


def test_numbers_from_zero_without_a_gap_are_nothing_to_speak_of(tmp_path):
    assert said(listed(tmp_path, (0, 1, 2), (0, 1, 2))).notes == ()


@pytest.mark.parametrize("classes", [None, "abc"])
def test_training_clips_of_one_class_are_refused(tmp_path, classes):
    with pytest.raises(UsageError, match="all 4 training clips are of a single class, '?[0a]'") as error:
        said(listed(tmp_path, (0,), (0,) if classes is None else (0, 1), classes=classes))
    assert str(error.value).startswith(str(tmp_path / "train.csv"))
    assert ("of 3: b, c have none" in str(error.value)) == bool(classes)


def test_training_clips_that_all_have_the_same_labels_are_refused():
    same = [Clip(f"{n}.mp4", (0, 2)) for n in range(3)]
    data = DataConfig()
    with pytest.raises(UsageError, match="every training clip has the same labels"):
        overview({"train": Manifest(("a", "b", "c"), same), "val": Manifest(("a", "b", "c"), same)}, data)
    other = [*same, Clip("3.mp4", ())]
    assert overview({"train": Manifest(("a", "b", "c"), other), "val": Manifest(("a", "b", "c"), same)}, data).lines


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_clips_is_refused(split):
    manifests = {name: Manifest(("a", "b"), [Clip("1.mp4", 0), Clip("2.mp4", 1)]) for name in ("train", "val")}
    manifests[split] = Manifest(("a", "b"), ())
    with pytest.raises(UsageError, match=f"the {split} split has no clips"):
        overview(manifests, DataConfig())


def test_files_that_are_not_there(tmp_path):
    listed(tmp_path, (0, 1), (0, 1), clips=10)
    (tmp_path / "v" / "train_0_3.mp4").unlink()
    assert said(tmp_path).notes == (f"not on the disk: 1 of the 20 train clips ({tmp_path}/v/train_0_3.mp4)",)
    for number in range(3):
        (tmp_path / "v" / f"val_1_{number}.mp4").unlink()
    with pytest.raises(UsageError, match=r"val.csv: 3 of its 20 clips are not on .*max_bad_fraction=0.1 allows"):
        said(tmp_path)
    assert len(said(tmp_path, max_bad_fraction=0.5).notes) == 2


def test_a_split_none_of_whose_files_is_there(tmp_path):
    listed(tmp_path, (0, 1), (0, 1))
    for path in (tmp_path / "v").glob("val_*"):
        path.unlink()
    with pytest.raises(UsageError, match=r"val.csv: none of its 8 clips is on the disk \(no file .*val_0_0.mp4\)") as e:
        said(tmp_path, max_bad_fraction=1.0)
    assert "data.path_prefix" in str(e.value)


def test_files_left_out_by_their_ending(tmp_path):
    foldered(tmp_path, a=10, b=10)
    files(tmp_path, ["a/1.heic", "a/2.heic", "b/3.braw", "b/notes.txt", "b/.hidden.xyz"])
    assert said(tmp_path).notes == ("left out by their ending: 2 .heic, 1 .braw",)


def test_the_archives_of_a_data_set_are_not_left_out(tmp_path):
    files(hmdb51(tmp_path), ["hmdb51_org.rar", "test_train_splits.rar"])
    assert said(tmp_path, "hmdb51").notes == ()


def splits(**clips):
    return {name: Manifest(("a", "b"), some) for name, some in clips.items()}


def test_files_in_two_splits():
    train = [Clip(f"{n}.mp4", n % 2) for n in range(4)]
    assert odd_files(splits(train=train, val=[train[1], train[2], Clip("9.mp4", 1)])) == [
        "in train and in val: 2 files (1.mp4, ...)"
    ]
    val = [Clip("8.mp4", 0), Clip("9.mp4", 1)]
    assert odd_files(splits(train=train, val=val, test=[train[3], Clip("9.mp4", 1)])) == [
        "in train and in test: 1 file (3.mp4)",
        "in val and in test: 1 file (9.mp4)",
    ]


@pytest.mark.parametrize(
    ("mine", "theirs", "with_other_times"),
    [
        ((0, 10), (10, 20), True),
        ((None, 10), (10, None), True),
        ((0, 10), (9, 20), False),
        ((None, None), (5, 6), False),
        ((5, None), (1, 6), False),
    ],
)
def test_parts_of_a_file_in_two_splits(mine, theirs, with_other_times):
    (note,) = odd_files(splits(train=[Clip("a.mp4", 0, *mine)], val=[Clip("a.mp4", 0, *theirs)]))
    assert note == f"in train and in val{', with other times' if with_other_times else ''}: 1 file (a.mp4)"


def test_the_same_clip_with_two_labels():
    val = [Clip("v.mp4", 0)]
    repeated = [Clip("a.mp4", 0), Clip("a.mp4", 0), Clip("b.mp4", 1)]
    assert odd_files(splits(train=repeated, val=val)) == []
    assert odd_files(splits(train=[Clip("a.mp4", 0, 0, 5), Clip("a.mp4", 1, 5, 9)], val=val)) == []
    assert odd_files(splits(train=[*repeated, Clip("b.mp4", 0)], val=val)) == [
        "in train with two labels: 1 file (b.mp4)"
    ]


def test_official_splits_whose_test_split_is_their_validation_split(tmp_path, run):
    root = hmdb51(tmp_path / "hmdb")
    found = said(root, "hmdb51")
    assert found.lines[1:] == (
        "  train  4 clips of 2 classes: 2 of each",
        "  val    2 clips of 2 classes: 1 of each; test is the same clips",
    )
    assert found.notes == ()
    printed = run("prepare", "hmdb51", "--root", root)
    assert printed.returncode == 0 and all(line in printed.stdout for line in found.lines[1:])
    assert f"in no split: 1 of the videos below {root}" in printed.stdout  # official, and unused
    again = said(root, "hmdb51")
    assert again.lines[1:] == found.lines[1:] and again.notes == ()


def test_missing_clips_are_counted(tmp_path):
    assert said(kinetics(tmp_path), "kinetics400").lines[1].endswith("; 1 missing")


def test_what_came_or_went_since_prepare(tmp_path, run):
    root = foldered(tmp_path / "my videos", a=10, b=10)
    files(root, ["b/empty.mp4"], lambda path: path.touch())
    printed = run("prepare", "folder", "--root", root)
    assert printed.returncode == 0 and "1 bad files left out" in printed.stdout
    assert said(root).notes == ()  # what prepare left out did not come since
    files(root, ["b/more.mp4", "a/more.mp4"])
    gone = Path(read_manifests(config(root))["train"].clips[0].path)
    gone.unlink()
    command = f"softpool3d prepare folder --root '{root}'"
    assert said(root).notes == (
        f"files since `softpool3d prepare`: 1 gone ({gone}), 2 new (a/more.mp4, ...); to take that up: {command}",
    )
    moved = tmp_path / "elsewhere"
    shutil.move(root, moved)
    assert said(moved).notes[0].startswith(f"files since `softpool3d prepare`: 1 gone ({moved}/")
    assert run("prepare", "folder", "--root", moved).returncode == 0
    assert said(moved).notes == ()
    shutil.rmtree(moved / "a")
    shutil.rmtree(moved / "b")
    with pytest.raises(UsageError, match=r"none of its \d+ clips is on the disk .* run softpool3d prepare folder"):
        said(moved)


def test_copies_are_made_again_by_what_made_them(tmp_path, run):
    root = foldered(tmp_path, a=10, b=10)
    assert run("prepare", "folder", "--root", root).returncode == 0
    (root / "reencoding.json").write_text("{}")
    files(root, ["b/more.mp4"])
    (note,) = said(root).notes
    assert note.endswith(
        "1 new (b/more.mp4); to take that up: the `softpool3d prepare --reencode` that made the copies"
    )


def test_lists_of_ones_own_need_not_name_every_video(tmp_path):
    listed(tmp_path, (0, 1), (0, 1))
    files(tmp_path, ["v/unnamed.mp4", "v/picture.heic"])
    assert said(tmp_path).notes == ()


def test_a_manifest_of_an_earlier_version_says_nothing_of_what_came(tmp_path, run):
    root = foldered(tmp_path, a=10, b=10)
    assert run("prepare", "folder", "--root", root).returncode == 0
    (root / "manifest" / "unused.csv").unlink()
    files(root, ["b/more.mp4"])
    assert said(root).notes == ()


def test_classes_that_a_tested_split_lacks():
    manifest = Manifest(("a", "b", "c"), [Clip("1.mp4", 1)])
    assert absent_classes("test", manifest.classes, manifest.class_counts() == 0) == (
        "test has no clips of 2 of the 3 classes (a, c)"
    )
    assert absent_classes("test", ("a",), Manifest(("a",), [Clip("1.mp4", 0)]).class_counts() == 0) == ""


@pytest.mark.parametrize("by", ["folder", "list"])
def test_what_cannot_be_learned_is_refused_before_anything_is_written(tmp_path, run, by):
    root = foldered(tmp_path / "data", a=9) if by == "folder" else listed(tmp_path / "data", (0,), (0,))
    training = [
        "train",
        "--cfg",
        "r3d_softpool",
        "data.dataset=folder",
        f"data.root={root}",
        f"output={tmp_path / 'r'}",
    ]
    for command in (["prepare", "folder", "--root", root], training):
        result = run(*command)
        assert result.returncode == 2 and "Traceback" not in result.stderr
        assert "a single class, " in result.stderr and "there have to be two at least" in result.stderr
    assert not (root / "manifest").exists() and not (tmp_path / "r").exists()


def test_a_training_says_it_before_it_starts(tmp_path, run):
    """Also where the run is then refused, so that the numbers beside the refusal are explained."""
    listed(tmp_path, (1, 2), (1, 2))
    overrides = ["data.dataset=folder", f"data.root={tmp_path}", "train.batch_size=200", f"output={tmp_path / 'runs'}"]
    result = run("train", "--cfg", "r3d_softpool", *overrides)
    assert result.returncode == 2 and "train.batch_size=200" in result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == f"folder: 3 classes (0, 1, 2), from {tmp_path / 'train.csv'}"
    assert lines[1] == "  train  8 clips of 2 of the 3 classes: 4 of each" and lines[3].startswith("labels start at 1")
