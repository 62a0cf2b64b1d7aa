"""Files of features: a row for each video, or for each window of it, and what made them.

    file      the video, as it was named; with #t=1.5,4 for a part of it
    start     seconds, where the row's part of the video begins;   end: where it ends
    features  float32 (D,)
    error     why a video has no features; its row has nothing else

.parquet  these columns; `features` is a list, and `about` is in the file's metadata, as `softpool3d`
.npz      arrays file (N,), start (N,), end (N,), features (N, D), about (): JSON; of videos without features, failed
          (M,), error (M,). It is not compressed, written row by row, and read as a whole.
.h5       the same as data sets, without `about`, which is the file's attribute `softpool3d` (needs h5py)
a folder  its parts, in the order of their names, each as .parquet
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from softpool3d.errors import UsageError, first_line
from softpool3d.foreign import parse_json

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = (".parquet", ".npz", ".h5")
PARTS = "*.parquet"  # of a folder of features
_NEEDS = {".parquet": "pyarrow", ".h5": "h5py"}
_KEY = "softpool3d"
_BATCH = 1024  # rows that are in memory at once
_FREE = ("weights",)  # of `about`: may differ between files that go together


class Row(NamedTuple):
    """A row of a file of features; either `features`, float32 (D,), or `error` is there."""

    file: str
    start: float | None
    end: float | None
    features: np.ndarray | None
    error: str | None = None


def check_format(option: str, path: Path) -> None:
    """Raises UsageError if a file's ending is unknown, or the library for it is not installed."""
    ending = path.suffix.lower()
    if ending not in FORMATS:
        raise UsageError(f"{option} {path}: unknown format {path.suffix!r} (known: {', '.join(FORMATS)})")
    library = _NEEDS.get(ending)
    if library is not None and find_spec(library) is None:
        raise UsageError(f"{option} {path}: {ending} needs {library}; pip install 'softpool3d[features]', or take .npz")


def difference(first: dict[str, Any], second: dict[str, Any]) -> str | None:
    """Returns in words what first differs between what made two files; None if their features go together."""
    if first.get("sha256") != second.get("sha256"):
        return f"weights {first.get('weights')} and {second.get('weights')}"
    names = [name for name in (*first, *second) if name not in _FREE and first.get(name) != second.get(name)]
    return f"{names[0]} {_told(first.get(names[0]))} and {_told(second.get(names[0]))}" if names else None


def _told(value: Any) -> str:
    return "not given" if value is None else str(value)


@contextmanager
def open_features(path: str | Path) -> Iterator[tuple[dict[str, Any], Iterator[Row]]]:
    """Opens a file of features, and yields what made it, and its rows.

    Raises:
        UsageError: if there is no such file, it is damaged or another program's, or its library is not installed.
    """
    path = Path(path)
    if path.is_dir():
        check_format("reading", path / PARTS)
        read = _read_parts
    elif path.is_file():
        check_format("reading", path)
        read = {".parquet": _read_parquet, ".npz": _read_npz, ".h5": _read_h5}[path.suffix.lower()]
    else:
        raise UsageError(f"no file of features {path}")
    try:
        with read(path) as (about, rows):
            about = parse_json(about)
            if not isinstance(about, dict) or "sha256" not in about:
                raise ValueError("it does not say which weights made it")
            yield about, rows
    except KeyError as error:
        raise UsageError(f"{path} was not written by softpool3d embed: it has no {error.args[0]}") from None
    except (ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is no file of features, or it is damaged ({first_line(error)})") from None


def write_features(path: Path, ending: str, about: dict[str, Any], rows: Callable[[], Iterable[Row]]) -> None:
    """Writes a file of features, in constant memory.

    Args:
        ending: of the format; the file may have another name until it is whole.
        rows: returns the rows, from the first; it is called once or twice.
    """
    write = {".parquet": _write_parquet, ".npz": _write_npz, ".h5": _write_h5}[ending]
    write(path, json.dumps(about, ensure_ascii=False), rows)


# --- parquet ----------------------------------------------------------------------------------------------------------


def schema(about: str) -> pa.Schema:
    """Returns the columns of a Parquet file, with `about`, JSON, in its metadata."""
    import pyarrow as pa

    kinds = [pa.string(), pa.float64(), pa.float64(), pa.list_(pa.float32()), pa.string()]
    return pa.schema(list(zip(Row._fields, kinds, strict=True)), {_KEY: about})


def _write_parquet(path: Path, about: str, rows: Callable[[], Iterable[Row]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = schema(about)
    left = iter(rows())
    with pq.ParquetWriter(path, kinds) as writer:
        while some := list(islice(left, _BATCH)):
            arrays = [pa.array(column, kind) for column, kind in zip(zip(*some, strict=True), kinds.types, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=kinds))


@contextmanager
def _read_parquet(path: Path) -> Iterator[tuple[str, Iterator[Row]]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        about = (file.schema_arrow.metadata or {})[_KEY.encode()].decode()

        def rows() -> Iterator[Row]:
            for batch in file.iter_batches(_BATCH, columns=list(Row._fields)):
                vectors = (x.values.to_numpy() if x.is_valid else None for x in batch["features"])
                others = (batch[name].to_pylist() for name in ("file", "start", "end", "error"))
                for name, start, end, error, vector in zip(*others, vectors, strict=True):
                    yield Row(name, start, end, vector, error)

        yield about, rows()


@contextmanager
def _read_parts(folder: Path) -> Iterator[tuple[str, Iterator[Row]]]:
    paths = sorted(folder.glob(PARTS))
    if not paths:
        raise ValueError("it holds no part")

    def rows() -> Iterator[Row]:
        for path in paths:
            with _read_parquet(path) as (made, some):
                if made != about and (differs := difference(parse_json(about), parse_json(made))):
                    raise UsageError(
                        f"{folder}: its part {path.name} is of another kind than {paths[0].name}: {differs}; keep the "
                        "parts of one kind in a folder"
                    )
                yield from some

    with _read_parquet(paths[0]) as (about, _):
        yield about, rows()


# --- npz and h5 -------------------------------------------------------------------------------------------------------


class _Columns:
    """All columns but the features, and the number of these: what a first pass over the rows finds."""

    def __init__(self, rows: Iterable[Row]) -> None:
        names, starts, ends, failed, errors = [], [], [], [], []
        self.width = 0
        for row in rows:
            if row.features is None:
                failed.append(row.file)
                errors.append(row.error)
                continue
            self.width = len(row.features)
            names.append(row.file)
            starts.append(row.start)
            ends.append(row.end)
        self.shape = len(names), self.width
        self.texts = {"file": names, "failed": failed, "error": errors}
        self.numbers = {"start": np.array(starts, np.float64), "end": np.array(ends, np.float64)}


def _write_npz(path: Path, about: str, rows: Callable[[], Iterable[Row]]) -> None:
    columns = _Columns(rows())
    texts = {name: np.array(texts, np.str_) for name, texts in columns.texts.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in {**texts, **columns.numbers, "about": np.array(about)}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
        with archive.open("features.npy", "w", force_zip64=True) as file:  # np.savez would need all rows in memory
            head = {"descr": "<f4", "fortran_order": False, "shape": columns.shape}
            np.lib.format.write_array_header_1_0(file, head)
            for row in rows():
                if row.features is not None:
                    file.write(row.features.astype("<f4").tobytes())


@contextmanager
def _read_npz(path: Path) -> Iterator[tuple[str, Iterator[Row]]]:
    with np.load(path, allow_pickle=False) as file:
        about = str(file["about"])
        yield about, _rows(*(file[name] for name in ("file", "start", "end", "features", "failed", "error")))


def _write_h5(path: Path, about: str, rows: Callable[[], Iterable[Row]]) -> None:
    import h5py

    columns = _Columns(rows())
    with h5py.File(path, "w") as file:
        file.attrs[_KEY] = about
        for name, texts in columns.texts.items():
            file.create_dataset(name, data=texts, dtype=h5py.string_dtype(), shape=(len(texts),))
        for name, numbers in columns.numbers.items():
            file.create_dataset(name, data=numbers)
        features = file.create_dataset("features", columns.shape, np.float32)
        found = (row.features for row in rows() if row.features is not None)
        at = 0
        while some := list(islice(found, _BATCH)):
            features[at : at + len(some)] = np.stack(some)
            at += len(some)


@contextmanager
def _read_h5(path: Path) -> Iterator[tuple[str, Iterator[Row]]]:
    import h5py

    with h5py.File(path, "r") as file:

        def rows() -> Iterator[Row]:
            names, failed, errors = (file[name].asstr()[:] for name in ("file", "failed", "error"))
            yield from _rows(names, file["start"][:], file["end"][:], _in_batches(file["features"]), failed, errors)

        yield file.attrs[_KEY], rows()


def _in_batches(features: Any) -> Iterator[np.ndarray]:
    for at in range(0, len(features), _BATCH):
        yield from features[at : at + _BATCH]


def _rows(
    names: Sequence[str],
    starts: Sequence[float],
    ends: Sequence[float],
    features: Iterable[np.ndarray],
    failed: Sequence[str],
    errors: Sequence[str],
) -> Iterator[Row]:
    for name, start, end, vector in zip(names, starts, ends, features, strict=True):
        yield Row(str(name), float(start), float(end), vector)
    for name, error in zip(failed, errors, strict=True):
        yield Row(str(name), None, None, None, str(error))
