"""Result files of `classify`, which grow by a line for each video (growing_file.py).

.csv      file,label,score[,label_2,score_2,...],views,duration,seconds,error; begins with a BOM, for spreadsheets
.jsonl    one JSON object a line
.parquet  the CSV's columns, written from the part files at the end (needs pyarrow)
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softpool3d.errors import UsageError
from softpool3d.files import csv_text
from softpool3d.foreign import parse_json
from softpool3d.inference.classifier import Prediction
from softpool3d.inference.growing_file import GrowingFile
from softpool3d.inference.work import Failure

if TYPE_CHECKING:
    import pyarrow as pa

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


class ResultsFile(GrowingFile):
    """A file of labels that is appended to.

    Args:
        path, resume, overwrite, rank, world_size: as for `GrowingFile`.
        top_k: number of labels of each video; a CSV file has columns for all of them.

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
        path = Path(path)
        self.top_k, self._columns, self._format = top_k, columns(top_k), path.suffix.lower()
        if self._format not in FORMATS:
            raise UsageError(f"--out {path}: unknown format {path.suffix!r} (known: {', '.join(FORMATS)})")
        if self._format == ".parquet" and find_spec("pyarrow") is None:
            raise UsageError(f"--out {path}: parquet needs pyarrow; pip install 'softpool3d[parquet]', or take .csv")
        in_parts = world_size > 1 or self._format == ".parquet"
        super().__init__(path, in_parts, resume, overwrite, rank, world_size)

    def write(self, result: Prediction | Failure) -> None:
        """Appends a result.

        Raises:
            WorkError: if it cannot be written, as on a full disk.
        """
        values = record(result)
        if self._line_format == ".csv":
            self._write(_csv_line(row(values, self.top_k).values()))
        else:
            self._write(json.dumps(values, ensure_ascii=False) + "\n")

    @property
    def _line_format(self) -> str:
        return ".jsonl" if self._format == ".parquet" else self._format

    def _header(self) -> str:
        return "\ufeff" + _csv_line(self._columns) if self._line_format == ".csv" else ""

    def _names(self, path: Path) -> Iterator[str]:
        for values in self._records(path):
            yield values["file"]

    def _write_merged(self, target: Path, sources: list[Path]) -> None:
        records = chain.from_iterable(self._records(path) for path in sources)
        if self._format == ".parquet":
            return _write_parquet(target, (row(values, self.top_k) for values in records), self._columns)
        with target.open("wb") as file:
            file.write(self._header().encode())
            if self._format == ".csv":
                lines = (_csv_line(values[name] for name in self._columns) for values in records)
            else:
                lines = (json.dumps(values, ensure_ascii=False) + "\n" for values in records)
            for line in lines:
                file.write(line.encode(errors="surrogateescape"))

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

    def _whole(self, path: Path) -> int:
        whole = position = quotes = 0
        with path.open("rb") as file:
            for line in file:
                position += len(line)
                quotes += line.count(b'"') if self._line_format == ".csv" else 0  # what is quoted may hold a line break
                if line.endswith(b"\n") and quotes % 2 == 0:
                    whole = position
        return whole


def schema(names: list[str]) -> pa.Schema:
    """Returns the types of the table's columns in Parquet."""
    import pyarrow as pa

    kinds = {"views": pa.int64(), "duration": pa.float64(), "seconds": pa.float64()}
    return pa.schema(
        [(name, kinds.get(name, pa.float64() if name.startswith("score") else pa.string())) for name in names]
    )


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

    kinds = schema(names)
    with pq.ParquetWriter(path, kinds) as writer:
        while some := list(islice(rows, 65536)):
            writer.write_table(pa.Table.from_pylist(some, kinds))
