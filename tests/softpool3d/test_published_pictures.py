"""Weights of pictures that others published, torchvision's and SoftPool's own, and the accuracies of them."""

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from originals import SeedResNet, original, seed_densenet
from pictures import coloured
from torchvision.models import ResNet18_Weights, ResNet50_Weights

from softpool3d import Classifier
from softpool3d.config_file import load_config
from softpool3d.datasets.manifest import Clip, Manifest
from softpool3d.errors import UsageError
from softpool3d.evaluation.subject import subject_of_config, subject_of_weights
from softpool3d.models.weights import Figures, read_weights, torchvision_weights
from softpool3d.runs.figures import published_figures
from softpool3d.runs.pretrained import name_classes
from softpool3d.runs.published import open_weights

IMAGENET = tuple(ResNet18_Weights.DEFAULT.meta["categories"])


def seed_checkpoint(network, arch):
    """As main/train.py of SoftPool's repository saves it: of DataParallel, beside the optimiser's state."""
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    best = torch.tensor(71.3)
    return {"epoch": 90, "arch": arch, "state_dict": state, "best_acc1": best, "optimizer": optimizer.state_dict()}


def tell_apart(network, layer):
    """So that some classes are likelier than others."""
    with torch.no_grad():
        network.get_parameter(layer).mul_(8)
    return network


@pytest.fixture
def picture():
    pixels = np.array(coloured("red", 3, (90, 70)).resize((360, 280)))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


@torch.no_grad()
def wanted_of(network, classifier, picture):
    """What the original network says of a picture, prepared as the classifier does."""
    [clip] = classifier.sample(picture).clips
    data = classifier.config.data
    mean, std = (torch.tensor(value).view(3, 1, 1, 1) for value in (data.mean, data.std))
    found = network(((clip.float() / 255 - mean) / std)[None, :, 0]).softmax(1)[0]
    assert found.max() > 2 / 1000  # or the comparison says nothing
    return found


def answer_of(classifier, picture):
    return classifier.average(classifier.predictor(classifier.sample(picture).clips))


@pytest.mark.parametrize(
    ("kind", "short_side", "top1"),
    [("imagenet1k_v1", 256, 76.13), ("imagenet1k_v2", 232, 80.858), ("imagenet1k", 232, 80.858)],
)
def test_each_of_torchvision_s_weights_has_its_name(kind, short_side, top1, monkeypatch):
    state = original("resnet50", 1000).state_dict()
    monkeypatch.delenv("SOFTPOOL3D_OFFLINE")
    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", lambda self, **_: state)
    found = open_weights(f"resnet50:{kind}")
    data = found.config.data
    assert found.classes == IMAGENET and found.config.model.pool.where == []
    assert (data.dataset, data.num_frames, data.short_side, data.crop_size) == ("pictures", 1, short_side, 224)
    assert found.config.test.num_clips == 1 and found.figures.top1 == top1
    assert read_weights(f"resnet50:{kind}", "resnet50").figures == found.figures  # as model.weights


def test_names_that_there_are_not():
    with pytest.raises(
        UsageError, match="resnet18:imagenet1k_v9: no file of that name, .*; and with :imagenet1k resnet18,"
    ):
        open_weights("resnet18:imagenet1k_v9")
    with pytest.raises(UsageError, match="resnet18:kinetics400: no file of that name"):
        open_weights("resnet18:kinetics400")
    assert torchvision_weights("resnet50").name == "IMAGENET1K_V2" and torchvision_weights("r3d_18", "x") is None


def test_torchvision_fetches_its_file(tmp_path, monkeypatch, run):
    """From a server of this test: with torchvision's own function, into torch's own folder."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    file = tmp_path / "served" / "resnet18-f37072fd.pth"
    file.parent.mkdir()
    torch.save(tell_apart(original("resnet18", 1000), "fc.weight").state_dict(), file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SOFTPOOL3D_OFFLINE")
    coloured("red", 0).resize((300, 280)).save(tmp_path / "photo.jpg")
    fetch = torch.hub.load_state_dict_from_url
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(file.parent))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{file.name}"

        def here(url, *arguments, check_hash, **options):
            assert url.endswith(file.name) and check_hash  # random weights have another hash
            return fetch(address, *arguments, **options)

        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", here)
        result = run(
            "classify", tmp_path / "photo.jpg", "--weights", "resnet18:imagenet1k", "--device", "cpu", "--json"
        )
        server.shutdown()
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["label"] in IMAGENET
    assert (tmp_path / "home" / "hub" / "checkpoints" / file.name).is_file()


def test_a_file_of_torchvision_is_recognised_and_answers_as_its_network(tmp_path, picture):
    network = tell_apart(original("resnet18", 1000), "fc.weight")
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    classifier = Classifier(tmp_path / "mine.pth", "cpu")
    assert "taken for resnet18, by its layers" in classifier.note and classifier.classes == IMAGENET
    assert (
        "pictures, as torchvision measured its first weights of such networks; short side 256, crop 224"
        in classifier.note
    )
    wanted = wanted_of(network, classifier, picture)
    torch.testing.assert_close(answer_of(classifier, picture), wanted, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "make", "layer"),
    [
        ("resnet18", lambda: SeedResNet("resnet18", 1000), "fc.weight"),
        ("resnext50_32x4d", lambda: SeedResNet("resnext50_32x4d", 1000), "fc.weight"),
        ("densenet121", lambda: seed_densenet("densenet121", 1000), "classifier.weight"),
    ],
)
def test_softpool_s_own_checkpoint_answers_as_its_network(name, make, layer, tmp_path, picture):
    network = tell_apart(make(), layer)
    torch.save(seed_checkpoint(network, name), tmp_path / "model_best.pth")
    classifier = Classifier(f"{name}_softpool:{tmp_path / 'model_best.pth'}", "cpu")
    assert f"taken for {name}_softpool, as it was named" in classifier.note
    data = classifier.config.data
    assert (data.short_side, data.crop_size) == (324, 299)
    assert f"as in configs/imagenet/{name}_softpool.yaml" in classifier.note
    wanted = wanted_of(network, classifier, picture)
    torch.testing.assert_close(answer_of(classifier, picture), wanted, atol=1e-6, rtol=1e-3)
    plain = Classifier(f"{name}:{tmp_path / 'model_best.pth'}", "cpu")  # torchvision's network has the same layers
    assert not torch.allclose(answer_of(plain, picture), wanted, atol=1e-5)


# --- published accuracies --------------------------------------------------------------------------------------------


def wordnet_folders(root, count=1000):
    """ImageNet's class folders; pictures in the first two, and links to one of them in the others."""
    coloured("red", 0).save(root / "one.jpg")
    for split in ("train", "val"):
        for number in range(count):
            folder = root / split / f"n{number:08}"
            folder.mkdir(parents=True)
            (folder / "a.JPEG").symlink_to(root / "one.jpg")
    return root


def test_the_published_figure_is_shown_beside_ours(tmp_path, run):
    """Where the data set has a thousand classes; their folders are WordNet's numbers, as ImageNet's are."""
    root, file = wordnet_folders(tmp_path), tmp_path / "model_best.pth"
    torch.save(seed_checkpoint(SeedResNet("resnet18", 1000), "resnet18"), file)
    settings = ("data.short_side=64", "data.crop_size=64", "train.precision=fp32", "device=cpu", "data.num_workers=0")
    asked = ("--cfg", "imagenet/resnet18_softpool", f"model.weights={file}", f"data.root={root}", *settings)
    for _ in range(2):  # measured, and as it was kept
        result = run("test", *asked, "--out", tmp_path / "out")
        assert result.returncode == 0, result.stderr
        line = next(line for line in result.stdout.splitlines() if line.startswith("top-1, published"))
        assert "71.27%" in line and "ImageNet-1K: SoftPool's paper" in line
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert kept["published"]["top1"] == 0.7127 and kept["videos"] == 1000


def test_figures_are_of_their_data_and_their_network_alone():
    soft, plain = load_config("imagenet/resnet50_softpool"), load_config("imagenet/resnet50")
    theirs = Figures("ImageNet-1K", 76.13, "torchvision's")
    assert published_figures(soft, None, 1000)["top1"] == 0.7735
    assert published_figures(plain, None, 1000) is None and published_figures(soft, None, 10) is None
    assert published_figures(plain, theirs, 1000) == {"top1": 0.7613, "of": "ImageNet-1K: torchvision's"}
    videos = load_config("kinetics400/r3d_18")
    assert published_figures(videos, theirs, 400) is None
    assert published_figures(videos, Figures("Kinetics-400", 63.2, ""), 400)["top1"] == 0.632
    narrow = load_config("imagenet/resnet50_softpool", ["model.width=32"])
    assert published_figures(narrow, None, 1000) is None


def test_figures_come_with_the_weights(tmp_path):
    torch.save(original("resnet18", 1000).state_dict(), tmp_path / "resnet18-f37072fd.pth")
    found = subject_of_weights(tmp_path / "resnet18-f37072fd.pth", [])
    assert found.figures == Figures("ImageNet-1K", 69.758, "torchvision's IMAGENET1K_V1, short side 256, crop 224")
    (tmp_path / "data").mkdir()
    root = wordnet_folders(tmp_path / "data")
    settings = [f"model.weights={tmp_path / 'resnet18-f37072fd.pth'}", f"data.root={root}", "train.precision=fp32"]
    assert subject_of_config("imagenet/resnet18", settings).figures == found.figures


def test_wordnet_s_numbers_are_named_in_their_order():
    numbers = tuple(f"n{number:08}" for number in range(1000))
    manifests = {"train": Manifest(numbers, [Clip("a.jpg", 999)])}
    assert name_classes(manifests, IMAGENET)["train"].classes == IMAGENET
    for classes in (numbers[::-1], numbers[:100], (*numbers[:999], "other")):
        manifest = Manifest(classes, [Clip("a.jpg", 0)])
        assert name_classes({"train": manifest}, IMAGENET[: len(classes)])["train"].classes == classes
