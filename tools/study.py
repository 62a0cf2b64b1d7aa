"""Train several networks with several variants and seeds, and compare the variants pair by pair.

python tools/study.py --cfg configs/study/motion.yaml --out docs/study.md
python tools/study.py --cfg my_study.yaml data.root=/data/mine output=runs/mine
python tools/study.py --cfg configs/study/actions.yaml --data actions --jobs 2
"""

import os
import shlex
from pathlib import Path

import typer

from softpool3d.errors import UsageError, WorkError


def main(
    overrides: list[str] | None = typer.Argument(
        None, metavar="[KEY.PATH=VALUE]...", help="Settings of every run, as in output=runs/other."
    ),
    cfg: str = typer.Option(help="The study's YAML file, or the name of one that is shipped: study/motion."),
    data: Path | None = typer.Option(
        None, help="The folder of the study's data sets; or any folder of labelled videos, as the one data set."
    ),
    out: Path | None = typer.Option(
        None,
        "--out",
        "-o",
        help="The page of results, with a .png and a .json beside it. [default: study.md in the study's output]",
    ),
    jobs: int = typer.Option(1, min=1, help="Runs at a time; they share the cores."),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Say which runs there are, and which are finished; train nothing."
    ),
) -> None:
    """Run a study: train what is not finished, write means, spread and paired differences."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError("a study starts its runs itself; start it without torchrun, with --jobs")

    from softpool3d.config_file import find_config

    find_config(cfg)
    from rich.console import Console

    from softpool3d.analysis.folders import MEASURES
    from softpool3d.analysis.study import absent_sets, load_study
    from softpool3d.analysis.study_report import write_study
    from softpool3d.analysis.study_results import Results
    from softpool3d.analysis.study_run import run_study, unusable
    from softpool3d.runs.lock import claim
    from softpool3d.runtime.devices import pick_device

    study, trials = load_study(cfg, overrides, data)
    if out is not None and out.suffix != ".md":
        raise UsageError(f"--out {out}: the page is Markdown; give it a name that ends in .md")
    console = Console()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    for name in absent_sets(study, trials):
        say(f"{name}: there is no folder {data / name}; the study goes on without it")
    page = out or Path(trials[0].config.output) / "study.md"
    results = Results.read(page.with_suffix(".json"))
    if dry_run:
        problems = unusable(trials, results)
        results.gather([trial for trial in trials if str(trial.folder) not in problems])
        for trial in trials:
            result = results.runs.get(trial.config.name)
            state = f"test {MEASURES[result.measure]} {result.test:.1%}" if result else "to be trained"
            say(f"{trial.folder}: {problems.get(str(trial.folder), state)}")
        return
    pick_device(trials[0].config.device)  # one that is not there is an error before the first run
    options = ["--cfg", cfg, *(["--data", str(data)] if data else []), *(["--out", str(out)] if out else [])]
    command = shlex.join(["softpool3d", "study", *options, *(overrides or [])])
    failed: dict[str, str] = {}
    with claim(Path(trials[0].config.output), is_folder=True):
        try:
            failed = run_study(trials, results, console, jobs)
        finally:
            write_study(page, study, trials, results, failed, command)
            say(f"\nwritten to {page}, and the answers of each run to {page.with_suffix('.json')}")
    if failed:
        raise WorkError(f"{len(failed)} of {len(trials)} runs failed; {page} names them")


if __name__ == "__main__":
    from softpool3d.command import run_tool

    run_tool(main)
