"""Combines several networks' scores of the same videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from softpool3d.errors import UsageError
from softpool3d.evaluation.scores import Scores, VideoScores

Mean = Literal["arithmetic", "geometric"]


def combine(
    members: Sequence[VideoScores],
    names: Sequence[str],
    weights: Sequence[float] | None = None,
    mean: Mean = "arithmetic",
    common: bool = False,
) -> VideoScores:
    """Returns the weighted mean of the members' probabilities; videos and classes are matched by name.

    Args:
        names: of the members, for messages.
        weights: one for each member, not negative; equal if not given.
        mean: "geometric" is the mean of the logarithms, normalised where a video has one label (a product of experts).
        common: leave out videos that not all of them have.

    Raises:
        UsageError: naming the members that have other classes, another split, other labels, or, unless `common`, other
            videos.
    """
    weights = _checked(weights, len(members))
    first = members[0]
    for member, name in zip(members[1:], names[1:], strict=True):
        _check_alike(first, member, names[0], name)
    videos = list(first.videos)
    for member, name in zip(members[1:], names[1:], strict=True):
        have = set(member.videos)
        lacking = [video for video in videos if video not in have]
        extra = have.difference(first.videos)
        if (lacking or extra) and not common:
            where, what = (name, lacking) if lacking else (names[0], sorted(extra))
            raise UsageError(
                f"{where} has no scores of {len(what)} videos that the others have (the first: {what[0]}); "
                "--common leaves such videos out"
            )
        videos = [video for video in videos if video in have]
    if not videos:
        raise UsageError(f"there is no video that {', '.join(names)} have in common")
    aligned = [_aligned(member, videos, first.classes) for member in members]
    for other, name in zip(aligned[1:], names[1:], strict=True):
        wrong = (aligned[0].label != other.label).reshape(len(videos), -1).any(1)
        if wrong.any():
            video = videos[int(wrong.int().argmax())]
            raise UsageError(f"{names[0]} and {name} have another label for {int(wrong.sum())} videos (one is {video})")
    stacked = torch.stack([scores.probabilities.double() for scores in aligned])
    share = torch.tensor(weights, dtype=torch.float64).view(-1, 1, 1)
    if mean == "arithmetic":
        probabilities = (share * stacked).sum(0)
    else:
        probabilities = (share * stacked.clamp_min(1e-12).log()).sum(0).exp()
        if not aligned[0].multi_label:
            probabilities = probabilities / probabilities.sum(1, keepdim=True)
    about = {
        "members": [{"scores": name, "weight": weight} for name, weight in zip(names, weights, strict=True)],
        "mean": mean,
        **{key: first.about[key] for key in ("dataset", "split") if key in first.about},
    }
    scores = Scores(probabilities.float(), aligned[0].label, torch.arange(len(videos)))
    return VideoScores(scores, tuple(videos), first.classes, about)


def _checked(weights: Sequence[float] | None, count: int) -> list[float]:
    """Returns weights that sum to 1."""
    if weights is None:
        return [1 / count] * count
    if len(weights) != count:
        raise UsageError(f"--weights: {len(weights)} weights for {count} files of scores; give one each, as in 2,1")
    if min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise UsageError(f"--weights {','.join(f'{w:g}' for w in weights)}: they are 0 or more, and not all 0")
    return [weight / sum(weights) for weight in weights]


def _check_alike(first: VideoScores, other: VideoScores, name: str, other_name: str) -> None:
    odd = sorted(set(first.classes) ^ set(other.classes))
    if odd:
        which = name if odd[0] in first.classes else other_name
        raise UsageError(f"{name} and {other_name} are about other classes: {odd[0]!r} is in {which} alone")
    if first.scores.multi_label != other.scores.multi_label:
        which = name if first.scores.multi_label else other_name
        raise UsageError(f"{name} and {other_name} do not fit together: {which} has several labels a video")
    for key in ("dataset", "split"):
        ours, theirs = first.about.get(key), other.about.get(key)
        if None not in (ours, theirs) and ours != theirs:
            raise UsageError(f"{name} and {other_name} are about another {key}: {ours} and {theirs}")


def _aligned(member: VideoScores, videos: list[str], classes: tuple[str, ...]) -> Scores:
    """Returns a member's scores of `videos`, in that order, with the columns of `classes`."""
    at = {video: number for number, video in enumerate(member.videos)}
    rows = torch.tensor([at[video] for video in videos])
    columns = torch.tensor([member.classes.index(name) for name in classes])
    label = member.scores.label[rows]
    label = label[:, columns] if member.scores.multi_label else columns.argsort()[label]
    return Scores(member.scores.probabilities[rows][:, columns], label, rows)
