"""What the finished runs of a study say: scores by variant, differences by seed and by clip, confused pairs."""

from __future__ import annotations

import os
import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from softpool3d.analysis.groups import GROUPS, read_groups
from softpool3d.analysis.statistics import Difference, grouped_interval, paired_difference
from softpool3d.analysis.study import Study, Trial
from softpool3d.analysis.study_results import Clips, Result, Results
from softpool3d.config import Config
from softpool3d.datasets import read_manifests
from softpool3d.errors import SoftPool3dError
from softpool3d.evaluation.scores import video_names


@dataclass(frozen=True)
class Outcome:
    """A finished run. clips: the test clips that its answers are about; None where it has none."""

    trial: Trial
    result: Result
    clips: Clips | None

    @cached_property
    def right(self) -> dict[str, float]:
        """1 for each test clip whose likeliest class is its label, 0 for the others; {} for several labels."""
        if self.clips is None:
            return {}
        both = zip(self.clips.videos, self.clips.labels, self.result.answers or (), strict=True)
        return {video: float(label == answer) for video, label, answer in both}


@dataclass(frozen=True)
class Compared:
    """The reference minus a variant.

    by_clip: an interval over groups of test clips; None if their scores are not there, or there is one group.
    """

    by_seed: Difference
    by_clip: tuple[float, float] | None


class Findings:
    """The finished runs of one data set and network."""

    def __init__(self, study: Study, outcomes: Sequence[Outcome]) -> None:
        self.study = study
        self.outcomes = list(outcomes)
        self._of = {(one.trial.variant, one.trial.seed): one for one in outcomes}
        for name, variants in study.chosen.items():
            self._of |= {(name, seed): one for seed in study.seeds if (one := self._best(variants, seed))}

    @property
    def variants(self) -> list[str]:
        """The study's variants, and after them those that stand for the best of several."""
        return [*self.study.variants, *self.study.chosen]

    def of(self, variant: str) -> list[Outcome]:
        return [self._of[variant, seed] for seed in self.study.seeds if (variant, seed) in self._of]

    def complete(self, variant: str) -> bool:
        """Whether a variant was trained with each of the study's seeds."""
        return len(self.of(variant)) == len(self.study.seeds)

    def _best(self, variants: Sequence[str], seed: int) -> Outcome | None:
        there = [self._of[variant, seed] for variant in variants if (variant, seed) in self._of]
        return max(there, key=lambda one: one.result.val) if len(there) == len(variants) else None

    def paired_seeds(self, variant: str) -> list[int]:
        """Returns the seeds that a variant and the reference both have."""
        both = (variant, self.study.reference)
        return [seed for seed in self.study.seeds if all((name, seed) in self._of for name in both)]

    def compared(self, variant: str) -> Compared | None:
        """Returns the reference minus a variant, over the seeds that both have; None if there are none."""
        seeds = self.paired_seeds(variant)
        if not seeds:
            return None
        ours, theirs = ([self._of[name, seed] for seed in seeds] for name in (self.study.reference, variant))
        by_seed = paired_difference([one.result.test for one in ours], [one.result.test for one in theirs])
        if not all(one.right for one in (*ours, *theirs)):
            return Compared(by_seed, None)
        clips = list(ours[0].right)
        both = list(zip(ours, theirs, strict=True))
        values = [statistics.fmean(a.right[clip] - b.right[clip] for a, b in both) for clip in clips]
        return Compared(by_seed, grouped_interval(values, [self.groups.get(clip, clip) for clip in clips]))

    @cached_property
    def groups(self) -> dict[str, str]:
        """The group of each test clip, by the clip's name in the file of scores; {} where the data set has none."""
        return dict(_groups(self.outcomes[0].trial.config)) if self.outcomes else {}

    def pairs(self, variant: str) -> list[tuple[float, float]]:
        """Returns for each of the data set's pairs, over all seeds: the share of its clips that are right, and the
        share that is taken for the other class of the pair."""
        answered = [one for one in self.of(variant) if one.clips is not None]
        found = []
        for pair in self.study.pairs.get(self.outcomes[0].trial.data_set, []):
            counts = [_pair_counts(one, pair) for one in answered]
            clips = sum(count[0] for count in counts) or 1
            found.append((sum(count[1] for count in counts) / clips, sum(count[2] for count in counts) / clips))
        return found


def _pair_counts(outcome: Outcome, pair: Sequence[str]) -> tuple[int, int, int]:
    """Returns how many clips of a pair of classes there are, are right, and are taken for each other."""
    first, second = (outcome.clips.classes.index(name) for name in pair)
    both = zip(outcome.clips.labels, outcome.result.answers, strict=True)
    of_pair = [(label, answer) for label, answer in both if label in (first, second)]
    other = {(first, second), (second, first)}
    return len(of_pair), sum(label == answer for label, answer in of_pair), sum(one in other for one in of_pair)


def _groups(config: Config) -> Iterator[tuple[str, str]]:
    try:
        known = read_groups(Path(config.data.root or ".") / GROUPS)
        manifests = read_manifests(config.data)
    except (OSError, SoftPool3dError):
        return
    clips = manifests.get("test", manifests["val"]).clips
    for name, clip in zip(video_names(clips), clips, strict=True):
        path = os.path.normpath(clip.path)
        if path in known:
            yield name, known[path]


def findings(
    study: Study, trials: Sequence[Trial], results: Results, failed: Collection[str] = ()
) -> dict[tuple[str, str], Findings]:
    """Returns the finished runs by data set and network, without those whose folders are in `failed`."""
    places = dict.fromkeys((trial.data_set, trial.network) for trial in trials)
    found: dict[tuple[str, str], list[Outcome]] = {place: [] for place in places}
    for trial in trials:
        result = results.runs.get(trial.config.name)
        if result is not None and str(trial.folder) not in failed and not results.problem(trial):
            clips = None if result.answers is None else results.clips.get(trial.data_set)
            found[trial.data_set, trial.network].append(Outcome(trial, result, clips))
    return {place: Findings(study, outcomes) for place, outcomes in found.items()}
