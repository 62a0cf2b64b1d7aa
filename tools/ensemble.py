"""Average the scores of several tests of the same videos.

python tools/ensemble.py runs/a/test/scores.npz runs/b/test/scores.npz
python tools/ensemble.py runs/rgb runs/flow --weights 2,1 --out runs/two_stream
"""

from pathlib import Path

import typer

from softpool3d.command import Asked
from softpool3d.errors import UsageError
from softpool3d.naming import RUNS, meant


def main(
    scores: list[Path] = typer.Argument(help="Files of scores from `test`, their folders, or folders of runs."),
    weights: str | None = typer.Option(None, help="A weight for each file, as in 2,1. [default: equal]"),
    mean: str = typer.Option("arithmetic", help="arithmetic, or geometric (of logarithms) of the probabilities."),
    common: bool = typer.Option(False, "--common", help="Leave out videos that not all of them have."),
    out: Path | None = typer.Option(
        None,
        "--out",
        "-o",
        help="Folder to write the results to, as `test` does.",
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace results that are there."),
) -> None:
    """Average the scores of several networks, and measure the result."""
    Asked(main, locals()).needs("--out", out is not None, "overwrite")
    if len(scores) < 2:
        raise UsageError("an ensemble has two members at least; name their files of scores")
    if mean not in ("arithmetic", "geometric"):
        raise UsageError(f"--mean {mean}: it is arithmetic or geometric")
    parts = [_number(part) for part in weights.split(",")] if weights else None
    paths = [_find(path) for path in scores]

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from softpool3d.analysis.ensemble import combine
    from softpool3d.evaluation.metrics import measure
    from softpool3d.evaluation.results import check_finite, show, write_results
    from softpool3d.evaluation.scores import VideoScores
    from softpool3d.runs.lock import claim

    if out is not None:
        _check_free(out, overwrite)
    names = [str(path) for path in paths]
    members = [VideoScores.load(path) for path in paths]
    for member in members:
        check_finite(member)
    together = combine(members, names, parts, mean, common)

    console = Console()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("scores", "weight", "videos", "top-1"):
        table.add_column(heading, justify="left" if heading == "scores" else "right", overflow="fold")
    for member, about in zip(members, together.about["members"], strict=True):
        top1 = f"{member.scores.accuracy():.2%}"
        table.add_row(Text(about["scores"]), f"{about['weight']:.3g}", str(len(member.videos)), top1)
    console.print(table)
    console.print(f"\ntogether, {len(together.videos)} videos, {mean} mean:")
    if out is None:
        metrics = measure(together.scores, together.classes)
    else:
        with claim(out, is_folder=True):
            _check_free(out, overwrite)
            metrics = write_results(out, together)
    show(console, metrics, out)


def _check_free(out: Path, overwrite: bool) -> None:
    from softpool3d.evaluation.results import RESULTS

    if (out / RESULTS).is_file() and not overwrite:
        raise UsageError(f"--out {out} holds results already; name another folder, or give --overwrite")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--weights: {text!r} is not a number; write them as in 2,1") from None


def _find(path: Path) -> Path:
    """Returns the file of scores: the path itself, or the one in the folder of a test or of a run, in runs/ too.

    A run has the scores of its last `test`, with more views perhaps, before those that training ended with.
    """
    path = RUNS / path if not path.exists() and (RUNS / path).exists() else path
    candidates = [path / "test" / "scores.npz", path / "scores.npz"] if path.is_dir() else [path]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        hint = "; softpool3d test --weights RUN writes them" if path.is_dir() else meant(path, (".npz",))
        raise UsageError(f"no file of scores {candidates[-1]}{hint}")
    return found


if __name__ == "__main__":
    from softpool3d.command import run_tool

    run_tool(main)
