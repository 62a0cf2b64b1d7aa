"""Data sets as they lie on a disk, in miniature, with the odd names that they have."""

import json
from pathlib import Path

import pytest
from layouts import HMDB51, files, hmdb51, kinetics, kinetics_json, ssv2, texts, ucf101
from videos import write_numbered

from softpool3d.config import DataConfig
from softpool3d.datasets import read_manifests
from softpool3d.errors import UsageError


def read(dataset, root, **settings):
    return read_manifests(DataConfig(dataset=dataset, root=str(root), **settings))


def clips(manifest):
    """{(file name, class name)}"""
    return {(Path(clip.path).name, manifest.classes[clip.label]) for clip in manifest.clips}


def on_disk(manifest):
    return all(Path(clip.path).exists() for clip in manifest.clips)


# --- HMDB51 ----------------------------------------------------------------------------------------------------------


def test_hmdb51(tmp_path):
    splits = read("hmdb51", hmdb51(tmp_path))
    expected = {use: {(n, label) for label, some in HMDB51.items() for n, u in some if u == use} for use in (1, 2)}
    assert splits["train"].classes == ("brush_hair", "wave")
    assert clips(splits["train"]) == expected[1] and on_disk(splits["train"])
    assert clips(splits["test"]) == expected[2] and splits["val"] == splits["test"]
    assert clips(read("hmdb51", tmp_path, official_split=2)["train"]) == expected[2]
    with pytest.raises(UsageError, match=r"no \*_test_split3.txt of HMDB51"):
        read("hmdb51", tmp_path, official_split=3)


def test_hmdb51_with_videos_missing_or_in_another_format(tmp_path):
    hmdb51(tmp_path)
    folder = tmp_path / "hmdb51_org" / "wave"
    (folder / "50_FIRST_DATES_wave_f_cm_np1_fr_med_36.avi").unlink()
    other = folder / "TrumanShow_wave_f_nm_np1_fr_med_26.avi"
    other.rename(other.with_suffix(".mp4"))
    splits = read("hmdb51", tmp_path)
    assert splits["train"].missing == ("wave/50_FIRST_DATES_wave_f_cm_np1_fr_med_36.avi",)
    assert len(splits["train"]) == 3
    assert ("TrumanShow_wave_f_nm_np1_fr_med_26.mp4", "wave") in clips(splits["test"])


def test_hmdb51_mistakes(tmp_path):
    hmdb51(tmp_path)
    path = tmp_path / "testTrainMulti_7030_splits" / "wave_test_split1.txt"
    path.write_text("a.avi 1\nb.avi 3\n")
    with pytest.raises(UsageError, match=r"wave_test_split1.txt:2: 'b.avi 3' is not `<video> <0, 1 or 2>`"):
        read("hmdb51", tmp_path)
    for video in tmp_path.rglob("*.avi"):
        video.unlink()
    path.unlink()
    with pytest.raises(UsageError, match="none of the 2 train videos of hmdb51 is below"):
        read("hmdb51", tmp_path)


# --- UCF101 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flat", [False, True])
def test_ucf101(tmp_path, flat):
    splits = read("ucf101", ucf101(tmp_path, flat=flat))
    assert splits["train"].classes == ("HandstandPushups", "YoYo")
    assert clips(splits["train"]) == {
        ("v_HandStandPushups_g08_c01.avi", "HandstandPushups"),
        ("v_YoYo_g08_c01.avi", "YoYo"),
        ("v_YoYo_g08_c02.avi", "YoYo"),
    }
    assert len(splits["test"]) == 2 and splits["val"] == splits["test"] and on_disk(splits["test"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "trainlist01.txt",
            "YoYo/a.avi 2\nYoyo/b.avi 2\n",
            r"trainlist01.txt:2: 'Yoyo/b.avi 2' is not `<class>/<video>`",
        ),
        ("classInd.txt", "1 A\n3 B\n", r"classInd.txt:2: '3 B' is not `2 <class>`"),
        ("testlist01.txt", None, "no testlist01.txt below"),
        ("trainlist01.txt", "YoYo/a.avi 2\n", "none of the 1 train videos of ucf101"),
    ],
)
def test_ucf101_mistakes(tmp_path, name, content, message):
    path = ucf101(tmp_path) / "ucfTrainTestlist" / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UsageError, match=message):
        read("ucf101", tmp_path)


# --- Something-Something V2 ------------------------------------------------------------------------------------------


def test_ssv2(tmp_path):
    splits = read("ssv2", ssv2(tmp_path))
    left, put = "Moving something from left to right", "Pretending to put something onto something"
    assert splits["train"].classes == (left, put)
    assert clips(splits["train"]) == {("100.webm", left), ("101.webm", put), ("102.webm", left), ("103.webm", put)}
    assert set(splits) == {"train", "val"}  # the test split has no labels
    files(tmp_path, ["20bn-something-something-v2/300.webm"])
    texts(tmp_path, {"labels/test-answers.csv": f"300;{put}\n"})
    assert clips(read("ssv2", tmp_path)["test"]) == {("300.webm", put)}


def test_ssv2_mistakes(tmp_path):
    path = ssv2(tmp_path) / "labels" / "train.json"
    whole = path.read_text()
    path.write_text(whole.replace('"id": "101",', '"id": "101"'))
    with pytest.raises(UsageError, match=r"train.json:\d+: not valid JSON"):
        read("ssv2", tmp_path)
    path.write_text(json.dumps([{"id": "1", "template": "Folding [something]"}]))
    with pytest.raises(UsageError, match=r"train.json: entry 1 has no 'Folding something'"):
        read("ssv2", tmp_path)
    path.unlink()
    with pytest.raises(UsageError, match="no train.json"):
        read("ssv2", tmp_path)


# --- Kinetics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flat", [False, True])
def test_kinetics(tmp_path, flat):
    splits = read("kinetics400", kinetics(tmp_path, flat=flat))
    assert splits["train"].classes == ("abseiling", "making a cake, slowly")
    assert clips(splits["train"]) == {
        ("0347ZoDXyP0_000095_000105.mp4", "abseiling"),
        ("-3B32lodo2M_000059_000069.mp4", "abseiling"),
        ("A_2_b-c__d0_000000_000010.mp4", "making a cake, slowly"),
    }
    assert splits["train"].missing == ("zzzzzzzzzzz_000003_000013",)
    assert set(splits) == {"train", "val"} and len(splits["val"]) == 2


def test_kinetics_without_times_in_the_names(tmp_path):
    """The whole video is cut to the clip, and the clip alone is not."""
    kinetics(tmp_path, timed=False)
    write_numbered(tmp_path / "train" / "abseiling" / "0347ZoDXyP0.mp4", 120, rate=1)
    write_numbered(tmp_path / "train" / "abseiling" / "-3B32lodo2M.mp4", 10, rate=1)
    by_name = {Path(clip.path).stem: clip for clip in read("kinetics400", tmp_path)["train"].clips}
    assert (by_name["0347ZoDXyP0"].start, by_name["0347ZoDXyP0"].end) == (95, 105)
    assert (by_name["-3B32lodo2M"].start, by_name["-3B32lodo2M"].end) == (None, None)


def test_kinetics_lists_of_several_sets(tmp_path):
    kinetics(tmp_path)
    official = (tmp_path / "annotations" / "train.csv").read_text()
    texts(tmp_path, {"annotations/kinetics-600_train.csv": official.replace('"abseiling",-', "knitting,-")})
    assert read("kinetics400", tmp_path)["train"].classes == ("abseiling", "making a cake, slowly")
    assert read("kinetics600", tmp_path)["train"].classes == ("abseiling", "knitting", "making a cake, slowly")


def test_kinetics_in_the_lists_of_pyslowfast(tmp_path):
    files(tmp_path, ["a b/1.mp4", "c/2.mp4", "c/3.mp4"])
    texts(tmp_path, {"train.csv": "a b/1.mp4 0\nc/2.mp4 1\n", "val.csv": "c/3.mp4,1\n"})
    splits = read("kinetics700", tmp_path)
    assert splits["train"].classes == ("0", "1")
    assert clips(splits["train"]) == {("1.mp4", "0"), ("2.mp4", "1")} and on_disk(splits["train"])
    texts(tmp_path, {"classes.txt": "zumba\nabseiling\n"})
    assert clips(read("kinetics700", tmp_path)["val"]) == {("3.mp4", "abseiling")}


@pytest.mark.parametrize(
    "name",
    [
        "{}_{:06d}_{:06d}.mp4",
        "{}_{}_{}.mp4",
        "{}_{:.1f}_{:.1f}.mp4",
        "{}_{:06d}_{:06d}.mp4.mkv",
        "{}_{:06d}_{:06d}.webm",
    ]
    + ["{}_{}_{}.MP4.WEBM", "{}.mp4"],
)
def test_kinetics_by_the_names_of_every_downloader(tmp_path, name):
    splits = read("kinetics400", kinetics(tmp_path, name=name))
    assert (len(splits["train"]), len(splits["val"])) == (3, 2)
    assert ("-3B32lodo2M" in str(clips(splits["train"]))) and on_disk(splits["train"])
    assert splits["train"].missing == ("zzzzzzzzzzz_000003_000013",)
    assert all(clip.start is None for clip in splits["train"].clips)


def test_kinetics_frames_of_a_clip_in_a_folder(tmp_path):
    kinetics(tmp_path, name="{}_{:.1f}_{:.1f}/frame_0001.jpg")
    files(tmp_path, ["flow/0347ZoDXyP0_95.0_105.0/0001.jpg"])
    assert {Path(clip.path).parent.name for clip in read("kinetics400", tmp_path)["train"].clips} == {
        "abseiling",
        "making a cake, slowly",
    }


@pytest.mark.parametrize("style", ["hara", "activitynet", "deepmind"])
def test_kinetics_in_json(tmp_path, style):
    splits = read("kinetics400", kinetics_json(kinetics(tmp_path), style))
    ordered = ("making a cake, slowly", "abseiling") if style == "hara" else ("abseiling", "making a cake, slowly")
    assert splits["train"].classes == ordered
    assert clips(splits["train"]) == {
        ("0347ZoDXyP0_000095_000105.mp4", "abseiling"),
        ("-3B32lodo2M_000059_000069.mp4", "abseiling"),
        ("A_2_b-c__d0_000000_000010.mp4", "making a cake, slowly"),
    }
    assert splits["train"].missing == ("zzzzzzzzzzz_000003_000013",)
    assert set(splits) == {"train", "val"} and len(splits["val"]) == 2


def test_kinetics_in_json_of_whole_videos(tmp_path):
    kinetics_json(kinetics(tmp_path, timed=False), "activitynet")
    write_numbered(tmp_path / "train" / "abseiling" / "0347ZoDXyP0.mp4", 120, rate=1)
    by_name = {Path(clip.path).stem: clip for clip in read("kinetics400", tmp_path)["train"].clips}
    assert (by_name["0347ZoDXyP0"].start, by_name["0347ZoDXyP0"].end) == (95, 105)


def test_kinetics_csv_goes_before_json(tmp_path):
    kinetics(tmp_path)
    texts(tmp_path, {"kinetics.json": '{"a": {"subset": "training", "annotations": {"label": "no such class"}}}'})
    assert read("kinetics400", tmp_path)["train"].classes == ("abseiling", "making a cake, slowly")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": {"subset": "some", "annotations": {}}}', "kinetics.json: 'a': the subset 'some' is none of training"),
        ('{"a": {"subset": "train", "annotations": 3}}', "kinetics.json: 'a': annotations is not an object"),
        ('{"a": {"subset": "train", "annotations": {"label": "b", "segment": [3]}}}', "segment .* is not .start, end"),
        ('{"a": }', "kinetics.json:1: not valid JSON"),
        ('{"short_side": 256}', "no list of training clips below"),
        ("[1, 2]", "no list of training clips below"),
    ],
)
def test_kinetics_mistakes_in_json(tmp_path, content, message):
    for path in (kinetics(tmp_path) / "annotations").iterdir():
        path.unlink()
    texts(tmp_path, {"kinetics.json": content})
    with pytest.raises(UsageError, match=message):
        read("kinetics400", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("label,youtube_id,time_start\n", r"train.csv:1: there is no column 'time_end'"),
        ("youtube_id,time_start,time_end\n", r"train.csv:1: there is no column 'label'"),
        (
            "label,youtube_id,time_start,time_end\nabseiling,x,1\n",
            r"train.csv:2: abseiling,x,1 is not label,youtube_id",
        ),
        ("label,youtube_id,time_start,time_end\nabseiling,x,1,2\n", "none of the 1 train videos of kinetics400"),
    ],
)
def test_kinetics_mistakes(tmp_path, content, message):
    texts(kinetics(tmp_path), {"annotations/train.csv": content})
    with pytest.raises(UsageError, match=message):
        read("kinetics400", tmp_path)


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "make"), [("hmdb51", hmdb51), ("ucf101", ucf101), ("ssv2", ssv2), ("kinetics400", kinetics)]
)
def test_what_macos_leaves_beside_each_file_is_passed_over(tmp_path, dataset, make):
    make(tmp_path)
    expected = read(dataset, tmp_path)
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7\0")
        copy = tmp_path / "__MACOSX" / path.relative_to(tmp_path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7\0")
        copy.write_bytes(b"\0\5\x16\7\0")
    assert read(dataset, tmp_path) == expected


@pytest.mark.parametrize("dataset", ["hmdb51", "ucf101", "ssv2", "kinetics400", "folder"])
def test_no_root(dataset, tmp_path):
    with pytest.raises(UsageError, match=f"data.root is not set: data.dataset={dataset}"):
        read_manifests(DataConfig(dataset=dataset))
    with pytest.raises(UsageError, match="data.root: no folder"):
        read(dataset, tmp_path / "absent")
    with pytest.raises(UsageError, match="data.root: no "):
        read(dataset, tmp_path)
