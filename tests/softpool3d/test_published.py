"""Files that others published are recognised by their layers, and classify as the original network does."""

import csv
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from originals import original, pyslowfast_state, run_original
from torch import nn
from torchvision.models.video import R3D_18_Weights
from videos import write_numbered

from softpool3d import Classifier
from softpool3d.config_file import load_config, override_config
from softpool3d.errors import UsageError
from softpool3d.evaluation import tester
from softpool3d.evaluation.subject import subject_of_weights
from softpool3d.inference import exporter
from softpool3d.inference.exporter import export_weights
from softpool3d.models import create
from softpool3d.models.layouts import layout_of
from softpool3d.models.recognise import count_classes, recognise
from softpool3d.models.registry import SPECS
from softpool3d.models.weights import Source
from softpool3d.runs.published import open_weights, settings_of

KINETICS = tuple(R3D_18_Weights.DEFAULT.meta["categories"])


def save(folder, content, name):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def module(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


# network, classes, what the file is called and holds, and the published clips: frames, rate, short side, crop
FILES = [
    ("r3d_18", 400, "r3d_18-b3b3357e.pth", dict, (16, 1, 128, 112)),
    ("x3d_xs", 400, "X3D_XS.pyth", lambda s: {"model_state": s}, (4, 12, 182, 182)),
    ("x3d_s", 400, "x3d_s.pyth", lambda s: {"epoch": 1, "model_state": pyslowfast_state(s)}, (13, 6, 182, 182)),
    ("slowfast_r50", 400, "anything.pth", lambda s: {"model_state": s}, (32, 2, 256, 256)),
    ("r3d_50", 700, "r3d50_K_200ep.pth", lambda s: {"arch": "resnet-50", "state_dict": module(s)}, (16, 1, 112, 112)),
]


@pytest.mark.parametrize(("name", "classes", "file", "wrap", "published"), FILES, ids=[row[2] for row in FILES])
def test_a_public_file_classifies_as_the_original_network(name, classes, file, wrap, published, tmp_path):
    theirs = original(name, classes, frames=published[0], crop=64)
    for path in [path for path, module in theirs.named_modules() if isinstance(module, nn.AvgPool3d)]:
        if name == "slowfast_r50":  # made for the published size; the clip here is small, so that the test is quick
            theirs.set_submodule(path, nn.AdaptiveAvgPool3d(1))
    with torch.no_grad():
        list(theirs.state_dict().values())[-2].mul_(8)  # the classifier: or all classes are as likely
    classifier = Classifier(save(tmp_path, wrap(theirs.state_dict()), file), "cpu", num_clips=1, num_crops=1)
    data = classifier.config.data
    assert (data.num_frames, data.sampling_rate, data.short_side, data.test_crop_size or data.crop_size) == published
    assert classifier.classes == (KINETICS if classes == 400 else tuple(map(str, range(700))))
    assert f"taken for {name}, by its layers" in classifier.note
    clip = torch.randint(0, 256, (1, 3, min(published[0], 16), 8, 8), dtype=torch.uint8)
    clip = clip.repeat_interleave(8, 3).repeat_interleave(8, 4)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1, 1) for value in (data.mean, data.std))
    with torch.no_grad():
        wanted = run_original(theirs, name, (clip.float() / 255 - mean) / std).softmax(1)[0]
    got = classifier.average(classifier.predictor(clip))
    assert wanted.max() > 2 / classes
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", SPECS)
def test_every_network_is_recognised_by_its_layers(name):
    with torch.device("meta"):
        source = Source(create(name, 5).state_dict(), "a.pth", layout_of(create(name, 5).state_dict())[0])
    assert recognise(source)[0] == (("x3d_xs", "x3d_s", "x3d_m") if name in ("x3d_xs", "x3d_s", "x3d_m") else (name,))
    assert count_classes(name, source) == 5


def test_a_file_of_torchvision_is_used_as_the_name_of_its_network(tmp_path, monkeypatch):
    state = original("r3d_18", 400).state_dict()
    monkeypatch.delenv("SOFTPOOL3D_OFFLINE")
    monkeypatch.setattr(R3D_18_Weights, "get_state_dict", lambda self, **_: state)
    named, file = open_weights("r3d_18:kinetics400"), open_weights(save(tmp_path, state, "mine.pth"))
    assert named.config == file.config and named.classes == file.classes == KINETICS
    assert all(torch.equal(tensor, file.state[key]) for key, tensor in named.state.items())


@pytest.mark.parametrize(
    ("name", "file", "frames", "rate", "crop"),
    [
        ("slow_r50", "SLOW_8x8_R50.pyth", 8, 8, 256),
        ("slow_r50", "SLOW_4x16_R50.pyth", 4, 16, 256),
        ("c2d_r50", "C2D_8x8_R50.pyth", 8, 8, 256),
        ("i3d_r50", "I3D_8x8_R50.pyth", 8, 8, 256),
        ("r2plus1d_r50", "R2PLUS1D_16x4_R50.pyth", 16, 4, 256),
        ("csn_r101", "CSN_32x2_R101.pyth", 32, 2, 256),
        ("x3d_m", "X3D_M.pyth", 16, 5, 256),
        ("x3d_l", "X3D_L.pyth", 16, 5, 356),
        ("s3d", "s3d-d76dad2f.pth", 128, 1, 224),
        ("mvit_v2_s", "mvit_v2_s-ae3be167.pth", 16, 1, 224),
        ("r3d_101", "r3d101_K_200ep.pth", 16, 1, 112),
    ],
)
def test_settings_are_the_published_ones(name, file, frames, rate, crop):
    """Frames and rate as PySlowFast's file names have them; nothing of our own: no SoftPool, no bf16."""
    config, _ = settings_of(name, "", Path(file), "by its layers", 400)
    assert (config.model.name, config.model.pool.where, config.train.precision) == (name, [], "fp32")
    data = config.data
    assert (data.num_frames, data.sampling_rate, data.test_crop_size or data.crop_size) == (frames, rate, crop)


def test_where_layers_do_not_tell_the_sentence_says_what_to_add(tmp_path):
    state = original("x3d_m", 4).state_dict()
    path = save(tmp_path, state, "best.pyth")
    with pytest.raises(UsageError, match=r"best.pyth: x3d_xs, x3d_s, x3d_m have the same layers.*--weights x3d_xs:/"):
        open_weights(path)
    loaded = open_weights(f"x3d_m:{path}")
    assert loaded.config.model.name == "x3d_m" and "taken for x3d_m, as it was named" in loaded.note
    with pytest.raises(UsageError, match="holds another network than r3d_18: it lacks stem.0.weight"):
        open_weights(f"r3d_18:{path}")
    with pytest.raises(UsageError, match="unknown network 'x3d_k'; did you mean"):
        open_weights(f"x3d_k:{path}")
    with pytest.raises(UsageError, match="holds another network than resnet18: it lacks conv1.weight"):
        open_weights(f"resnet18:{path}")
    path = save(tmp_path, original("slow_r50", 4).state_dict(), "slow.pyth")
    with pytest.raises(UsageError, match="8 frames, every 8th, and of 4, every 16th.*put 8x8 or 4x16 into"):
        open_weights(path)
    assert open_weights(f"slow_r50:{path}").config.data.num_frames == 8


def test_other_networks_are_told_from_the_nearest_one(tmp_path):
    state = original("mc3_18", 4).state_dict()
    path = save(tmp_path, {**state, "layer4.2.conv1.0.weight": torch.zeros(1)}, "deeper.pth")
    with pytest.raises(
        UsageError, match="no network here; nearest is mc3_18, but it has layer4.2.conv1.0.weight, which"
    ):
        open_weights(path)
    flow = {**state, "stem.0.weight": state["stem.0.weight"][:, :2]}
    with pytest.raises(UsageError, match=r"nearest is mc3_18, but stem.0.weight is \(64, 2, .*\) there and \(64, 3"):
        open_weights(save(tmp_path, flow, "flow.pth"))
    with pytest.raises(UsageError, match="no network here .there are: r3d_18, "):
        open_weights(save(tmp_path, {"a.weight": torch.zeros(3)}, "a.pth"))
    body = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    with pytest.raises(UsageError, match="leaves fc.weight of mc3_18 without a value.*model.weights"):
        open_weights(save(tmp_path, body, "body.pth"))


def test_names_of_classes(tmp_path):
    path = save(tmp_path, original("mc3_18", 3).state_dict(), "mine.pth")
    loaded = open_weights(path)
    assert loaded.classes == ("0", "1", "2") and not loaded.named
    assert "3 without names: 0 to 2; a classes.txt with 3 lines beside the file would name them" in loaded.note
    (tmp_path / "classes.txt").write_text("run\njump\nGrüße\n", encoding="utf-8")
    loaded = open_weights(path)
    assert loaded.classes == ("run", "jump", "Grüße") and loaded.named
    (tmp_path / "classes.txt").write_text("run\njump\n")
    loaded = open_weights(path)
    assert loaded.classes == ("0", "1", "2") and "classes.txt has 2)" in loaded.note


def test_hara_s_files_of_2018_have_pixels_of_another_scale():
    old, told = settings_of("r3d_34", "hara", Path("resnet-34-kinetics.pth"), "by its layers", 400)
    assert np.multiply(old.data.std, 255) == pytest.approx([1, 1, 1])
    assert np.multiply(old.data.mean, 255) == pytest.approx([114.7748, 107.7354, 99.4750], rel=1e-4)
    assert "Hara's files of 2018, by the name of this one" in told
    new, told = settings_of("r3d_34", "hara", Path("mine.pth"), "by its layers", 400)
    assert new.data.std == load_config("kinetics400/r3d_50").data.std and "if it is one of Hara's of 2018" in told


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A public file of three classes, its names beside it, and a folder of videos of such classes."""
    folder = tmp_path_factory.mktemp("three")
    path = save(folder / "weights", {"state_dict": module(original("mc3_18", 3).state_dict())}, "mine.pth")
    for split in ("train", "val", "test"):
        for name in ("a", "b", "c"):
            (folder / "videos" / split / name).mkdir(parents=True)
            write_numbered(folder / "videos" / split / name / "clip.mp4", 8)
    return path, folder / "videos"


def test_test_uses_a_public_file(three, tmp_path):
    path, videos = three
    settings = [f"data.root={videos}", "data.dataset=folder", "data.num_frames=4", "test.num_clips=1"]
    subject = subject_of_weights(str(path), settings)
    assert "taken for mc3_18, by its layers" in subject.note
    result = tester.test(subject, out=tmp_path / "out")
    with open(tmp_path / "out" / "per_class.csv", newline="", encoding="utf-8-sig") as file:
        assert result["videos"] == 3 and [row["name"] for row in csv.DictReader(file)] == ["a", "b", "c"]
    other = tmp_path / "two"
    for split in ("train", "val", "test"):
        shutil.copytree(videos / split, other / split, ignore=shutil.ignore_patterns("c"))
    with pytest.raises(UsageError, match="mine.pth tells 3 classes apart, and the data set has 2"):
        tester.test(subject_of_weights(path, [f"data.root={other}", *settings[1:]]), out=tmp_path / "none")


def test_export_writes_a_public_file(three, tmp_path, monkeypatch):
    def small(weights):  # of the published size this takes minutes
        opened = open_weights(weights)
        return replace(opened, config=override_config(opened.config, ["data.num_frames=4", "data.crop_size=32"]))

    monkeypatch.setattr(exporter, "open_weights", small)
    written = export_weights(three[0], "torchexport", tmp_path / "model.pt2", plain=True)
    assert written.difference < 1e-4 and "taken for mc3_18" in written.note
    exported = Classifier(tmp_path / "model.pt2", "cpu", trust=True)
    assert exported.classes == ("0", "1", "2") and exported.config.model.name == "mc3_18"


def test_commands_say_what_they_took_the_file_for(three, tmp_path, run):
    path, videos = three
    clip = videos / "test" / "a" / "clip.mp4"
    result = run("classify", clip, "--weights", path, "--views", 1, "--device", "cpu", "--jobs", 0, "--json")
    assert result.returncode == 0, result.stderr
    assert "taken for mc3_18, by its layers" in result.stderr and '"label"' in result.stdout
    assert "taken for" not in result.stdout
    out = tmp_path / "maps.png"
    result = run("explain", clip, "--weights", f"mc3_18:{path}", "--method", "features", "--out", out)
    assert result.returncode == 0 and out.is_file(), result.stderr
    assert "taken for mc3_18, as it was named" in result.stderr
    assert os.listdir(tmp_path) == ["maps.png"]
