from pathlib import Path

import pytest
from videos import read_numbers, write_numbered

from softpool3d.config import DataConfig
from softpool3d.config_file import load_config
from softpool3d.datasets import read_manifests
from softpool3d.datasets.inputs import Inputs
from softpool3d.datasets.manifest import Clip
from softpool3d.datasets.sources.folder import read_folder
from softpool3d.datasets.video.decoder import open_video
from softpool3d.datasets.video.find import find_videos, left_out, videos_in
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


@pytest.mark.parametrize(
    "files",
    [
        ["train/a/1.mp4", "train/b/2.mp4", "val/a/3.mp4"],
        ["train.csv", "val.csv", "1.mp4", "2.mp4"],
        ["manifest/train.csv", "manifest/val.csv", "manifest/1.mp4", "manifest/2.mp4"],
    ],
)
def test_a_division_of_what_is_divided_already_is_said_to_do_nothing(tmp_path, files, capsys):
    make(tmp_path, *files)
    for path in tmp_path.rglob("*.csv"):
        path.write_text("path,label\n1.mp4,a\n2.mp4,b\n")
    read_manifests(DataConfig(dataset="folder", root=str(tmp_path)))
    assert capsys.readouterr().err == ""
    read_manifests(DataConfig(dataset="folder", root=str(tmp_path), split=[0.5, 0.3, 0.2], split_seed=3))
    where = tmp_path / "manifest" if files[0].startswith("manifest") else tmp_path
    already = f"has no effect: {where} is divided into train and val already"
    assert capsys.readouterr().err == f"note: data.split=[0.5, 0.3, 0.2] {already}\nnote: data.split_seed=3 {already}\n"


def test_a_division_that_is_made_here_is_not_said_to_do_nothing(tmp_path, capsys):
    make(tmp_path, *(f"train/{label}/{i}.mp4" for label in "ab" for i in range(9)))
    splits = read_folder(tmp_path, (0.5, 0.5, 0.0), 1)
    assert {name: len(manifest) for name, manifest in splits.items()} == {"train": 10, "val": 8}
    assert capsys.readouterr().err == ""


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


def test_a_class_may_be_called_train_where_classes_txt_says_so(tmp_path):
    make(tmp_path, *(f"{label}/{i}.mp4" for label in ("bus", "train") for i in range(5)))
    with pytest.raises(UsageError, match="holds train/, named as splits are, beside bus/; .* classes.txt"):
        read_folder(tmp_path)
    (tmp_path / "classes.txt").write_text("train\nbus\n")
    assert read_folder(tmp_path)["train"].classes == ("train", "bus")


def test_a_class_of_a_split_may_be_called_train(tmp_path):
    make(tmp_path, *(f"{split}/{label}/1.mp4" for split in ("train", "val") for label in ("bus", "train")))
    (tmp_path / "classes.txt").write_text("train\nbus\n")
    assert names(read_folder(tmp_path)["train"]) == {("1.mp4", "bus"), ("1.mp4", "train")}


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("Train", "Validation", "Test"), ("training", "validation", "testing"), ("train", "valid", "TEST")]
    + [("TRAINING", "Eval", None), ("train", "dev", None), ("train", "Val", None)],
)
def test_splits_go_by_their_usual_names_in_any_case(tmp_path, train, val, test):
    expected = {split: name for split, name in (("train", train), ("val", val), ("test", test)) if name}
    make(tmp_path, *(f"{name}/{label}/{split}.mp4" for split, name in expected.items() for label in "ab"))
    splits = read_folder(tmp_path)
    assert list(splits) == list(expected)
    for split, manifest in splits.items():
        assert manifest.classes == ("a", "b") and names(manifest) == {(f"{split}.mp4", "a"), (f"{split}.mp4", "b")}


@pytest.mark.parametrize(
    ("train", "val"), [("Train.csv", "Validation.csv"), ("training.txt", "dev.txt"), ("train.csv", "valid.list")]
)
def test_lists_of_splits_go_by_the_same_names(tmp_path, train, val):
    make(tmp_path, "1.mp4", "2.mp4", "3.mp4")
    (tmp_path / train).write_text("1.mp4 0\n2.mp4 1\n")
    (tmp_path / val).write_text("3.mp4 1\n")
    assert {split: len(manifest) for split, manifest in read_folder(tmp_path).items()} == {"train": 2, "val": 1}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["train/1.mp4", "train/2.mp4", "val/3.mp4"],
            r"no videos in class folders of .*train, but 2 in no class folder",
        ),
        (["train/a/1.mp4", "train/b/1.mp4", "val/1.mp4"], r"no videos in class folders of .*val, but 1 in no class"),
        (["train/a/1.mp4", "val/a/1.mp4", "validation/a/1.mp4"], "val and validation in .* both mean the split 'val'"),
        (["Test/a/1.mp4", "test/a/1.mp4", "train/a/1.mp4"], "Test and test in .* both mean the split 'test'"),
        (["test/1.mp4", "walk/1.mp4", "run/1.mp4"], "holds test/, named as splits are, beside run/, walk/; move"),
        (["train/1.mp4", "jumping/1.mp4"], "holds train/, named as splits are, beside jumping/"),
        (["val/a/1.mp4", "test/a/1.mp4"], "holds val/, test/, but no training split"),
        (
            ["train/a/1.mp4", "train/b/1.mp4", "val/A/1.mp4"],
            r"class 'A' is in .*val but not in .*train \(there it is 'a'",
        ),
        (
            ["walk/1.jpg", "walk/2.jpg", "run/1.jpg"],
            r"no videos in .* \(run/ holds pictures; a class folder holds folders",
        ),
        (["1.mp4", "2.mp4"], r"no videos in .*, but 2 in no class folder \(1.mp4 first\); it has to hold <class>/"),
    ],
)
def test_split_folders_are_never_ignored_and_never_become_classes(tmp_path, files, message):
    with pytest.raises(UsageError, match=message):
        read_folder(make(tmp_path, *files))


def test_what_lies_beside_splits_and_classes_is_said(tmp_path, capsys):
    make(tmp_path, *(f"{split}/{label}/1.mp4" for split in ("train", "val") for label in "ab"))
    make(tmp_path, "raw/1.mp4", "train/c/notes.txt", "val/2.mp4", "manifest/train.csv", "docs/readme.txt")
    assert read_folder(tmp_path)["train"].classes == ("a", "b")
    said = capsys.readouterr().err
    assert "note: the videos in raw/ are in no split" in said
    assert f"note: no videos in c/ of {tmp_path / 'train'}: not taken for classes" in said
    assert f"note: videos in no class folder of {tmp_path / 'val'} are left out: 2.mp4" in said
    assert "docs" not in said


# --- Hugging Face ----------------------------------------------------------------------------------------------------


def test_metadata_of_hugging_face_in_each_split(tmp_path):
    make(tmp_path, "train/1.mp4", "train/2.mp4", "validation/3.mp4")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\n1.mp4,walk\n2.mp4,run\n")
    with pytest.raises(UsageError, match=r"no metadata.csv \(file_name,label\) in .*validation, but one in .*train"):
        read_folder(tmp_path)
    (tmp_path / "validation" / "metadata.csv").write_text("file_name,label\n3.mp4,run\n")
    splits = read_folder(tmp_path)
    assert splits["train"].classes == ("run", "walk")
    assert names(splits["train"]) == {("1.mp4", "walk"), ("2.mp4", "run")}
    assert names(splits["val"]) == {("3.mp4", "run")}
    assert all(Path(clip.path).exists() for manifest in splits.values() for clip in manifest.clips)


def test_one_metadata_of_hugging_face_for_all(tmp_path):
    make(tmp_path, *(f"{folder}/{i}.mp4" for folder in ("train", "val", "videos") for i in range(10)))

    def write(*folders):
        rows = [f"{folder}/{i}.mp4,{'ab'[i % 2]}" for folder in folders for i in range(10)]
        (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
        return {split: len(manifest) for split, manifest in read_folder(tmp_path).items()}

    assert write("train", "val") == {"train": 10, "val": 10}
    with pytest.raises(UsageError, match="metadata.csv: some of its files are in folders of splits, but not all"):
        write("train", "videos")


def test_a_table_of_something_else_is_no_list(tmp_path):
    make(tmp_path, *(f"{label}/{i}.mp4" for label in "ab" for i in range(5)))
    (tmp_path / "metadata.csv").write_text("subject,age\n1,30\n")
    assert read_folder(tmp_path)["train"].classes == ("a", "b")


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


MORE_ENDINGS = [
    "3g2",
    "apng",
    "asf",
    "divx",
    "dv",
    "f4v",
    "gif",
    "m2ts",
    "m2v",
    "MTS",
    "mxf",
    "ogg",
    "ogv",
    "qt",
    "rm",
    "rmvb",
    "vob",
]


def test_videos_of_many_endings_are_found(tmp_path):
    make(tmp_path, *(f"{label}/{ending}.{ending}" for label in "ab" for ending in MORE_ENDINGS))
    assert {Path(path).name for path in find_videos(tmp_path / "a")} == {f"{e}.{e}" for e in MORE_ENDINGS}
    assert sum(map(len, read_folder(tmp_path).values())) == 2 * len(MORE_ENDINGS)


def test_files_that_are_no_videos_are_counted_by_their_ending(tmp_path):
    make(tmp_path, "a/1.mp4", "a/1.ZIP", "b/2.zip", "b/2.braw", "b/noending", "b/frames/1.jpg", "b/frames/2.jpg")
    make(tmp_path, "a/1.srt", "classes.txt", "a/._1.mp4", "a/.DS_Store", "a/Thumbs.db", "__MACOSX/a/1.braw")
    assert left_out(tmp_path) == {".zip": 2, ".braw": 1, "no ending": 1}
    make(tmp_path, "a/thumbnail.jpg")
    assert left_out(tmp_path)[".jpg"] == 1


def test_files_of_macos_and_of_network_disks_are_passed_over(tmp_path):
    make(tmp_path, *(f"{label}/{i}.mp4" for label in "ab" for i in range(5)))
    make(tmp_path, "a/._0.mp4", "__MACOSX/a/._0.mp4", "__MACOSX/a/0.mp4", "a/@eaDir/0.mp4/SYNOVIDEO_SCREENSHOT.jpg")
    splits = read_folder(tmp_path)
    assert splits["train"].classes == ("a", "b") and sum(map(len, splits.values())) == 10


@pytest.mark.parametrize(
    ("ending", "container", "codec"),
    [("m2ts", "m2ts", "libx264"), ("MTS", "mts", "libx264"), ("vob", "vob", "mpeg2video"), ("asf", "asf", "msmpeg4")]
    + [("mxf", "mxf", "mpeg2video"), ("3g2", "3g2", "libx264"), ("f4v", "f4v", "libx264"), ("m2v", "m2v", "mpeg2video")]
    + [("divx", "avi", "mpeg4"), ("qt", "mov", "mpeg4"), ("ogg", "ogg", "libvpx"), ("rm", "rm", "rv20")],
)
def test_videos_of_these_endings_are_read(tmp_path, ending, container, codec):
    (tmp_path / "a").mkdir()
    path = write_numbered(tmp_path / f"made.{container}", 6, codec).rename(tmp_path / "a" / f"1.{ending}")
    [found] = find_videos(tmp_path)
    assert found == str(path)
    with open_video(found) as video:
        assert read_numbers(video.frames(range(video.num_frames))) == list(range(6))


def test_a_folder_that_is_named_says_what_it_leaves_out(tmp_path, capsys):
    make(tmp_path, "clips/1.mp4", "clips/2.braw", "clips/readme.txt", "frames/img_1.jpg", "frames/flow_x_1.jpg")
    assert videos_in(tmp_path / "clips") == [str(tmp_path / "clips" / "1.mp4")]
    assert capsys.readouterr().err == f"note: left out of {tmp_path / 'clips'}: 1 .braw\n"
    assert videos_in(tmp_path / "frames") == [str(tmp_path / "frames")]
    assert capsys.readouterr().err == f"note: left out of {tmp_path / 'frames'}: 1 flow_x_*.jpg\n"
    make(tmp_path, "plain/frame1.jpg", "plain/frame2.jpg")
    assert list(Inputs([str(tmp_path / "plain")])) == [Clip(str(tmp_path / "plain"), 0)]
    assert not capsys.readouterr().err
