"""Pictures from end to end: a run on class folders, tested, and asked about files and folders by every verb."""

import json

import pytest
import torch
from pictures import COLOURS, coloured, write_pictures
from PIL import Image
from videos import write_numbered

from softpool3d import Classifier
from softpool3d.config_file import load_config
from softpool3d.runs.run import Run
from softpool3d.training.trainer import train
from softpool3d.visual.gradcam import grad_cam

SMALL = [
    *("model.name=resnet18", "model.width=8", "model.pool.where=[downsample]"),
    *("data.dataset=pictures", "data.num_frames=1", "data.sampling_rate=1", "data.num_workers=0"),
    *("data.train_short_side=[32,36]", "data.short_side=32", "data.crop_size=32"),
    *("data.augment.color_jitter=[0.1,0.1,0.1,0.0]", "train.mixup=0.1"),
    *("train.epochs=4", "train.batch_size=6", "optim.warmup_epochs=0", "optim.lr=0.02", "test.num_clips=1"),
]


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run that learned three colours, its summary, and the pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    pictures = write_pictures(folder / "data", train=12, val=4)
    config = load_config("r3d_softpool", [*SMALL, f"data.root={pictures}", f"output={folder}", "name=colours"])
    return folder / "colours", train(config), pictures


def test_a_network_of_pictures_learns_and_is_tested(learned, run, tmp_path):
    folder, summary, _ = learned
    assert summary["test_top1"] > 0.8
    result = run("test", "--weights", folder, "--out", tmp_path / "out", "device=cpu")
    assert result.returncode == 0 and "12 val videos in 1 view" in result.stdout, result.stderr
    assert json.loads((tmp_path / "out" / "results.json").read_text())["top1"] == pytest.approx(summary["test_top1"])


def test_a_run_on_pictures_goes_on_where_it_was(learned, tmp_path):
    """Resuming takes the loop of clips: state and all."""
    _, _, pictures = learned
    settings = [*SMALL, f"data.root={pictures}", f"output={tmp_path}", "train.ema=0.5", "train.precise_norm=1"]
    train(load_config("r3d_softpool", [*settings, "name=short", "train.epochs=1"]))
    resumed, config = Run.open(tmp_path / "short")
    config = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 2})})
    train(config, resumed, force_resume=True)
    assert len((tmp_path / "short" / "metrics.csv").read_text().splitlines()) == 1 + 2


def test_pictures_are_labelled_file_by_file_and_folder_by_folder(learned, run, tmp_path):
    folder, _, pictures = learned
    write_pictures(tmp_path, new=3)
    asked = ("--weights", folder, "--device", "cpu", "--jobs", 0, "--json")
    result = run("classify", tmp_path / "new", *asked)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0 and len(found) == 9, result.stderr
    right = [one["label"] == one["file"].split("/")[-2] for one in found]
    assert sum(right) >= 7
    one = run("classify", tmp_path / "new" / "red" / "0.jpg", "--weights", folder, "--device", "cpu")
    assert one.returncode == 0 and all(colour in one.stdout for colour in COLOURS)


def test_a_network_of_pictures_labels_videos_by_their_frames(learned, run, tmp_path):
    """One in the middle, or as many as --views says."""
    clip = write_numbered(tmp_path / "clip.mp4", 20)
    asked = ("--weights", learned[0], "--device", "cpu", "--json")
    for views in (1, 4):
        result = run("classify", clip, *asked, "--views", views)
        assert result.returncode == 0 and json.loads(result.stdout)["views"] == views, result.stderr


def test_networks_of_clips_say_that_a_picture_is_none(run, tmp_path):
    coloured("red", 0).save(tmp_path / "photo.jpg")
    result = run("classify", tmp_path / "photo.jpg", "--device", "cpu")
    assert result.returncode == 1
    assert "photo.jpg: it is a single picture, and clips of 8 frames are wanted" in result.stderr
    result = run("classify", tmp_path / "photo.jpg", "--timeline", "--device", "cpu")
    assert result.returncode == 2 and "--timeline is of videos, and" in result.stderr


def test_in_python_a_pil_image_is_enough(learned):
    classifier = Classifier(learned[0], "cpu")
    picture = coloured("green", 7)
    result = classifier(picture)
    assert result.label == "green" and result.views == 1 and len(result) == 3
    assert classifier([picture]).score == pytest.approx(result.score)


@torch.no_grad()
def test_a_frame_and_a_picture_are_the_same_to_the_network(learned):
    classifier = Classifier(learned[0], "cpu")
    clip = torch.randn(2, 3, 1, 32, 32)
    assert torch.equal(classifier.model(clip), classifier.model(clip[:, :, 0]))


def test_prepare_writes_a_manifest_of_pictures_and_makes_no_copies(learned, run, tmp_path):
    root = write_pictures(tmp_path / "data", train=3, val=1)
    (root / "train" / "red" / "1.png").write_bytes(b"broken")
    result = run("prepare", "pictures", "--root", root, "--verify", "--workers", 1)
    assert result.returncode == 0 and "train  8 clips of 3 classes" in result.stdout, result.stderr
    assert "data.dataset=pictures" in result.stdout
    result = run("prepare", "pictures", "--root", root, "--reencode")
    assert result.returncode == 2 and "--reencode makes videos; pictures are read as they are" in result.stderr


def test_what_speaks_for_a_class_of_a_picture(learned, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    coloured("red", 5, (60, 44)).save("photo.jpg")
    result = run("explain", "photo.jpg", "--weights", learned[0], "--class", "red", "--device", "cpu")
    assert result.returncode == 0 and "photo_gradcam.png: red" in result.stdout and "1 frame, " in result.stdout
    assert Image.open("photo_gradcam.png").width > 120  # the picture, and beside it the same with what speaks for red
    result = run("explain", "photo.jpg", "--weights", learned[0], "--method", "features", "--out", "maps.png")
    assert result.returncode == 0 and "layer2.0.conv1" in result.stdout, result.stderr
    result = run("explain", "photo.jpg", "--weights", learned[0], "--out", "cam.mp4")
    assert result.returncode == 2 and "'.mp4' (known for gradcam of a picture: .png, .jpg)" in result.stderr
    result = run("explain", "photo.jpg", "--weights", "motion", "--out", "cam.png")
    assert result.returncode == 1 and "it is a single picture, and clips of 8 frames are wanted" in result.stderr


@torch.no_grad()
def test_where_a_picture_speaks_for_a_class(learned):
    """Grad-CAM by hand: the channels of the last stage, weighted by their mean gradient."""
    network = Classifier(learned[0], "cpu").model
    clip = torch.randn(1, 3, 1, 32, 32)
    found = grad_cam(network, clip, 2, "stage3")
    network.features_only = True
    features = network(clip)[3].requires_grad_()
    network.features_only = False
    with torch.enable_grad():
        x = features
        for block in network.stages()["stage4"]:
            x = block(x)
        network.classify(x)[0, 2].backward()
    wanted = (features * features.grad.mean((2, 3), keepdim=True)).sum(1, keepdim=True)
    wanted = torch.nn.functional.interpolate(wanted, size=(32, 32), mode="bilinear").relu()[0]
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("to", "name"), [("onnx", "model.onnx"), ("torchexport", "model.pt2")])
def test_an_exported_network_labels_pictures(learned, run, tmp_path, to, name):
    exported = tmp_path / name
    result = run("export", "--weights", learned[0], "--to", to, "--out", exported)
    assert result.returncode == 0, result.stderr
    coloured("green", 5).save(tmp_path / "photo.png")
    trusted = ["--trust"] if name.endswith(".pt2") else []
    scores = []
    for weights in ([exported, *trusted], [learned[0]]):
        result = run("classify", tmp_path / "photo.png", "--weights", *weights, "--device", "cpu", "--json")
        assert result.returncode == 0, result.stderr
        scores.append(json.loads(result.stdout)["score"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
