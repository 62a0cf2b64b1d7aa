"""What a study found, as a page of Markdown: a summary, then means, spread, differences and their intervals."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from softpool3d.analysis.comparison import picture
from softpool3d.analysis.folders import MEASURES
from softpool3d.analysis.statistics import spread
from softpool3d.analysis.study import Study, Trial, absent_sets
from softpool3d.analysis.study_figure import study_figure
from softpool3d.analysis.study_findings import Compared, Findings, Outcome, findings
from softpool3d.analysis.study_results import Result, Results
from softpool3d.config import DataConfig
from softpool3d.files import write_atomically


def write_study(
    page: Path, study: Study, trials: list[Trial], results: Results, failed: dict[str, str], command: str
) -> None:
    """Writes a study's page, and beside it its picture, if a run is finished, and what both are made of.

    Args:
        failed: folder -> why its run cannot be used.

    Raises:
        WorkError: if one of them cannot be written.
    """
    results.write(page.with_suffix(".json"))
    found = findings(study, trials, results, failed)
    drawn = page.with_suffix(".png")
    if any(finding.outcomes for finding in found.values()):
        write_atomically(drawn, picture(study_figure(found), "png"))
    write_atomically(page, study_page(study, trials, found, failed, command, drawn.name).encode())


def study_page(
    study: Study,
    trials: list[Trial],
    found: dict[tuple[str, str], Findings],
    failed: dict[str, str],
    command: str,
    drawn: str,
) -> str:
    """Returns the page, made from the runs that are finished; it names the others. drawn: the picture's name."""
    outcomes = [outcome for finding in found.values() for outcome in finding.outcomes]
    done = {outcome.trial.folder for outcome in outcomes}
    took = _took([outcome.result for outcome in outcomes])
    lines = [f"# {study.title}", "", *_summary(found), f"Written by `{command}`."]
    lines += [f"{len(outcomes)} of {len(trials)} runs are finished{took}.", ""]
    lines += [*_setting(study, trials), ""]
    if outcomes:
        lines += [f"![Test scores: a dot for each run, a bar for the mean of each variant]({drawn})", ""]
    for (data_set, network), finding in found.items():
        lines += [f"## {', '.join(filter(None, (data_set, network)))}", "", *_about(finding)]
        lines += [*_means(finding), "", *_differences(finding), "", *_pairs(finding)]
    missing = [trial for trial in trials if trial.folder not in done]
    absent = absent_sets(study, trials)
    if missing or absent:
        lines += ["## Not finished", ""]
        lines += [f"- {name}: its folder was not there" for name in absent]
        lines += [f"- {trial.config.name}: {failed.get(str(trial.folder), 'not trained yet')}" for trial in missing]
        lines += [""]
    lines += _how(found)
    return "\n".join(lines).rstrip() + "\n"


def _summary(found: dict[tuple[str, str], Findings]) -> list[str]:
    """Returns a sentence or two for each data set and network, of the variants that have all seeds."""
    lines = []
    for (data_set, network), finding in found.items():
        study = finding.study
        whole = [name for name in finding.variants if finding.complete(name)]
        if study.reference not in whole or len(study.seeds) < 2 or len(whole) < 2:
            continue
        means = sorted(
            ((statistics.fmean(one.result.test for one in finding.of(name)), name) for name in whole), reverse=True
        )
        scores = ", ".join(f"{name} {mean:.1%}" for mean, name in means)
        of_whom = finding.outcomes[0]
        tested = of_whom.result.test_clips
        groups = len(set(finding.groups.values()))
        lines.append(
            f"**{', '.join(filter(None, (data_set, network)))}**: {scores} ({_judged(of_whom)} on {tested} test "
            f"clips{f' of {groups} people or places that training did not see' if groups else ''}, mean of "
            f"{len(study.seeds)} seeds). {_verdicts(finding, whole)}"
        )
        lines.append("")
    return lines


def _verdicts(finding: Findings, variants: Sequence[str]) -> str:
    """Returns what holds of the reference beside each variant, as one sentence."""
    kinds: dict[str, list[str]] = {}
    for name in variants:
        if name != finding.study.reference and (compared := finding.compared(name)):
            kinds.setdefault(_verdict(compared), []).append(name)
    words = {"better": "better than", "worse": "worse than", "": "not told apart from"}
    said = [f"{words[kind]} {', '.join(names)}" for kind, names in sorted(kinds.items(), reverse=True)]
    return f"{finding.study.reference} is {'; '.join(said)}."


def _verdict(compared: Compared) -> str:
    """Returns "better" or "worse" if both intervals exclude 0, over seeds and over test clips; else ""."""
    intervals = [compared.by_seed.interval, compared.by_clip or compared.by_seed.interval]
    if any(interval is None for interval in intervals):
        return ""
    if all(low > 0 for low, _ in intervals):
        return "better"
    return "worse" if all(high < 0 for _, high in intervals) else ""


def _judged(outcome: Outcome) -> str:
    return MEASURES[outcome.result.measure]


def _setting(study: Study, trials: list[Trial]) -> list[str]:
    config = trials[0].config
    networks = list(dict.fromkeys(trial.network for trial in trials))
    sets = [name for name in dict.fromkeys(trial.data_set for trial in trials) if name]
    lines = [f"{' and '.join(networks)}, {len(study.variants)} variants, seeds {', '.join(map(str, study.seeds))}."]
    if study.once:
        lines += [f"With seed {study.seeds[0]} alone: {', '.join(study.once)}."]
    if not sets:
        lines += [f"{_clips(config.data)}: {_recipe(trials[0])}."]
    for name in sets:
        lines += [f"{name}: {_recipe(next(trial for trial in trials if trial.data_set == name))}."]
    views = config.test
    lines += [
        "The weights that were best in validation are tested, on "
        + ("" if config.data.of_pictures else f"{_count(views.num_clips, 'clip')} of each video, ")
        + f"{_count(views.num_crops, 'crop')} of each.",
        "",
        "| variant | settings |",
        "|---|---|",
    ]
    lines += [f"| {name} | {' '.join(f'`{key}`' for key in own)} |" for name, own in study.variants.items()]
    return lines + [f"| {name} | of {', '.join(one)}, the best in validation |" for name, one in study.chosen.items()]


def _clips(data: DataConfig) -> str:
    if data.dataset == "motion":
        return "{} train, {} val and {} test clips of `motion`".format(*data.motion_clips)
    if data.dataset == "digits":
        return (
            "scikit-learn's 1797 handwritten digits of 8x8 pixels, divided into train, val and test by "
            f"{data.split} (real pictures, but small and few, so that this shows how a comparison is made and says "
            "nothing of ImageNet)"
        )
    return f"`{data.dataset}`"


def _recipe(trial: Trial) -> str:
    data, train = trial.config.data, trial.config.train
    rate = f" at rate {data.sampling_rate}" if data.sampling == "dense" else f", {data.sampling}"
    seen = "pictures" if data.of_pictures else f"{data.num_frames} frames"
    size = f"{data.crop_size}x{data.crop_size}{'' if data.of_pictures else rate}"
    return f"{seen} of {size}; {train.epochs} epochs in batches of {train.batch_size}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def _about(finding: Findings) -> list[str]:
    classes = {outcome.result.num_classes for outcome in finding.outcomes} - {None}
    if len(classes) != 1:
        return []
    count = classes.pop()
    return [f"There are {count} classes: chance is {1 / count:.1%}.", ""]


def _means(finding: Findings) -> list[str]:
    judged = _judged(finding.outcomes[0]) if finding.outcomes else MEASURES["top1"]
    heads = ["variant", f"test {judged}, mean", "spread (sd)", "of each seed", f"best val {judged}, mean"]
    heads += ["train top-1 in the last epoch, mean", "parameters", "seconds a run, median", "CPU seconds"]
    heads += ["peak memory"]
    lines = _head(heads)
    for variant in finding.variants:
        mine = [outcome.result for outcome in finding.of(variant)]
        if not mine:
            lines.append(_row([variant, "not finished", *[""] * (len(heads) - 2)]))
            continue
        values = [result.test for result in mine]
        deviation = spread(values)
        parameters = mine[0].parameters
        memory = max(result.peak_memory_bytes for result in mine)
        lines.append(
            _row(
                [
                    variant,
                    f"{statistics.fmean(values):.1%}",
                    "" if deviation is None else f"{100 * deviation:.1f}",
                    ", ".join(f"{100 * value:.1f}" for value in values),
                    f"{statistics.fmean(result.val for result in mine):.1%}",
                    f"{statistics.fmean(result.train_top1 for result in mine):.1%}",
                    "" if parameters is None else f"{parameters / 1e6:.2f} M",
                    f"{statistics.median(result.seconds for result in mine):.0f}",
                    _cpu_seconds(mine),
                    f"{memory / 2**30:.2f} GiB" if memory else "",
                ]
            )
        )
    return lines


def _cpu_seconds(results: list[Result]) -> str:
    times = [result.cpu_seconds for result in results]
    return "" if None in times else f"{statistics.median(times):.0f}"


def _differences(finding: Findings) -> list[str]:
    reference = finding.study.reference
    grouped = "people or places" if finding.groups else "clips"
    heads = [f"{reference} minus", "mean, points", "95% over seeds", f"95% over test {grouped}", "of each pair"]
    lines = _head([*heads, "what it says"])
    for variant in finding.variants:
        if variant == reference:
            continue
        compared = finding.compared(variant)
        if compared is None:
            lines.append(_row([variant, "no finished pair", "", "", "", ""]))
            continue
        verdict = _verdict(compared)
        lines.append(
            _row(
                [
                    variant,
                    _points(compared.by_seed.mean),
                    _interval(compared.by_seed.interval),
                    _interval(compared.by_clip),
                    ", ".join(map(_points, compared.by_seed.pairs)),
                    f"{reference} is {verdict}" if verdict else "not told apart",
                ]
            )
        )
    return lines


def _pairs(finding: Findings) -> list[str]:
    """Returns a table of the classes that the study wants to be told apart."""
    if not finding.outcomes:
        return []
    pairs = finding.study.pairs.get(finding.outcomes[0].trial.data_set, [])
    if not pairs:
        return []
    lines = ["Right, and taken for each other, of the clips of two classes:", ""]
    lines += _head(["variant", *(" and ".join(pair) for pair in pairs)])
    for variant in finding.variants:
        if finding.of(variant):
            lines.append(_row([variant, *(f"{right:.0%}, {other:.0%}" for right, other in finding.pairs(variant))]))
    return [*lines, ""]


def _how(found: dict[tuple[str, str], Findings]) -> list[str]:
    groups = sorted({len(set(finding.groups.values())) for finding in found.values()} - {0})
    counts = {len(finding.paired_seeds(name)) for finding in found.values() for name in finding.variants}
    pairs = sorted(counts - {0, 1})
    wide = f"Of {_either(pairs)} pairs it is wide. " if pairs else ""
    whole, rough = "", ""
    if groups:
        whole = ", whole people or places at a time,"
        rough = f"; of {_either(groups)} people or places it is rough"
    return [
        "## How to read it",
        "",
        "Runs of one seed are a pair: the same clips in the same order, and the same initial weights wherever layers",
        "have the same shape. The first interval is Student's t over the pairs' differences: it covers what another",
        f"seed would change, not other test clips. {wide}The second is a bootstrap",
        f"over the test clips{whole} of the seeds' mean: it covers other clips, not other seeds{rough}.",
        "A verdict needs both to exclude 0. Nothing is corrected for the number of comparisons. Where top-1 on the",
        "training clips is still low in the last epoch, a row says how fast the variant learns from these clips, not",
        "what it would reach. Seconds are those of the runs as they were, whatever else the machine did; CPU seconds",
        "are those of the run's process, its threads together.",
    ]


def _either(numbers: Sequence[int]) -> str:
    """Returns 2, 3 or 5."""
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{_points(interval[0])} to {_points(interval[1])}"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _took(results: list[Result]) -> str:
    """Returns how long runs took, and on which machines; "" without any."""
    if not results:
        return ""
    machines = dict.fromkeys(result.machine for result in results)
    return f"; they took {_minutes(sum(result.seconds for result in results))} on {' and '.join(machines)}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def _head(columns: list[str]) -> list[str]:
    return [_row(columns), "|" + "---|" * len(columns)]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
