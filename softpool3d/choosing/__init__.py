"""Chooses the settings of a training from the videos and the machine, for `softpool3d train videos/`.

look.py       what the videos are like, and what the machine has
start.py      the weights that it starts from
recipe.py     the settings, each with its reason
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from softpool3d.choosing.look import Machine, Videos, look_at_machine, look_at_videos
from softpool3d.choosing.recipe import Choice, asked_for, choose, configure
from softpool3d.choosing.start import start_for
from softpool3d.config import Config
from softpool3d.config_file import make_config
from softpool3d.datasets import read_manifests
from softpool3d.datasets.overview import check_learnable
from softpool3d.errors import UsageError


@dataclass(frozen=True)
class Chosen:
    """A configuration, and what it was chosen for: text for people."""

    config: Config
    videos: Videos
    machine: Machine
    choices: tuple[Choice, ...]

    def __str__(self) -> str:
        return "\n".join([str(self.videos), str(self.machine), *(f"- {choice}" for choice in self.choices)])


def choose_for(fixed: Sequence[str], overrides: Sequence[str]) -> Chosen:
    """Returns settings for a training on a data set.

    Args:
        fixed: settings that name the data set, as `key.path=value`.
        overrides: the user's own settings, in the same form; the others are chosen to go with them.

    Raises:
        UsageError: if the data set cannot be read or learned from, a setting is wrong, or weights are not there.
    """
    data = make_config({}, {}, [*fixed, *(o for o in overrides if o.startswith(("data.", "device=")))])
    if data.data.of_pictures:
        raise UsageError("settings are chosen for videos; for pictures: --cfg imagenet/resnet18_softpool data.root=...")
    machine, asked = look_at_machine(data.device), asked_for(overrides)
    start = start_for(machine, asked)
    manifests = read_manifests(data.data)
    check_learnable(manifests)
    videos = look_at_videos(manifests, data.data)
    choices = choose(videos, machine, start, asked)
    return Chosen(configure(choices, fixed, overrides), videos, machine, tuple(choices))
