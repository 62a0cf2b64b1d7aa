"""Lists as other people's programs write them: what they say is read, or a sentence says what is wrong and where."""

import codecs
import csv
import os
import sys

import pytest
from layouts import files, texts
from videos import write_numbered

from softpool3d import cli
from softpool3d.config_file import load_config
from softpool3d.datasets import read_manifests
from softpool3d.datasets.inputs import Inputs, clip_name
from softpool3d.datasets.lists import format_seconds, read_rows
from softpool3d.datasets.manifest import Clip, Manifest, read_classes, read_manifests_in, write_manifests
from softpool3d.datasets.reencode import _targets
from softpool3d.datasets.sources.folder import read_folder
from softpool3d.errors import UsageError
from softpool3d.evaluation.scores import video_names

MOTIONS = ("moving down", "moving left", "moving right", "moving up")
NAMES = [f"v/{motion.replace(' ', '_')}_{n}.mp4" for motion in MOTIONS for n in range(2)]


def rows_of(separator: str, label=lambda number: number) -> str:
    """Two rows of each class."""
    return "".join(f"{name}{separator}{label(number // 2)}\n" for number, name in enumerate(NAMES))


def train_of(root, content: str | bytes, name: str = "train.csv", **others: str) -> Manifest:
    texts(root, {f"{other}.txt": text for other, text in others.items()})
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_manifests_in(root)["train"]


def labelled(manifest: Manifest) -> list[tuple[str, object]]:
    return [(os.path.relpath(clip.path, os.path.dirname(manifest.source)), clip.label) for clip in manifest.clips]


RIGHT = [(name, number // 2) for number, name in enumerate(NAMES)]


@pytest.mark.parametrize(
    ("content", "classes"),
    [
        (rows_of(" "), "0123"),
        (rows_of("\t"), "0123"),
        (rows_of(","), "0123"),
        (rows_of(";"), "0123"),
        ("path;label\n" + rows_of(";"), "0123"),
        ("path\tlabel\n" + rows_of("\t", MOTIONS.__getitem__), MOTIONS),
        ("video,class\n" + rows_of(",", MOTIONS.__getitem__), MOTIONS),
        ("File_Name;Class_Name\n" + rows_of(";", MOTIONS.__getitem__), MOTIONS),
        ("VIDEO_PATH,Label\n" + rows_of(",", MOTIONS.__getitem__), MOTIONS),
        ("# made by hand\n\nfilename,class\n# the clips\n" + rows_of(",", MOTIONS.__getitem__), MOTIONS),
        ("# made by hand\n" + rows_of(" ") + "# the end\n", "0123"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_separators_headers_and_encodings(tmp_path, content, classes, encoding):
    for end in ("\n", "\r\n"):
        manifest = train_of(tmp_path, content.replace("\n", end).encode(encoding))
        assert labelled(manifest) == RIGHT and manifest.classes == tuple(classes)


def test_utf16_of_both_orders_for_training_and_classify(tmp_path):
    (tmp_path / "big.txt").write_bytes(codecs.BOM_UTF16_BE + "a.mp4\r\nb ç.mp4\r\n".encode("utf-16-be"))
    assert listed(tmp_path / "big.txt") == ["a.mp4", "b ç.mp4"]
    (tmp_path / "little.txt").write_bytes(codecs.BOM_UTF16_LE + "a.mp4\r\nb ç.mp4\r\n".encode("utf-16-le"))
    assert listed(tmp_path / "little.txt") == ["a.mp4", "b ç.mp4"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.mp4\n".encode("utf-16-le"), "is no text file, or it is UTF-16 without a byte order mark; save it as UTF-8"),
        (codecs.BOM_UTF16_LE + b"a\0.\0\x00\xd8a\0", "it begins as UTF-16 does, and is not"),
        (b"path,label\na.mp4,caf\x81\n", r"list.csv:2: b'caf\\x81' is neither UTF-8 nor Windows-1252"),
    ],
)
def test_what_is_no_text_is_said(tmp_path, content, message):
    with pytest.raises(UsageError, match=message):
        (tmp_path / "list.csv").write_bytes(content)
        list(read_rows(tmp_path / "list.csv", tmp_path, labelled=True))


def test_windows_1252_is_read_and_said_once(tmp_path, capfd):
    """As a spreadsheet saves it: the class, and the file's name, which is UTF-8 on the disk."""
    files(tmp_path, ["v/été.mp4"])
    content = "path,label\nv/1.mp4,hiver\nv/2.mp4,été\nv/été.mp4,été\n".encode("cp1252")
    manifest = train_of(tmp_path, content, classes="été\nhiver\n")
    assert manifest.classes == ("été", "hiver")
    assert labelled(manifest) == [("v/1.mp4", 1), ("v/2.mp4", 0), ("v/été.mp4", 0)]
    said = capfd.readouterr().err.splitlines()
    assert said == [f"note: {tmp_path / 'train.csv'} is not UTF-8; read as Windows-1252 (line 3: 'été')"]
    (tmp_path / "classes.txt").write_bytes("été\nhiver\n".encode("cp1252"))
    assert read_classes(tmp_path / "classes.txt") == ("été", "hiver")
    assert "classes.txt is not UTF-8; read as Windows-1252 (line 1: 'été')" in capfd.readouterr().err


def test_a_file_whose_name_is_no_utf8_is_found_by_its_bytes(tmp_path):
    raw = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    with open(raw, "wb"):
        pass
    content = b"path,label\ncaf\xe9.mp4,un th\xe9\n"
    manifest = train_of(tmp_path, content)
    assert os.fsencode(manifest.clips[0].path) == raw and manifest.classes == ("un thé",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            rows_of(",", MOTIONS.__getitem__),
            "train.csv:1: neither.*there has to be a header path,label.*video_path.*class",
        ),
        ("a.mp4 0\nb.mp4;1\n", "train.csv:2: semicolons before the label, and in line 1 spaces"),
        ("a.mp4,0\nb.mp4;1\n", "train.csv:2: semicolons before the label, and in line 1 commas"),
        ("path,label\na.mp4;0\n", "train.csv:2: 1 values, but the header has 2 columns between commas"),
        ("a.mp4,32,0\n", "train.csv:1: more than `path,label`"),
        ("clip,label\na.mp4,0\n", "train.csv:1: there is no column 'path'.*file, file_name"),
        ("video,text\na.mp4,0\n", "train.csv:1: there is no column 'label'"),
        ("file,video,label\na.mp4,b,0\n", "train.csv:1: the columns file and video mean the same"),
        ("path,start,label,label\na.mp4,1,0,1\n", "train.csv:1: the columns label and label mean the same"),
        ("path,label,start,end\na.mp4,x,12345.02,12345.01\n", "train.csv:2: start 12345.02 is not before end 12345.01"),
        ("a.mp4 999999999999\n", "train.csv:1: label 999999999999: without a classes.txt"),
        ("path,label\na.mp4,run\n# \nb.mp4,run\na.mp4,wave\n", "train.csv:5: a.mp4 stands on line 2 already, with ano"),
    ],
)
def test_mistakes_are_named(tmp_path, content, message):
    with pytest.raises(UsageError, match=message):
        train_of(tmp_path, content)


def test_the_usual_column_is_taken_before_others(tmp_path):
    manifest = train_of(tmp_path, "path,video,class,label\na.mp4,b,walk,run\nc.mp4,d,run,walk\n")
    assert labelled(manifest) == [("a.mp4", 0), ("c.mp4", 1)]


def test_rows_repeated_to_balance_classes(tmp_path):
    """All are clips of training, and validation clips that are split off are not among them."""
    files(tmp_path, NAMES)
    manifest = train_of(tmp_path, rows_of(" ") + rows_of(" ") + f"{NAMES[0]} 0\n")
    assert len(manifest) == 17 and manifest.class_counts().tolist() == [5, 4, 4, 4]
    splits = read_folder(tmp_path)
    assert sum(map(len, splits.values())) == 17 and len(splits["val"]) >= 8
    assert not {clip.path for clip in splits["train"].clips} & {clip.path for clip in splits["val"].clips}


def test_a_clip_knows_its_line(tmp_path):
    manifest = train_of(tmp_path, 'path,label\n\n# here\n"a\nb.mp4",x\nc.mp4,y\n')
    assert [clip.line for clip in manifest.clips] == [4, 6]
    assert manifest.where(1) == f"{tmp_path / 'train.csv'}:6" and manifest.clips[1] == Clip(manifest.clips[1].path, 1)
    assert Manifest(("a",), [Clip("x.mp4", 0)]).where(0) == "x.mp4"


# --- mmaction2 --------------------------------------------------------------------------------------------------------


def test_path_frames_label_of_files_and_folders(tmp_path, capfd):
    (tmp_path / "v").mkdir()
    for name in NAMES[:2]:
        write_numbered(tmp_path / name, 12)
    texts(tmp_path, {"train.txt": rows_of(" 12 "), "val.txt": f"{NAMES[0]} 12 3\n"})
    splits = read_manifests_in(tmp_path)
    assert labelled(splits["train"]) == RIGHT and not splits["train"].multi_label and splits["val"].clips[0].label == 3
    assert capfd.readouterr().err == f"note: {tmp_path / 'train.txt'}: read as mmaction2's `path frames label`\n"
    files(tmp_path, ["f/a/img_00001.jpg"], lambda path: path.write_bytes(PICTURE))
    assert labelled(train_of(tmp_path, "f/a 240 1\nf/b 300 0\n", "train.csv")) == [("f/a", 1), ("f/b", 0)]


PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c6360000000020001e527de"
    "fc0000000049454e44ae426082"
)


def test_path_label_label(tmp_path, capfd):
    (tmp_path / "v").mkdir()
    write_numbered(tmp_path / NAMES[0], 12)
    rows = f"{NAMES[0]} 0 1\n{NAMES[1]} 2\n{NAMES[2]} 3 1 0\n"
    texts(tmp_path, {"train.txt": rows, "val.txt": f"{NAMES[3]} 2\n"})
    splits = read_manifests_in(tmp_path)
    assert [clip.label for clip in splits["train"].clips] == [(0, 1), (2,), (0, 1, 3)]
    assert [clip.label for clip in splits["val"].clips] == [(2,)] and splits["val"].multi_label
    assert "train.txt: read as mmaction2's `path label label ...`" in capfd.readouterr().err


def test_two_numbers_that_nobody_can_tell_apart_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"train.csv:1: 32 0 may be labels, or the number of frames.*no file is there"):
        train_of(tmp_path, rows_of(" 32 "))
    (tmp_path / "v").mkdir()
    for number, frames in enumerate((12, 20)):
        write_numbered(tmp_path / NAMES[number], frames)
    with pytest.raises(UsageError, match="some files have as many frames and others not"):
        train_of(tmp_path, rows_of(" 12 "))


def test_a_folder_whose_name_ends_in_a_number(tmp_path):
    files(tmp_path, ["holiday 3/1.jpg"])
    assert labelled(train_of(tmp_path, "holiday 3 1\nparty 0\n")) == [("holiday 3", 1), ("party", 0)]


# --- classes ----------------------------------------------------------------------------------------------------------


def test_classes_called_by_numbers(tmp_path, capfd):
    """1 2 3 4: labels from 0 are numbers of classes throughout, those up to 4 are names, and 1 to 3 may be both."""
    assert labelled(train_of(tmp_path, rows_of(" "), classes="1\n2\n3\n4\n")) == RIGHT
    assert "labels are numbers of classes, from 0, and not their names: 0 is the class '1'" in capfd.readouterr().err
    names = train_of(tmp_path, rows_of(" ", lambda number: number + 1))
    assert labelled(names) == RIGHT and names.classes == tuple("1234")
    with pytest.raises(UsageError, match="train.csv:1: classes are called by numbers.*call the column class_name if"):
        train_of(tmp_path, "a.mp4 1\nb.mp4 2\nc.mp4 3\n")
    named = train_of(tmp_path, "path,class_name\na.mp4,1\nb.mp4,2\nc.mp4,3\n")
    assert [clip.label for clip in named.clips] == [0, 1, 2]
    with pytest.raises(UsageError, match="train.csv:1: '0' is none of the 4 classes"):
        train_of(tmp_path, "a.mp4 0\nb.mp4 4\n")
    assert labelled(train_of(tmp_path, rows_of(" "), classes="0\n1\n2\n3\n")) == RIGHT


def test_a_manifest_of_such_classes_is_read_as_it_was(tmp_path):
    for classes, several in ((("1", "0", "7"), False), (("2", "1"), True)):
        clips = [Clip(f"/v/{n}.mp4", (n,) if several else n) for n in range(2)]
        write_manifests(tmp_path, {"train": Manifest(classes, clips)})
        assert list(read_manifests_in(tmp_path)["train"].clips) == clips


def test_labels_from_one_with_gaps_or_of_one_class_are_read(tmp_path):
    assert [clip.label for clip in train_of(tmp_path, "a.mp4 1\nb.mp4 300\n").clips] == [1, 300]
    assert train_of(tmp_path, "a.mp4 0\nb.mp4 0\n").classes == ("0",)


# --- where paths begin ------------------------------------------------------------------------------------------------


def test_a_prefix_of_paths(tmp_path):
    files(tmp_path, [f"ds/{name}" for name in NAMES])
    lists = tmp_path / "lists"
    texts(lists, {f"{split}.csv": rows_of(" ").replace("v/", "ds/v/") for split in ("train", "val")})
    settings = ["data.dataset=folder", f"data.root={lists}"]
    first = lists / "ds" / NAMES[0]
    with pytest.raises(UsageError, match=f"train.csv:1: no file {first}, and none.*data.path_prefix=FOLDER"):
        read_manifests(load_config("r3d_softpool", settings).data)
    clips = read_manifests(load_config("r3d_softpool", [*settings, f"data.path_prefix={tmp_path}"]).data)["val"].clips
    assert [clip.path for clip in clips] == [str(tmp_path / "ds" / name) for name in NAMES]


def test_a_prefix_of_relative_paths_alone_and_where_it_would_do_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files(tmp_path, ["a/1.mp4", "b/1.mp4", *(f"{label}/{n}.mp4" for label in "ab" for n in range(9))])
    settings = ["data.dataset=folder", "data.path_prefix=."]
    with pytest.raises(UsageError, match="data.path_prefix: folder is not read from lists of paths here"):
        read_manifests(load_config("r3d_softpool", [*settings, f"data.root={tmp_path}"]).data)
    texts(tmp_path / "lists", {"train.csv": f"{tmp_path}/a/1.mp4 0\na/2.mp4 0\nb/3.mp4 1\n"})
    read = read_folder(tmp_path / "lists", (0.8, 0.1, 0.1), 0, str(tmp_path))
    assert {clip.path for m in read.values() for clip in m.clips} == {
        f"{tmp_path}/{n}.mp4" for n in ("a/1", "a/2", "b/3")
    }
    texts(tmp_path, {"manifest/train.csv": "../a/1.mp4 0\n", "manifest/val.csv": "../a/2.mp4 0\n"})
    with pytest.raises(UsageError, match="data.path_prefix: .*manifest is read, whose paths are complete"):
        read_manifests(load_config("r3d_softpool", [*settings, f"data.root={tmp_path}"]).data)


def test_prepare_takes_the_prefix_and_writes_paths_that_need_none(tmp_path, monkeypatch):
    names = [f"ds/{label}{n}.mp4" for label in "ab" for n in range(2)]
    (tmp_path / "ds").mkdir()
    for name in names:
        write_numbered(tmp_path / name, 4)
    content = "".join(f"{name} {'ab'.index(name[3])}\n" for name in names)
    texts(tmp_path / "lists", {"train.csv": content, "val.csv": content})
    command = ["prepare", "folder", "--root", tmp_path / "lists", "--path-prefix", tmp_path]
    monkeypatch.setattr(sys, "argv", ["softpool3d", *map(str, command)])
    monkeypatch.setattr(sys.stdout, "reconfigure", lambda **_: None, raising=False)
    with pytest.raises(SystemExit) as ended:
        cli.run()
    assert not ended.value.code
    data = load_config("r3d_softpool", ["data.dataset=folder", f"data.root={tmp_path / 'lists'}"]).data
    assert [clip.path for clip in read_manifests(data)["train"].clips] == [str(tmp_path / name) for name in names]


# --- writing ----------------------------------------------------------------------------------------------------------

TIMES = [7265.123, 12345.01, 12345.02, 0.1 + 0.2, 1e-05, 3.0, 86400.000001, 1 / 3]
ODD = [
    "a, b; c",
    'say "x"',
    "two\nlines",
    "cr\rlf",
    "#1",
    " before",
    "after ",
    "tab\tbed",
    "Grüße",
    "no\udcffutf8",
    "7 8",
]


def test_times_are_written_with_all_their_digits(tmp_path):
    clips = [Clip("/v/a.mp4", 0, start, start + 0.01) for start in TIMES]
    write_manifests(tmp_path, {"train": Manifest(("x",), clips)})
    assert list(read_manifests_in(tmp_path)["train"].clips) == clips
    assert "7265.123,7265.133" in (tmp_path / "train.csv").read_text()
    assert all(float(format_seconds(time)) == time for time in TIMES) and format_seconds(2.0) == "2"


def test_clips_that_differ_in_the_last_digit_have_different_names(tmp_path):
    clips = [Clip("/v/a.mp4", 0, 12345.01 + n / 1000, 12346.0) for n in range(3)]
    assert len({clip_name(clip) for clip in clips}) == 3 and clip_name(clips[0]) == "/v/a.mp4#t=12345.01,12346"
    assert len(set(video_names(clips))) == 3
    targets = _targets({"train": Manifest(("x",), clips)}, "/v", "/out")
    assert len(set(targets.values())) == 3 and all(f"_{format_seconds(c.start)}_" in targets[c] for c in targets)


@pytest.mark.parametrize("beside", [True, False])
def test_odd_paths_come_back(tmp_path, beside):
    folder = tmp_path if beside else tmp_path / "manifest"
    names = [f"{name}.mp4" for name in ODD] + [f"{name} .mp4 " for name in ODD]
    files(tmp_path, names)
    clips = [Clip(str(tmp_path / name), n % 2) for n, name in enumerate(names)]
    write_manifests(folder, {"train": Manifest(("a; b", "#c, d"), clips)})
    assert list(read_manifests_in(folder)["train"].clips) == clips
    assert [clip.path for clip in Inputs((f"@{folder / 'train.csv'}",))] == [
        os.path.join(folder, os.path.relpath(clip.path, folder)) for clip in clips
    ]


def test_a_class_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(UsageError, match="'a;b' has a semicolon"):
        write_manifests(tmp_path, {"train": Manifest(("a;b", "c"), [Clip("x.mp4", (0, 1))])})


# --- classify ---------------------------------------------------------------------------------------------------------


def listed(path) -> list[str]:
    """Paths of a list that `classify` reads, as they are relative to it."""
    inputs = Inputs((f"@{path}",))
    names = [os.path.relpath(clip.path, path.parent) for clip in inputs]
    assert inputs.count() == len(names)
    return names


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("a.mp4\nb c.mp4", ["a.mp4", "b c.mp4"]),
        ("# two\na.mp4 3\nb c.mp4 12\n#1.mp4\n", ["a.mp4", "b c.mp4", "#1.mp4"]),
        ("a.mp4,3\n\n'b', \"c\".mp4,1\n", ["a.mp4", "'b', \"c\".mp4"]),
        ("a.mp4;3\n", ["a.mp4"]),
        ('"b, c.mp4",1\n', ["b, c.mp4"]),
        ("a.mp4 32 0\n", ["a.mp4"]),
        ("a.mp4 0 1 5\n", ["a.mp4"]),
        ("clip 4\n", ["clip 4"]),
        ("clip 4 2\n", ["clip 4"]),
        ("path;start;end\na.mp4;0;1\n", ["a.mp4"]),
        ('file_name\ta\n"a""b.mp4"\t1\n', ['a"b.mp4']),
        ("video\na.mp4\n", ["a.mp4"]),
    ],
)
def test_lists_for_classify(tmp_path, content, names):
    files(tmp_path, ["#1.mp4", "clip 4/1.jpg"])
    texts(tmp_path, {"list.txt": content})
    assert listed(tmp_path / "list.txt") == names


def test_a_file_that_is_called_as_a_column(tmp_path):
    files(tmp_path, ["video/1.jpg"])
    texts(tmp_path, {"list.txt": "video\na.mp4\n"})
    assert listed(tmp_path / "list.txt") == ["video", "a.mp4"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,start,end\na.mp4,0.5,1.5\nb c.mp4,,\na.mp4,1.5,0.5\n", "list.csv:4: start 1.5 is not before end 0.5"),
        ("start,end\n0,1\n", "list.csv:1: there is no column 'path'"),
        ("a.mp4,0,1\n", "list.csv:1: more than `path,label`"),
        ('path\n"a.mp4\n', "list.csv:2: not valid CSV"),
        ("path,start\na.mp4\n", "list.csv:2: 1 values, but the header has 2 columns"),
    ],
)
def test_mistakes_are_named_before_anything_is_classified(tmp_path, content, message):
    texts(tmp_path, {"list.csv": content})
    with pytest.raises(UsageError, match=message):
        Inputs((), tmp_path / "list.csv").count()


def test_long_lists_are_read_while_work_goes_on(tmp_path):
    texts(tmp_path, {"list.csv": "path,start\n" + "a.mp4,1\n" * 1000 + "b.mp4,soon\n"})
    rows = read_rows(tmp_path / "list.csv", tmp_path, labelled=False)
    assert [next(rows).line for _ in range(1000)] == list(range(2, 1002))
    with pytest.raises(UsageError, match="list.csv:1002: start = 'soon'"):
        next(rows)


def test_the_same_list_for_training_and_classify(tmp_path):
    with (tmp_path / "train.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=";").writerows(
            [["file", "class", "start"], ["a; b.mp4", "x", "1.5"], ["c.mp4", "y", ""]]
        )
    assert list(Inputs((), tmp_path / "train.csv")) == [
        Clip(clip.path, 0, clip.start) for clip in read_manifests_in(tmp_path)["train"].clips
    ]
