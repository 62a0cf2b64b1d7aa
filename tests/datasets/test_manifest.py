import pytest
from layouts import files, texts

from softpool3d.datasets.manifest import Clip, Clips, Manifest, read_manifests_in, write_manifests
from softpool3d.datasets.sources.folder import read_folder
from softpool3d.errors import UsageError

ODD = [
    "a/plain.mp4",
    "a/with, comma.mp4",
    'b/"quoted".mp4',
    "b/line\nbreak.mp4",
    "b/Grüße & (#1)!.mp4",
    "b/ space .mp4",
]


def test_what_is_written_is_read_again(tmp_path):
    clips = [Clip(str(tmp_path / name), number % 2, 1.5 if number else None) for number, name in enumerate(ODD)]
    clips += [Clip("/elsewhere/x.mp4", 1, 0.0, 2.0), Clip(str(tmp_path / "no\udcffutf8.mp4"), 0)]
    manifests = {"train": Manifest(("a, b", "c"), clips), "val": Manifest(("a, b", "c"), clips[:1])}
    write_manifests(tmp_path / "manifest", manifests)
    again = read_manifests_in(tmp_path / "manifest")
    assert again["train"].classes == ("a, b", "c")
    assert list(again["train"].clips) == clips and list(again["val"].clips) == clips[:1]
    tmp_path.joinpath("manifest").rename(tmp_path / "renamed")  # paths are relative, so the root may move
    assert list(read_manifests_in(tmp_path / "renamed")["train"].clips) == clips
    assert (tmp_path / "renamed" / "train.csv").read_text(errors="replace").splitlines()[:2] == [
        "path,label,start,end",
        '../a/plain.mp4,"a, b",,',
    ]


def test_clips_take_little_memory_and_no_objects():
    clips = Clips(Clip(f"/data/{n}.mp4", n % 7, None, n / 2) for n in range(1000))
    assert clips[999] == clips[-1] == Clip("/data/999.mp4", 5, None, 499.5)
    assert [clip.label for clip in clips][:8] == [0, 1, 2, 3, 4, 5, 6, 0]
    with pytest.raises(IndexError):
        clips[1000]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "content",
    [
        'path,label\na 1.mp4,wave\n"b, c.mp4",run\n\n',
        'label,path,note\nwave,a 1.mp4,x\nrun,"b, c.mp4",y\n',
        'a 1.mp4,1\n"b, c.mp4",0\n',
        "a 1.mp4 1\nb, c.mp4 0\n",
        "a 1.mp4\t1\nb, c.mp4\t0\n",
    ],
)
def test_formats(tmp_path, content, newline, mark):
    texts(tmp_path, {"train.csv": mark + content.replace("\n", newline), "classes.txt": f"{mark}run{newline}wave"})
    train = read_manifests_in(tmp_path)["train"]
    assert train.classes == ("run", "wave")
    assert [(clip.path, clip.label) for clip in train.clips] == [
        (str(tmp_path / "a 1.mp4"), 1),
        (str(tmp_path / "b, c.mp4"), 0),
    ]


def test_classes_without_a_list_of_them(tmp_path):
    texts(tmp_path, {"train.csv": "path,label\n1.mp4,run\n2.mp4,10\n", "val.csv": "path,label\n3.mp4,run\n"})
    assert read_manifests_in(tmp_path)["val"].classes == ("10", "run")
    texts(tmp_path, {"train.csv": "1.mp4 0\n2.mp4 10\n", "val.csv": "3.mp4 11\n"})
    assert len(read_manifests_in(tmp_path)["val"].classes) == 12


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,start\na.mp4,1\n", r"train.csv:1: there is no column 'label'"),
        ("label,start\na.mp4,1\n", r"train.csv:1: there is no column 'path'"),
        (
            "path,label\na.mp4,0\nb.mp4,2\n",
            r"train.csv:3: label 2 is out of range: there are 2 classes, from 0; if .* begin at 1, subtract 1",
        ),
        ("path,label\na.mp4,0\nb.mp4,3\n", r"train.csv:3: label 3 is out of range: there are 2 classes, from 0$"),
        ("path,label\na.mp4,-1\n", r"train.csv:2: label -1 is out of range"),
        ("path,label\na.mp4,walk\n", r"train.csv:2: 'walk' is none of the 2 classes"),
        ("path,label\na.mp4,run\n\n./b.mp4,run\na.mp4,wave\n", r"train.csv:5: a.mp4 stands on line 2 already"),
        ("path,label\na, b.mp4,run\n", r"train.csv:2: 3 values, but the header has 2 columns"),
        ("path,label\na.mp4\n", r"train.csv:2: 1 values"),
        ("path,label\na.mp4,\n", r"train.csv:2: the label is missing"),
        ("path,label\n,run\n", r"train.csv:2: the path is missing"),
        ('path,label\n"a\nb.mp4",run\n"c.mp4,run\n', r"train.csv:4: not valid CSV"),
        ("path,label,start,end\na.mp4,run,x,\n", r"train.csv:2: start = 'x' is not a number of seconds"),
        ("path,label,start,end\na.mp4,run,2,1\n", r"train.csv:2: start 2 is not before end 1"),
        ("path,label\n", r"train.csv: there are no clips in it"),
        ("", r"train.csv: there are no clips in it"),
        ("a.mp4 0\nb.mp4 5\n", r"train.csv:2: label 5 is out of range"),
        ("a.mp4 0\nb.mp4 x\n", r"train.csv:2: 'x' is none of the 2 classes"),
        ("a.mp4,0\nb.mp4\n", r"train.csv:2: neither"),
        ("what is this\n", r"train.csv:1: neither"),
        ("a\0b", r"train.csv: this is no text file"),
    ],
)
def test_mistakes_are_named_with_file_and_line(tmp_path, content, message):
    texts(tmp_path, {"train.csv": content, "classes.txt": "run\nwave\n"})
    with pytest.raises(UsageError, match=message):
        read_manifests_in(tmp_path)


def test_mistakes_in_the_list_of_classes(tmp_path):
    texts(tmp_path, {"train.csv": "a.mp4 0\n", "classes.txt": "run\nwave\nrun\n"})
    with pytest.raises(UsageError, match=r"classes.txt:3: the class 'run' stands on line 1 already"):
        read_manifests_in(tmp_path)
    texts(tmp_path, {"classes.txt": "\n"})
    with pytest.raises(UsageError, match="no class names"):
        read_manifests_in(tmp_path)


def test_a_folder_with_lists(tmp_path):
    """Validation comes out of training where there is no val.csv."""
    names = [f"{label}/{n}.mp4" for label in "ab" for n in range(10)]
    files(tmp_path, names)
    texts(tmp_path, {"train.csv": "path,label\n" + "".join(f"{name},{name[0]}\n" for name in names)})
    splits = read_folder(tmp_path)
    assert {name: len(manifest) for name, manifest in splits.items()} == {"train": 18, "val": 2}
    assert {clip.label for clip in splits["val"].clips} == {0, 1}
    texts(tmp_path, {"val.csv": "path,label\na/0.mp4,a\n", "test.csv": "path,label\nb/0.mp4,b\n"})
    assert {name: len(manifest) for name, manifest in read_folder(tmp_path).items()} == {
        "train": 20,
        "val": 1,
        "test": 1,
    }
