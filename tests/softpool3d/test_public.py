"""torchvision's public weights: kept, fetched, cut off on the way, damaged, or out of reach; and what answers then."""

import socket
import threading

import pytest
import torch
from served import Server, make_weights, served, take_away
from videos import write_numbered

from softpool3d import naming
from softpool3d.errors import UsageError, WorkError
from softpool3d.inference import trained
from softpool3d.inference.classifier import Classifier
from softpool3d.inference.trained import default_weights
from softpool3d.models import build_model, load_pretrained, public
from softpool3d.models.weights import read_weights
from softpool3d.naming import SHIPPED
from softpool3d.runs.published import open_weights

NAME = "s3d:kinetics400"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return make_weights("s3d", tmp_path_factory.mktemp("served"))


@pytest.fixture
def weights(tmp_path, monkeypatch, file):
    """torchvision's weights of s3d, from a server of this test, and what answers where none are named."""
    monkeypatch.setattr(trained, "KINETICS", NAME)
    monkeypatch.setitem(naming.SHORT_NAMES, "kinetics400", NAME)
    with served(file, "s3d", tmp_path / "torch", monkeypatch) as there:
        yield there


def test_what_can_be_had_is_the_default_and_is_fetched_once(weights, file):
    name, why = default_weights()
    assert name == NAME
    kept = public.kept_at(weights)
    assert why == (
        "no --weights: s3d:kinetics400 answers, torchvision's network for the 400 actions of Kinetics (top-1 68.4% "
        f"there; 32 MB, fetched once into {kept.parent})"
    )
    assert not kept.exists()
    classifier = Classifier()
    assert classifier.note == why and len(classifier.classes) == 400 and "abseiling" in classifier.classes
    assert kept.read_bytes() == file.read_bytes()
    take_away(weights)
    assert f"kept in {kept.parent}" in default_weights()[1]
    state = open_weights("kinetics400").state
    assert all(torch.equal(tensor, classifier.model.state_dict()[key]) for key, tensor in state.items())


def test_the_names_of_classify_are_those_of_a_training(weights):
    """--weights kinetics400, and model.weights=kinetics400: the same weights, or the sentence that says what to set."""
    named = read_weights("kinetics400", "s3d")
    assert named.origin == NAME and len(named.classes) == 400
    other = "weights: s3d:kinetics400 are the weights of another network; r3d_18 cannot take them: set model.name=s3d"
    with pytest.raises(UsageError, match=f"^{other}, or model.weights=r3d_18:kinetics400$"):
        read_weights("kinetics400", "r3d_18")
    with pytest.raises(UsageError, match=f"^{other.replace('r3d_18', 'x3d_xs')}$"):
        read_weights("kinetics400", "x3d_xs")
    shipped = open_weights("motion")
    network = build_model(shipped.config, len(shipped.classes))
    model = shipped.config.model.model_copy(update={"weights": "motion"})
    load_pretrained(network, shipped.config.model_copy(update={"model": model}))
    assert all(torch.equal(value, shipped.state[key]) for key, value in network.state_dict().items())


def test_out_of_reach(weights, tmp_path, run):
    take_away(weights)
    name, why = default_weights()
    assert name == SHIPPED
    assert "eight synthetic motions alone (moving left," in why and "need --weights kinetics400, a file of 32 MB" in why
    assert "(127.0.0.1:9 cannot be reached: [Errno 111] Connection refused)" in why
    write_numbered(tmp_path / "a.mp4", 20)
    result = run("classify", tmp_path / "a.mp4", "--device", "cpu")
    assert result.returncode == 0 and result.stderr.splitlines()[0] == why
    assert run("classify", tmp_path / "a.mp4", "--weights", "motion", "--device", "cpu").stderr == ""
    explained = ("explain", tmp_path / "a.mp4", "--device", "cpu", "--overwrite", "--out", tmp_path / "a.png")
    result = run(*explained)
    assert result.returncode == 0 and result.stderr.splitlines()[0] == why
    assert run(*explained, "--weights", "motion").stderr == ""
    with pytest.raises(WorkError, match="cannot fetch http://127.0.0.1:9/s3d-.* into .*checkpoints"):
        open_weights("kinetics400")


def test_offline_asks_nobody(weights, monkeypatch):
    monkeypatch.setenv(public.OFFLINE, "1")
    monkeypatch.setattr(public, "web", None)
    assert "(SOFTPOOL3D_OFFLINE is set)" in default_weights()[1]
    with pytest.raises(WorkError, match=r"SOFTPOOL3D_OFFLINE is set, and .*s3d-.* is not there; unset it to fetch"):
        open_weights(NAME)


def test_a_transfer_that_is_cut_off_leaves_nothing(weights, monkeypatch):
    monkeypatch.setattr(Server, "cut_off", True)
    with pytest.raises(WorkError, match="sent is not the file of that name .*cut off; nothing of it was kept"):
        open_weights(NAME)
    assert not list(public.kept_at(weights).parent.iterdir())
    monkeypatch.setattr(Server, "cut_off", False)
    assert open_weights(NAME).classes


def test_a_server_that_falls_silent_is_not_waited_for_for_ever(weights, monkeypatch):
    left, over = socket.getdefaulttimeout(), threading.Event()
    monkeypatch.setattr(public, "_STALLED_S", 0.2)
    monkeypatch.setattr(Server, "copyfile", lambda self, source, out: out.write(source.read(999)) and over.wait(30))
    with pytest.raises(WorkError, match=r"cannot fetch http.* \(timed out\); give a file instead"):
        open_weights(NAME)
    over.set()
    assert socket.getdefaulttimeout() == left and not list(public.kept_at(weights).parent.iterdir())


def test_a_damaged_file_is_named(weights, file):
    kept = public.kept_at(weights)
    kept.parent.mkdir(parents=True)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    with pytest.raises(WorkError, match=f"{kept.name} is damaged: its SHA-256 begins with .*; delete it"):
        open_weights(NAME)


def test_no_room_for_the_file(weights, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.hub.download_url_to_file", full)
    with pytest.raises(WorkError, match="into .*checkpoints .*No space left"):
        open_weights(NAME)
