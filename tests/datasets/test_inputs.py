"""Standard input as a list: lines or NUL between names, in any encoding, each clip as soon as its name is there."""

import io
import os
import sys

import pytest
from layouts import files

from softpool3d.datasets.inputs import Inputs
from softpool3d.errors import WorkError


def piped(monkeypatch, content: bytes) -> list[str]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))
    return [clip.path for clip in Inputs(("-",))]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"a.mp4\nb c.mp4\r\n\nd.mp4", ["a.mp4", "b c.mp4", "d.mp4"]),
        (b"./a.mp4\0./two\nlines, # 3\0\0./caf\xe9 \0", ["./a.mp4", "./two\nlines, # 3", "./caf\udce9 "]),
        (b"a.mp4\0b.mp4", ["a.mp4", "b.mp4"]),
        ("\ufeffa.mp4\nb.mp4\n".encode("utf-16-le"), ["a.mp4", "b.mp4"]),
        (b"path;label\na.mp4;0\n", ["a.mp4"]),
        (b"https://host/a.mp4 3\n https://host/b.mp4\n", ["https://host/a.mp4", "https://host/b.mp4"]),
        (b"", []),
    ],
)
def test_what_comes_on_standard_input(monkeypatch, content, names):
    assert piped(monkeypatch, content) == names
    assert not sys.stdin.buffer.closed


@pytest.mark.parametrize("end", [b"\n", b"\0"])
def test_clips_come_while_names_do(monkeypatch, end):
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as file:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
        clips = iter(Inputs(("-",)))
        for name in (b"a.mp4", b"b.mp4"):
            os.write(writing, name + end)
            assert next(clips).path == name.decode()
        os.close(writing)
        assert not list(clips)


def test_a_list_counts_its_last_line_without_an_end(tmp_path):
    (tmp_path / "list.txt").write_text("# names\na.mp4\nb.mp4")
    assert Inputs((f"@{tmp_path / 'list.txt'}", "c.mp4")).count() == 3


def test_addresses_in_a_list_stay_as_they_are(tmp_path):
    files(tmp_path, ["a.mp4"])
    (tmp_path / "list.csv").write_text("file,start\nhttps://host/a.mp4,2\na.mp4,\n")
    first, second = Inputs((), tmp_path / "list.csv")
    assert (first.path, first.start, second.path) == ("https://host/a.mp4", 2.0, str(tmp_path / "a.mp4"))


@pytest.mark.parametrize("change", [lambda path: path.open("a").write("c.mp4\n"), lambda path: path.unlink()])
def test_a_list_that_changes_while_it_is_read(tmp_path, change):
    path = tmp_path / "list.txt"
    path.write_text("a.mp4\nb.mp4\n")
    clips = iter(Inputs((), path))
    next(clips)
    change(path)
    with pytest.raises(WorkError, match="list.txt changed while it was read; the same command with --resume"):
        list(clips)
