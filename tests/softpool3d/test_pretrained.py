"""What public weights bring along: mean and std of their clips, names of their classes; into training and its files."""

import pytest
import torch
from videos import write_numbered

from softpool3d.config import Config
from softpool3d.config_file import load_config
from softpool3d.datasets.manifest import Clip, Manifest
from softpool3d.inference.classifier import Classifier
from softpool3d.models import build_model, create
from softpool3d.models.weights import Preprocessing, WeightsReport, torchvision_weights
from softpool3d.runs.checkpoint import load_weights, save_weights
from softpool3d.runs.pretrained import adopt_statistics, name_classes
from softpool3d.runs.run import Run
from softpool3d.training import trainer

LOADED = WeightsReport(
    "file", "torchvision", 1, preprocessing=Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 128, 112)
)


def test_statistics_are_the_weights_where_they_are_not_set():
    config, line = adopt_statistics(Config(), LOADED)
    assert (config.data.mean, config.data.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert line == "  taken from the weights: data.mean=[0.1, 0.2, 0.3], data.std=[0.4, 0.5, 0.6]"
    config, line = adopt_statistics(Config(data={"mean": [0.5, 0.5, 0.5]}), LOADED)
    assert (config.data.mean, config.data.std) == ([0.5, 0.5, 0.5], [0.4, 0.5, 0.6])
    assert "data.mean=[0.5, 0.5, 0.5] stays" in line and "taken from the weights: data.std=" in line
    assert adopt_statistics(Config(), WeightsReport("file", "hara", 1)) == (Config(), "")


def test_names_of_classes_take_the_place_of_bare_numbers():
    names = ("run", "walk")
    numbered = {"train": Manifest(("0", "1"), (Clip("a.mp4", 1),))}
    assert name_classes(numbered, names)["train"] == Manifest(names, numbered["train"].clips)
    for classes in (("jump", "sit"), ("0", "1", "2"), ("1", "0")):
        other = {"train": Manifest(classes, ())}
        assert name_classes(other, names) is other
    assert name_classes(numbered, ()) is numbered


@pytest.fixture
def published(monkeypatch):
    """torchvision's r3d_18 by name, without the network: narrow, of two classes."""
    weights = torchvision_weights("r3d_18")
    state = create("r3d_18", 2, width=4).state_dict()
    monkeypatch.delenv("SOFTPOOL3D_OFFLINE")
    monkeypatch.setattr(type(weights), "get_state_dict", lambda self, **_: state)
    monkeypatch.setitem(weights.meta, "categories", ["run", "walk"])
    return weights.transforms()


def test_a_run_from_public_weights(tmp_path, monkeypatch, published):
    """Its files hold the weights' mean, std and class names, so that classifying and resuming know them."""
    for split, label in (("train", "0"), ("train", "1"), ("val", "0"), ("val", "1")):
        folder = tmp_path / "videos" / split / label
        folder.mkdir(parents=True)
        write_numbered(folder / "a.mp4", 8)
    settings = ["data.dataset=folder", f"data.root={tmp_path / 'videos'}", "data.num_workers=0", "train.batch_size=2"]
    settings += ["model.name=r3d_18", "model.weights=r3d_18", "model.width=4", "model.pool.kind=max", "train.epochs=1"]
    settings += ["optim.warmup_epochs=0", "test.num_clips=1", f"output={tmp_path / 'runs'}"]
    config = load_config("r3d_softpool", settings)
    seen = []
    normalize = trainer.normalize
    monkeypatch.setattr(trainer, "normalize", lambda video, *by: seen.append(by) or normalize(video, *by))
    folder = trainer.train(config)["folder"]
    mean, std = list(published.mean), list(published.std)
    assert seen == [(mean, std)]
    weights = load_weights(f"{folder}/best.safetensors")
    assert (weights.config.data.mean, weights.config.data.std) == (mean, std)
    assert weights.classes == ("run", "walk") == Classifier(f"{folder}/best.safetensors").classes
    run, resumed = Run.open(folder)
    assert resumed.data.mean == mean
    trainer.train(resumed, run)


def test_a_run_s_weights_bring_theirs(tmp_path):
    config = Config(model={"width": 4}, data={"mean": [0.1, 0.2, 0.3]})
    path = tmp_path / "best.safetensors"
    save_weights(path, build_model(config, 2), config, ("run", "walk"))
    loaded = create("r3d_18", 2, width=4, weights=path, pool="soft").loaded_weights
    assert loaded.classes == ("run", "walk") and loaded.preprocessing.mean == (0.1, 0.2, 0.3)


def test_torchvision_s_files_are_known_by_their_names(tmp_path):
    path = tmp_path / "r3d_18-b3b3357e.pth"
    torch.save(create("r3d_18", 2, width=4).state_dict(), path)
    loaded = create("r3d_18", 2, width=4, weights=path).loaded_weights
    assert "abseiling" in loaded.classes and loaded.preprocessing.crop_size == 112
