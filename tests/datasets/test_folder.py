import pytest

from softpool3d.config import load_config
from softpool3d.datasets import read_manifests
from softpool3d.datasets.folder import read_folder
from softpool3d.errors import UsageError


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def names(manifest):
    return {(clip.path.rpartition("/")[2], manifest.classes[clip.label]) for clip in manifest.clips}


def test_split_on_disk(tmp_path):
    make(tmp_path, "train/b/1.mp4", "train/a/sub/2.AVI", "train/a/notes.txt", "val/a/3.mkv", "test/b/4.webm")
    splits = read_folder(tmp_path)
    assert splits["train"].classes == splits["test"].classes == ("a", "b")
    assert names(splits["train"]) == {("1.mp4", "b"), ("2.AVI", "a")}
    assert names(splits["val"]) == {("3.mkv", "a")}
    assert names(splits["test"]) == {("4.webm", "b")}


def test_split_here_by_a_seed(tmp_path):
    make(tmp_path, *(f"{label}/{i}.mp4" for label in ("run", "Grüße winken") for i in range(20)))
    splits = read_folder(tmp_path)
    assert {name: len(manifest) for name, manifest in splits.items()} == {"train": 32, "val": 4, "test": 4}
    everything = [clip.path for manifest in splits.values() for clip in manifest.clips]
    assert len(set(everything)) == 40
    assert splits == read_folder(tmp_path)
    assert splits != read_folder(tmp_path, seed=1)
    for manifest in splits.values():
        assert {clip.label for clip in manifest.clips} == {0, 1}


def test_validation_comes_out_of_training_where_there_is_none(tmp_path):
    make(tmp_path, *(f"train/{label}/{i}.mp4" for label in "ab" for i in range(9)))
    splits = read_folder(tmp_path)
    assert {name: len(manifest) for name, manifest in splits.items()} == {"train": 16, "val": 2}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no videos in"),
        (["1.mp4"], "no videos in"),
        (["a/1.mp4", "a/2.mp4"], "single class, 'a'"),
        (["train/a/1.mp4", "train/b/1.mp4", "val/c/1.mp4"], "class 'c' is in"),
        (["a/1.mp4", "b/1.mp4"], "too few videos"),
        (["train/a/1.mp4", "train/b/1.mp4", "val/a/notes.txt"], "no videos in .*val"),
    ],
)
def test_what_is_wrong_with_a_folder(tmp_path, files, message):
    with pytest.raises(UsageError, match=message) as error:
        read_folder(make(tmp_path, *files))
    assert "data." in str(error.value)


def test_links_in_a_circle_count_no_file_twice(tmp_path):
    make(tmp_path, *(f"{label}/{i}.mp4" for label in "ab" for i in range(5)))
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    assert sum(len(manifest) for manifest in read_folder(tmp_path).values()) == 10


def test_a_class_may_be_called_train(tmp_path):
    make(tmp_path, *(f"{label}/{i}.mp4" for label in ("bus", "train") for i in range(5)))
    assert read_folder(tmp_path)["train"].classes == ("bus", "train")


def test_a_class_name_that_is_no_text(tmp_path):
    import os

    folder = os.fsencode(tmp_path) + b"/a\xff"
    os.mkdir(folder)
    with open(folder + b"/1.mp4", "wb"):
        pass
    with pytest.raises(UsageError, match="is not named in UTF-8"):
        read_folder(tmp_path)


def test_no_such_folder(tmp_path):
    with pytest.raises(UsageError, match="no folder"):
        read_folder(tmp_path / "absent")
    with pytest.raises(UsageError, match="is a file"):
        read_folder(make(tmp_path, "a.mp4") / "a.mp4")


def test_data_sets_by_name(tmp_path):
    config = load_config("r3d_softpool", ["data.dataset=folders"])
    with pytest.raises(UsageError, match="unknown data set 'folders'; did you mean folder.*motion"):
        read_manifests(config.data)
    with pytest.raises(UsageError, match="data.root is not set"):
        read_manifests(load_config("r3d_softpool", ["data.dataset=folder"]).data)
