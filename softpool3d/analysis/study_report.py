"""What a study found, as a page of Markdown: means and spread, paired differences with their interval, the time."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from softpool3d.analysis.folders import MEASURES, RunRecord, read_run
from softpool3d.analysis.statistics import paired_difference, spread
from softpool3d.analysis.study import Study, Trial


@dataclass(frozen=True)
class Outcome:
    trial: Trial
    record: RunRecord

    @property
    def score(self) -> float:
        """Top-1 on the test split, or mAP where clips have several labels."""
        return self.record.test()


def study_page(study: Study, trials: list[Trial], failed: dict[str, str], command: str, machine: str) -> str:
    """Returns the page, made from the runs that are finished; it names the others."""
    outcomes = [Outcome(trial, record) for trial in trials if (record := read_run(trial.folder)).finished]
    done = {outcome.trial.folder for outcome in outcomes}
    seconds = sum(outcome.record.summary["seconds"] for outcome in outcomes)
    lines = [
        f"# {study.title}",
        "",
        f"Written by `{command}`.",
        f"{len(outcomes)} of {len(trials)} runs are finished; they took {_minutes(seconds)} on {machine}.",
        "",
        *_setting(study, trials),
        "",
    ]
    classes = {outcome.record.num_classes for outcome in outcomes} - {None}
    if len(classes) == 1:
        count = classes.pop()
        lines += [f"There are {count} classes: chance is {1 / count:.1%}.", ""]
    for network in dict.fromkeys(trial.network for trial in trials):
        mine = [outcome for outcome in outcomes if outcome.trial.network == network]
        lines += [f"## {network}", "", *_means(study, mine), "", *_differences(study, mine), ""]
    missing = [trial for trial in trials if trial.folder not in done]
    if missing:
        lines += ["## Not finished", ""]
        lines += [f"- {trial.config.name}: {failed.get(str(trial.folder), 'not trained yet')}" for trial in missing]
        lines += [""]
    lines += _how(study)
    return "\n".join(lines).rstrip() + "\n"


def _setting(study: Study, trials: list[Trial]) -> list[str]:
    config = trials[0].config
    data, train, test = config.data, config.train, config.test
    clips = f"`{data.dataset}`"
    if data.dataset == "motion":
        clips = "{} train, {} val and {} test clips of `motion`".format(*data.motion_clips)
    networks = list(dict.fromkeys(trial.network for trial in trials))
    lines = [
        f"{' and '.join(networks)}, {len(study.variants)} variants, seeds {', '.join(map(str, study.seeds))}.",
        f"{clips}, {data.num_frames} frames of {data.crop_size}x{data.crop_size} at rate {data.sampling_rate};",
        f"{train.epochs} epochs in batches of {train.batch_size}; the weights that were best in validation, tested on",
        f"{test.num_clips} clip{'s' if test.num_clips > 1 else ''} of each video, {test.num_crops} "
        f"crop{'s' if test.num_crops > 1 else ''} of each.",
        "",
        "| variant | settings |",
        "|---|---|",
    ]
    return lines + [f"| {name} | {' '.join(f'`{key}`' for key in own)} |" for name, own in study.variants.items()]


def _means(study: Study, outcomes: list[Outcome]) -> list[str]:
    measure = outcomes[0].record.measure if outcomes else "top1"
    judged = MEASURES[measure]
    heads = ["variant", f"test {judged}, mean", "spread (sd)", *(f"seed {seed}" for seed in study.seeds)]
    heads += [f"best val {judged}, mean", "train top-1 in the last epoch, mean", "parameters", "seconds a run, median"]
    lines = _head(heads)
    for variant in study.variants:
        mine = {outcome.trial.seed: outcome for outcome in outcomes if outcome.trial.variant == variant}
        values = [outcome.score for outcome in mine.values()]
        if not values:
            lines.append(_row([variant, "not finished", *[""] * (len(heads) - 2)]))
            continue
        deviation = spread(values)
        val = statistics.fmean(outcome.record.summary[f"val_{measure}"] for outcome in mine.values())
        trained = statistics.fmean(outcome.record.epochs[-1]["train_top1"] for outcome in mine.values())
        seconds = statistics.median(outcome.record.summary["seconds"] for outcome in mine.values())
        parameters = next(iter(mine.values())).record.parameters
        lines.append(
            _row(
                [
                    variant,
                    f"{statistics.fmean(values):.1%}",
                    "" if deviation is None else f"{100 * deviation:.1f}",
                    *(f"{mine[seed].score:.1%}" if seed in mine else "" for seed in study.seeds),
                    f"{val:.1%}",
                    f"{trained:.1%}",
                    "" if parameters is None else f"{parameters / 1e6:.2f} M",
                    f"{seconds:.0f}",
                ]
            )
        )
    return lines


def _differences(study: Study, outcomes: list[Outcome]) -> list[str]:
    scores = {(outcome.trial.variant, outcome.trial.seed): outcome.score for outcome in outcomes}
    lines = _head([f"{study.reference} minus", "mean, points", "95% interval", "of each pair", "what it says"])
    for variant in study.variants:
        if variant == study.reference:
            continue
        seeds = [s for s in study.seeds if (variant, s) in scores and (study.reference, s) in scores]
        if not seeds:
            lines.append(_row([variant, "no finished pair", "", "", ""]))
            continue
        found = paired_difference([scores[study.reference, s] for s in seeds], [scores[variant, s] for s in seeds])
        interval = "" if found.interval is None else f"{_points(found.interval[0])} to {_points(found.interval[1])}"
        verdict = "not told apart"
        if found.excludes_zero:
            verdict = f"{study.reference} is {'better' if found.mean > 0 else 'worse'}"
        pairs = ", ".join(map(_points, found.pairs))
        lines.append(_row([variant, _points(found.mean), interval, pairs, verdict]))
    return lines


def _how(study: Study) -> list[str]:
    return [
        "## How to read it",
        "",
        "Runs of one seed are a pair: the same clips in the same order, and the same initial weights wherever layers",
        "have the same shape. The interval is Student's t over the pairs' differences: it covers what another seed",
        f"would change, not another set of test clips. Of {len(study.seeds)} pairs it is wide, and nothing is",
        "corrected for the number of comparisons. Where top-1 on the training clips is still low in the last epoch, a",
        "row says how fast the variant learns from these clips, not what it would reach. Seconds are those of the runs",
        "as they were, whatever else the machine did.",
    ]


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def _head(columns: list[str]) -> list[str]:
    return [_row(columns), "|" + "---|" * len(columns)]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
