"""Compare runs: settings that differ, accuracies, time, parameters, curves.

python tools/compare.py runs/a runs/b runs/c
python tools/compare.py runs/* --sort test --out curves.png --out table.csv
"""

from pathlib import Path

import typer

from softpool3d.command import Asked
from softpool3d.errors import UsageError, WorkError

_PICTURES, _TABLES = (".png", ".svg", ".pdf"), (".csv", ".md")
_SORTS = ("given", "val", "test", "seconds")
_SIDE_BY_SIDE = 6  # runs whose settings still fit beside each other


def main(
    runs: list[Path] = typer.Argument(help="Runs: their folders, their names in runs/, or folders that hold runs."),
    out: list[Path] | None = typer.Option(
        None, "--out", "-o", help="Curves as .png, .svg, .pdf; the table as .csv, .md. Repeatable."
    ),
    sort: str = typer.Option("given", help="given, val, test (best first) or seconds (shortest first)."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace files of --out that are there."),
) -> None:
    """Compare runs: a table of what differs and what came of it, and the curves."""
    Asked(main, locals()).needs("--out", bool(out), "overwrite")
    if sort not in _SORTS:
        raise UsageError(f"--sort {sort}: it is one of {', '.join(_SORTS)}")
    for path in out or []:
        if path.suffix.lower() not in (*_PICTURES, *_TABLES):
            raise UsageError(f"--out {path}: unknown format; it is one of {', '.join((*_PICTURES, *_TABLES))}")
        if path.exists() and not overwrite:
            raise UsageError(f"--out {path} exists; name another file, or give --overwrite")

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from softpool3d.analysis.comparison import compare, curves_text, epochs_done, letter
    from softpool3d.analysis.folders import read_run
    from softpool3d.naming import runs_named

    folders = [folder for name in runs for folder in runs_named(name)]
    records = [read_run(folder) for folder in dict.fromkeys(folders)]
    records.sort(key=lambda record: _place(record, sort))
    comparison = compare(records)
    console = Console()

    def say(text: str = "") -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if comparison.runs:
        heads, rows = comparison.table()
        results = [n for n, head in enumerate(heads) if head not in comparison.settings]
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("")
        for n in results:
            table.add_column(heads[n], justify="right" if n else "left", overflow="fold", no_wrap=n > 0)
        for number, row in enumerate(rows):
            table.add_row(letter(number), *(Text(row[n]) for n in results))
        console.print(table)
        if comparison.settings:
            say("\nsettings that differ")
        if 1 < len(rows) <= _SIDE_BY_SIDE:
            table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
            for head in ("", *map(letter, range(len(rows)))):
                table.add_column(head, overflow="fold")
            for n, head in enumerate(heads):
                if head in comparison.settings:
                    table.add_row(Text(head), *(Text(row[n]) for row in rows))
            console.print(table)
        else:  # value by value
            for n, head in enumerate(heads):
                if head in comparison.settings:
                    having: dict[str, str] = {}
                    for number, row in enumerate(rows):
                        having[row[n]] = having.get(row[n], "") + f" {letter(number)}"
                    say(f"{head}: " + "; ".join(f"{value or '-'} ({which.strip()})" for value, which in having.items()))
        curves = curves_text(comparison.runs, min(max(console.width - 8, 20), 100))
        say("\n".join(["", *curves]) if curves else "\nno epoch has been evaluated yet")
        for path in out or []:
            _write(path, comparison.runs, heads, rows)
            say(f"written to {path}")
    for run in comparison.runs:
        if not run.finished:
            done = f"{epochs_done(run)} of {run.config.train.epochs} epochs"
            say(f"not finished: {run.folder} ({done}); softpool3d train --resume {run.folder}")
    for record in comparison.bad:
        say(f"left out: {record.folder}: {record.problem}")
    if comparison.bad:
        raise WorkError(f"{len(comparison.bad)} of {len(records)} folders could not be read as runs")


def _write(path: Path, runs: list, heads: list[str], rows: list[list[str]]) -> None:
    """Writes the curves of runs, or their table, as the file's name ends."""
    from softpool3d.analysis.comparison import curves_figure, picture
    from softpool3d.files import write_atomically, write_csv

    ending = path.suffix.lower()
    if ending in _PICTURES:
        write_atomically(path, picture(curves_figure(runs), ending[1:]))
    elif ending == ".csv":
        write_csv(path, [heads, *rows])
    else:
        from softpool3d.analysis.measuring import markdown_table

        cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
        write_atomically(path, f"{markdown_table(heads, cells)}\n".encode())


def _place(record, sort: str) -> float:
    if sort == "given":
        return 0.0
    if sort == "val":
        return -(record.best_val() or 0.0)
    if record.summary is None:
        return float("inf")
    return -record.test() if sort == "test" else record.summary["seconds"]


if __name__ == "__main__":
    from softpool3d.command import run_tool

    run_tool(main)
