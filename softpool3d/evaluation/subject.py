"""What is tested: a network whose weights come from anywhere, and the split whose labels are its classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from softpool3d.config import Config
from softpool3d.config_file import load_config, override_config
from softpool3d.datasets import read_manifests
from softpool3d.datasets.manifest import Manifest
from softpool3d.datasets.overview import few
from softpool3d.errors import UsageError
from softpool3d.evaluation.losses import choose_loss
from softpool3d.idle_keys import idle_keys
from softpool3d.models import build_model, load_pretrained
from softpool3d.models.weights import Figures
from softpool3d.runs.checkpoint import load_into
from softpool3d.runs.pretrained import adopt_statistics, name_classes
from softpool3d.runs.published import open_weights

# what may differ from the weights' own configuration; its other keys say what the network is and how it was trained
OVERRIDES = ("data.", "test.", "device", "train.precision", "train.memory_format")
_WITH_A_FILE = (*OVERRIDES, "model.", "optim.loss")  # a configuration describes the network too
_OF_TRAINING = ("data.augment", "data.flip", "data.no_flip_classes", "data.jitter")


@dataclass
class Subject:
    """A network to test: its weights loaded, on the CPU. classes: None where the data set has to name them."""

    model: nn.Module
    config: Config
    classes: tuple[str, ...] | None
    weights: Path | str
    note: str = ""
    figures: Figures | None = None  # that were published for the weights


def subject_of_weights(path: str | Path, overrides: list[str]) -> Subject:
    """Returns the network of weights of any origin (published.py).

    Raises:
        UsageError: if the file cannot be used, or an override is not among `OVERRIDES`.
    """
    _check(overrides, "the weights decide what the network is", OVERRIDES)
    loaded = open_weights(path)
    model = build_model(loaded.config, len(loaded.classes))
    load_into(model, loaded.state, loaded.origin)
    config, classes = override_config(loaded.config, overrides), loaded.classes if loaded.named else None
    note = "\n".join(filter(None, [loaded.note, *_idle(config, overrides)]))
    return Subject(model, config, classes, loaded.origin, note, loaded.figures)


def subject_of_config(cfg: str | Path, overrides: list[str]) -> Subject:
    """Returns the network of a configuration with public weights in `model.weights`.

    Raises:
        UsageError: if there are none, or they do not fill the network with as many classes as the data set has.
    """
    _check(overrides, "a test learns nothing", _WITH_A_FILE)
    config = load_config(cfg, overrides)
    if not config.model.weights:
        raise UsageError("--cfg: testing needs weights; add model.weights=FILE, or give --weights of a run")
    train = read_manifests(config.data)["train"]
    config = choose_loss(config, train)
    model = build_model(config, len(train.classes))
    report = load_pretrained(model, config)
    if report.missing:
        raise UsageError(
            f"model.weights: {report.origin} leaves {report.missing[0]} without a value, and a network that is not "
            "trained cannot be tested; is it a file for another data set?"
        )
    config, adopted = adopt_statistics(config, report)
    note = "\n".join(filter(None, [str(report), adopted, *_idle(config, overrides)]))
    return Subject(model, config, report.classes or None, report.origin, note, report.figures)


def _check(overrides: list[str], why: str, may_be_set: tuple[str, ...]) -> None:
    """Raises UsageError for an override that a test has no use for."""
    for override in overrides:
        if not override.startswith(may_be_set):
            can = ", ".join(key.rstrip(".") for key in may_be_set)
            raise UsageError(f"{why}: {override} cannot be changed (these can: {can})")
        if override.startswith(_OF_TRAINING):
            raise UsageError(f"{override}: that is done to training's clips alone, and a test has none")


def _idle(config: Config, overrides: list[str]) -> list[str]:
    """Returns a sentence for each override that has no effect."""
    keys = {override.partition("=")[0] for override in overrides}
    return [sentence for sentence in idle_keys(config) if sentence.partition("=")[0] in keys]


def pick_split(manifests: dict[str, Manifest], split: str | None, subject: Subject) -> tuple[str, Manifest]:
    """Returns the name and the manifest of the split to test; its labels are indices of the weights' classes.

    Raises:
        UsageError: if there is no such split, or its classes do not fit those of the weights.
    """
    split = split or ("test" if "test" in manifests else "val")
    if split not in manifests:
        raise UsageError(f"--split {split}: the data set has no such split (it has {', '.join(manifests)})")
    if subject.classes is None:
        outputs = len(subject.model.get_parameter(f"{subject.model.logits_layer()}.weight"))
        if len(manifests[split].classes) != outputs:
            raise UsageError(
                f"{subject.weights} tells {outputs} classes apart, and the data set has "
                f"{len(manifests[split].classes)}; set data.dataset and data.root to the data set that it was trained "
                "on"
            )
        return split, manifests[split]
    manifest = name_classes(manifests, subject.classes)[split]
    if manifest.classes == subject.classes:
        return split, manifest
    numbers = {name: number for number, name in enumerate(subject.classes)}
    unknown = [name for name in manifest.classes if name not in numbers]
    if unknown:
        raise UsageError(
            f"{subject.weights} knows {len(subject.classes)} classes ({few(subject.classes)}), and {len(unknown)} of "
            f"the data set's {len(manifest.classes)} are not among them ({few(unknown)}); set data.dataset and "
            "data.root to the data set that it was trained on, or train with model.weights=... for other classes"
        )

    def renumbered(label: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if manifest.multi_label:
            return tuple(numbers[manifest.classes[one]] for one in label)
        return numbers[manifest.classes[label]]

    clips = [replace(clip, label=renumbered(clip.label)) for clip in manifest.clips]
    return split, replace(manifest, classes=subject.classes, clips=clips)
