"""What public weights bring along beside their values: the mean and std of their clips, the names of their classes."""

from __future__ import annotations

import re
from dataclasses import replace

from softpool3d.config import Config
from softpool3d.datasets.manifest import Manifest
from softpool3d.models.weights import WeightsReport

_WORDNET = re.compile(r"n\d{8}")
_ADOPTED = ("mean", "std")  # of DataConfig


def adopt_statistics(config: Config, loaded: WeightsReport) -> tuple[Config, str]:
    """Returns `config` with the weights' data.mean and data.std where the user set none, and lines that say so.

    A value is set if the YAML file, its base, an override or the constructor gave it.
    """
    known = loaded.preprocessing
    if known is None:
        return config, ""
    lines, adopted = [], {}
    for key in _ADOPTED:
        ours, theirs = getattr(config.data, key), list(getattr(known, key))
        if key not in config.data.model_fields_set:
            adopted[key] = theirs
        elif ours != theirs:
            lines.append(f"  data.{key}={ours} stays, because it is set")
    if adopted:
        lines.append(f"  taken from the weights: {', '.join(f'data.{key}={value}' for key, value in adopted.items())}")
    data = config.data.model_copy(update=adopted)
    return config.model_copy(update={"data": data}), "\n".join(lines)


def left_open(config: Config) -> list[str]:
    """Returns the keys that a run fills in by itself, from its weights or from its data (`choose_loss`)."""
    keys = ["optim.loss"] if config.optim.loss is None else []
    if config.model.weights is not None:
        keys += [f"data.{key}" for key in _ADOPTED if key not in config.data.model_fields_set]
    return keys


def name_classes(manifests: dict[str, Manifest], names: tuple[str, ...]) -> dict[str, Manifest]:
    """Returns manifests with `names` as classes if their own are as many bare numbers 0, 1, ...; else unchanged.

    ImageNet's class folders are numbers of WordNet (n01440764, ...), in whose order the names of its 1000 classes are.
    """
    classes = manifests["train"].classes
    numbered = classes == tuple(map(str, range(len(names))))
    of_wordnet = len(classes) == len(names) == 1000 and all(_WORDNET.fullmatch(name) for name in classes)
    if not (numbered or of_wordnet and list(classes) == sorted(classes)):
        return manifests
    return {split: replace(manifest, classes=names) for split, manifest in manifests.items()}
