"""Result files of `classify`. Each video's line is appended as soon as it is known: a killed run keeps its results.

    .csv      file,label,score[,label_2,score_2,...],views,duration,seconds,error; begins with a BOM, for spreadsheets
    .jsonl    one JSON object a line
    .parquet  the CSV's columns, written from the part files at the end (needs pyarrow)

With several processes, and for parquet, each process appends to its own part file, such as `results.csv.part0`. At the
end the parts are merged into one file. Resuming reads that file and all the parts that exist.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from softpool3d.errors import UsageError, WorkError
from softpool3d.files import csv_text
from softpool3d.foreign import parse_json
from softpool3d.inference.bulk import Failure
from softpool3d.inference.classifier import Prediction

FORMATS = (".csv", ".jsonl", ".parquet")


def record(result: Prediction | Failure) -> dict[str, Any]:
    """Returns a result as a JSON object: scores are probabilities, 0 to 1; times are in seconds."""
    if isinstance(result, Failure):
        return {"file": result.file, "error": result.reason}
    return {
        "file": result.file,
        "label": result.label,
        "score": round(result.score, 6),
        "labels": [{"label": x.name, "probability": round(x.probability, 6)} for x in result],
        "views": result.views,
        "duration": round(result.duration, 3),
        "seconds": round(result.seconds, 4),
        **({"damage": result.damage} if result.damage else {}),
    }


def row(result: dict[str, Any], top_k: int) -> dict[str, Any]:
    """Returns a record as a row of the table: column -> value."""
    flat = {name: result.get(name) for name in columns(top_k)}
    for place, label in enumerate(result.get("labels", [])[1:top_k], 2):
        flat[f"label_{place}"], flat[f"score_{place}"] = label["label"], label["probability"]
    return flat


def columns(top_k: int) -> list[str]:
    """Returns the names of the table's columns, for `top_k` labels of each video."""
    more = [f"{name}_{place}" for place in range(2, top_k + 1) for name in ("label", "score")]
    return ["file", "label", "score", *more, "views", "duration", "seconds", "error"]


def part_of(path: Path, rank: int) -> Path:
    """Returns the part file that the process of this rank appends to."""
    return path.with_name(f"{path.name}.part{rank}")


class ResultsFile:
    """A file of results that is appended to.

    Args:
        path: its ending gives the format.
        top_k: number of labels of each video; a CSV file has columns for all of them.
        resume: goes on with the file; `name in results` then tells whether a video is done.
        overwrite: replaces an existing file, once there is a first result.
        rank, world_size: number of this process, and of all processes that share the work.

    Raises:
        UsageError: for an unknown format, for a file that exists or was written with other columns, or if pyarrow is
            missing.
    """

    def __init__(
        self,
        path: str | Path,
        top_k: int,
        resume: bool = False,
        overwrite: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.path, self.top_k = Path(path), top_k
        self._format = self.path.suffix.lower()
        if self._format not in FORMATS:
            raise UsageError(f"--out {path}: unknown format {self.path.suffix!r} (known: {', '.join(FORMATS)})")
        if self._format == ".parquet" and find_spec("pyarrow") is None:
            raise UsageError(f"--out {path}: parquet needs pyarrow; pip install 'softpool3d[parquet]', or take .csv")
        self._is_first = rank == 0
        self._in_parts = world_size > 1 or self._format == ".parquet"
        self._own = part_of(self.path, rank) if self._in_parts else self.path
        there = [path for path in (self.path, *self._parts()) if path.exists()]
        # other processes may have begun theirs already
        ranks = range(world_size) if self._in_parts else ()
        others = {part_of(self.path, other) for other in ranks if other != rank}
        self._stale = [path for path in there if path not in others] if rank == 0 else [self._own]
        left = [path for path in there if path not in others]
        if left and not (resume or overwrite):
            raise UsageError(f"--out: {left[0]} exists; --resume {path} goes on with it, --overwrite replaces it")
        self._done = np.empty(0, np.uint64)
        self._file: io.FileIO | None = None
        self._goes_on, self._replaces = resume, overwrite and not resume
        self._columns = columns(top_k)
        if resume:
            if not self.path.is_file() and self.path.exists():
                raise UsageError(f"--resume {path}: this is no file")
            if self._own.exists() and self._own.suffix != ".parquet":
                _mend(self._own, self._line_format)
            names = chain.from_iterable(self._names(path) for path in there)
            self._done = np.sort(np.fromiter(map(_hash, names), np.uint64))

    def __contains__(self, name: str) -> bool:
        key = _hash(name)
        place = int(np.searchsorted(self._done, np.uint64(key)))
        return place < len(self._done) and int(self._done[place]) == key

    @property
    def done(self) -> int:
        """The number of videos that the file held when it was opened."""
        return len(self._done)

    def write(self, result: Prediction | Failure) -> None:
        """Appends a result.

        Raises:
            WorkError: if it cannot be written, as on a full disk.
        """
        values = record(result)
        if self._line_format == ".csv":
            line = _csv_line(row(values, self.top_k).values())
        else:
            line = json.dumps(values, ensure_ascii=False) + "\n"
        try:
            if self._file is None:
                self._open()
            self._append(line)
        except OSError as error:
            raise self._cannot_write(error) from None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def merge(self) -> None:
        """Merges the parts into one file. Only the first process does so, when all processes have finished.

        Raises:
            WorkError: if it cannot be written; the parts stay then.
        """
        self.close()
        if not self._in_parts or not self._is_first:
            return
        sources = [path for path in (self.path, *self._parts()) if path.exists()]
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        records = chain.from_iterable(self._records(path) for path in sources)
        try:
            if self._format == ".parquet":
                _write_parquet(temporary, (row(values, self.top_k) for values in records), self._columns)
            else:
                with temporary.open("wb") as file:
                    if self._format == ".csv":
                        file.write(BOM_UTF8 + _csv_line(self._columns).encode())
                        lines = (_csv_line(values[name] for name in self._columns) for values in records)
                    else:
                        lines = (json.dumps(values, ensure_ascii=False) + "\n" for values in records)
                    for line in lines:
                        file.write(line.encode(errors="surrogateescape"))
            temporary.replace(self.path)
        except OSError as error:
            raise self._cannot_write(error) from None
        finally:
            temporary.unlink(missing_ok=True)
        for part in self._parts():
            part.unlink()

    @property
    def _line_format(self) -> str:
        return ".jsonl" if self._format == ".parquet" else self._format

    def _parts(self) -> list[Path]:
        prefix = f"{self.path.name}.part"
        if not self.path.parent.is_dir():
            return []
        found = (p for p in self.path.parent.iterdir() if p.name.startswith(prefix))
        return sorted((p for p in found if p.name[len(prefix) :].isdigit()), key=lambda p: int(p.name[len(prefix) :]))

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._replaces:
            for path in self._stale:
                path.unlink(missing_ok=True)
        # "xb": a file that has appeared since then belongs to another command
        self._file = self._own.open("ab" if self._goes_on else "xb", buffering=0)
        if self._line_format == ".csv" and not self._own.stat().st_size:
            self._append("\ufeff" + _csv_line(self._columns))

    def _append(self, line: str) -> None:
        data = line.encode(errors="surrogateescape")
        while data:  # a disk that fills up writes a part first, and then fails
            data = data[self._file.write(data) :]

    def _names(self, path: Path) -> Iterator[str]:
        for values in self._records(path):
            yield values["file"]

    def _records(self, path: Path) -> Iterator[dict[str, Any]]:
        """Yields the records of a file, without a torn last line."""
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            for batch in pq.ParquetFile(path).iter_batches():
                yield from map(_unflattened, batch.to_pylist())
            return
        with path.open("rb") as file:
            lines = (line.decode(errors="surrogateescape") for line in file)
            if self._line_format == ".jsonl":
                for number, line in enumerate(lines, 1):
                    if line.endswith("\n"):
                        yield _parsed(line, f"{path}:{number}")
                return
            reader = csv.reader(lines)
            header = next(reader, self._columns)
            header[0] = header[0].removeprefix("\ufeff")  # earlier versions wrote none
            if header != self._columns:
                raise UsageError(
                    f"--resume: {path} has the columns {','.join(header)}, and this run's are "
                    f"{','.join(self._columns)}; give the --topk that it was written with"
                )
            for values in reader:
                if len(values) == len(header):
                    yield dict(zip(header, values, strict=True))

    def _cannot_write(self, error: OSError) -> WorkError:
        return WorkError(f"cannot write {self._own}: {(error.strerror or str(error)).lower()}")


def _hash(name: str) -> int:
    """Returns a hash of 64 bits. Among a million names, two have the same one with a probability of 1 in 40 million."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest(), "big")


def _csv_line(values: Iterable[Any]) -> str:
    return csv_text([list(values)])


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        values = parse_json(line)
        if isinstance(values, dict) and "file" in values:
            return values
    except ValueError:
        pass
    raise UsageError(f"{where}: this is no line of results")


def _mend(path: Path, line_format: str) -> None:
    """Cuts off a last line that a kill or a full disk has torn."""
    with path.open("rb+") as file:
        whole = quotes = 0  # bytes up to the end of the last whole record
        position = 0
        for line in file:
            position += len(line)
            quotes += line.count(b'"') if line_format == ".csv" else 0  # a name in quotes may hold a line break
            if line.endswith(b"\n") and quotes % 2 == 0:
                whole = position
        file.truncate(whole)


def _unflattened(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the record of a row of the table; the inverse of `row`."""
    labels, place = [{"label": values.get("label"), "probability": values.get("score")}], 2
    while values.get(f"label_{place}") is not None:
        labels.append({"label": values[f"label_{place}"], "probability": values[f"score_{place}"]})
        place += 1
    return {**values, "labels": labels if values.get("label") is not None else []}


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]], names: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"views": pa.int64(), "duration": pa.float64(), "seconds": pa.float64()}
    schema = pa.schema(
        [(name, kinds.get(name, pa.float64() if name.startswith("score") else pa.string())) for name in names]
    )
    with pq.ParquetWriter(path, schema) as writer:
        while some := list(islice(rows, 65536)):
            writer.write_table(pa.Table.from_pylist(some, schema))
