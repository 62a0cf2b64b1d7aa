"""A folder of results in parts: each is there whole or not at all, and belongs to one block of one list."""

import json

import pytest

pytest.importorskip("pyarrow", reason="no pyarrow: pip install 'softpool3d[parquet]'")

from softpool3d.datasets.inputs import Inputs  # noqa: E402
from softpool3d.datasets.manifest import Clip  # noqa: E402 (it needs pyarrow)
from softpool3d.errors import UsageError, WorkError  # noqa: E402
from softpool3d.inference import parts  # noqa: E402
from softpool3d.inference.labels_file import columns, record, row, schema  # noqa: E402
from softpool3d.inference.work import Failure  # noqa: E402


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(parts, "BLOCK", 2)


def opened(folder, about=None, **how):
    return parts.Parts(
        f"{folder}/", about or {"sha256": "a"}, schema(columns(1)), lambda result: row(record(result), 1), **how
    )


def clips(names):
    return [Clip(name, 0) for name in names]


def rows(folder):
    import pyarrow.parquet as pq

    return {path.name[:8]: pq.read_table(path).column("file").to_pylist() for path in sorted(folder.glob("*.parquet"))}


def test_results_come_in_any_order_and_lie_in_that_of_the_list(tmp_path):
    results = opened(tmp_path / "labels")
    assert [clip.path for clip in results.left(clips("abcab"))] == list("abcab")  # a and b come twice
    for name in "cbaa":
        results.write(Failure(name, "broken"))
    assert rows(tmp_path / "labels") == {"00000000": ["a", "b"], "00000001": ["c", "a"]}
    results.write(Failure("b", "broken"))
    assert rows(tmp_path / "labels")["00000002"] == ["b"]
    assert json.loads((tmp_path / "labels" / "_about.json").read_text()) == {"sha256": "a"}


def test_it_goes_on_with_blocks_that_are_not_there(tmp_path):
    first = opened(tmp_path)
    for clip in first.left(clips("abcde")):
        if clip.path != "d":
            first.write(Failure(clip.path, "broken"))
    first.close()
    (tmp_path / ".3599.00000001-5d5b1068.parquet").touch()  # a command was killed while it wrote this
    (tmp_path / ".mine").touch()
    again = opened(tmp_path, resume=True)
    assert [clip.path for clip in again.left(clips("abcde"))] == ["c", "d"] and again.done == 3
    assert {path.name for path in tmp_path.glob(".*")} == {".mine"}


def test_what_is_there_is_not_mixed_with_anything_else(tmp_path):
    first = opened(tmp_path)
    for clip in first.left(clips("abc")):
        first.write(Failure(clip.path, "broken"))
    with pytest.raises(UsageError, match="holds results; --resume .* goes on with them, --overwrite replaces them"):
        opened(tmp_path)
    with pytest.raises(UsageError, match="holds results of another kind than this run's: weights"):
        opened(tmp_path, {"sha256": "b"}, resume=True)
    with pytest.raises(UsageError, match="made from another list: its part 1 is not of the clips 3 to 4 of this one"):
        list(opened(tmp_path, resume=True).left(clips("abxy")))
    assert rows(tmp_path) == {"00000000": ["a", "b"], "00000001": ["c"]}


def test_a_list_that_changes_while_it_is_read_is_for_another_folder(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a.mp4\nb.mp4\nc.mp4\n")
    left = opened(tmp_path / "labels").left(Inputs((), path))
    next(left)
    path.write_text("a.mp4\nb.mp4\nc.mp4\nd.mp4\n")
    with pytest.raises(WorkError) as error:
        list(left)
    old = f"{tmp_path / 'labels'} holds parts of the old list: name another folder"
    assert str(error.value) == f"{path} changed while it was read; {old}"


def test_it_is_replaced_with_the_first_block(tmp_path):
    first = opened(tmp_path)
    for clip in first.left(clips("abc")):
        first.write(Failure(clip.path, "broken"))
    new = opened(tmp_path, {"sha256": "b"}, overwrite=True)
    left = list(new.left(clips("xyz")))
    new.write(Failure("x", "broken"))
    assert rows(tmp_path) == {"00000000": ["a", "b"], "00000001": ["c"]}
    new.write(Failure("y", "broken"))
    assert rows(tmp_path) == {"00000000": ["x", "y"]} and len(left) == 3
    assert json.loads((tmp_path / "_about.json").read_text()) == {"sha256": "b"}


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match="cannot"):
        opened(tmp_path / "file" / "labels")
    with pytest.raises(UsageError, match="--out nothing://there"):
        parts.Folder("nothing://there")


def test_what_is_a_folder(tmp_path):
    assert parts.is_folder("s3://bucket/a") and parts.is_folder("new/") and parts.is_folder(tmp_path)
    assert not parts.is_folder("a.parquet") and not parts.is_folder(str(tmp_path / "a.csv"))
