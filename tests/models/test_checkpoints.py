"""Files of weights as others leave them: wrapped, averaged, beside odd objects, broken off, or something else."""

import argparse
import datetime
import os
import pathlib
import pickle
import zipfile
from collections import defaultdict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from softpool3d.errors import UsageError
from softpool3d.inference.exported import load_exported
from softpool3d.models import create
from softpool3d.models.weights import read_weights
from softpool3d.runs.checkpoint import load_state, load_weights

FRAMES = {"num_frames": 4, "crop_size": 32}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return create("r3d_18", 5, width=4, **FRAMES)


def loaded(content, path, **options):
    """What became of a file that has to give the same network again."""
    torch.save(content, path, **options)
    return create("r3d_18", 5, width=4, **FRAMES, weights=path)


def same(ours, theirs):
    wanted = theirs.state_dict()
    return all(torch.equal(tensor, wanted[name]) for name, tensor in ours.state_dict().items())


def under(prefix, network):
    return {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.", "_orig_mod.module.", "encoder.video.net_3d."],
)
@pytest.mark.parametrize("key", ["state_dict", "model_state", "model_state_dict", "model", "net", "ema", None])
def test_prefixes_and_dictionaries_are_seen_through(network, tmp_path, prefix, key):
    state = under(prefix, network)
    ours = loaded({key: state, "epoch": 7} if key else state, tmp_path / "a.pth")
    assert same(ours, network)
    report = str(ours.loaded_weights)
    assert ("_orig_mod" in report) == ("_orig_mod" in prefix)
    if plain := prefix.replace("_orig_mod.", ""):
        assert f"the prefix {plain} of its names taken off" in report
    assert ("taken from ema" in report) == (key == "ema")


def test_layers_that_were_compiled_or_checkpointed_one_by_one(network, tmp_path):
    names = {"stem.": "stem._orig_mod.", "layer1.0.": "layer1.0._checkpoint_wrapped_module._orig_mod."}
    state = network.state_dict()
    for plain, wrapped in names.items():
        state = {name.replace(plain, wrapped, 1): tensor for name, tensor in state.items()}
    assert same(loaded(state, tmp_path / "a.pth"), network)


def test_harmless_objects_beside_the_tensors(network, tmp_path):
    times = defaultdict(list)
    times["epoch"].append(np.float64(3.5))
    content = {
        "state_dict": under("module.", network),
        "args": argparse.Namespace(lr=0.1, out=pathlib.Path("runs"), when=datetime.datetime(2024, 5, 1)),
        "best_acc1": np.float64(71.25),
        "best_epoch": np.int64(9),
        "curve": np.arange(4.0),
        "times": times,
        "optimizer": torch.optim.SGD(network.parameters(), 0.1, momentum=0.9).state_dict(),
    }
    assert same(loaded(content, tmp_path / "a.pth.tar"), network)
    assert same(loaded(content, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False), network)
    bytes_ = (tmp_path / "old.pth.tar").read_bytes()  # the same by numpy 1, whose modules had other names
    assert b"numpy._core" in bytes_
    (tmp_path / "numpy1.pth").write_bytes(bytes_.replace(b"numpy._core", b"numpy.core"))
    assert same(create("r3d_18", 5, width=4, **FRAMES, weights=tmp_path / "numpy1.pth"), network)


def test_what_is_allowed_is_not_made(tmp_path):
    """A name that is allowed has a stand-in: numpy's own code does not see what the file gives it."""
    torch.save(
        {"state_dict": {"a": torch.zeros(1)}, "x": np.arange(3), "y": argparse.Namespace(a=1)}, tmp_path / "a.pth"
    )
    from softpool3d.models.checkpoints import read_pickle

    content = read_pickle(tmp_path / "a.pth")
    assert not isinstance(content["x"], np.ndarray) and not isinstance(content["y"], argparse.Namespace)
    with pytest.raises(pickle.UnpicklingError):  # and for others nothing was allowed
        torch.load(tmp_path / "a.pth", weights_only=True)


class Command:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("function", "named"),
    [(os.system, "posix.system|nt.system"), (eval, "eval"), (getattr, "getattr"), (open, "_?io.open")],
)
def test_code_in_a_file_is_not_run(tmp_path, function, named, zipped):
    path, mark = tmp_path / "a.pth", tmp_path / "it_ran"
    arguments = {
        os.system: (f"touch {mark}",),
        eval: (f"open({str(mark)!r}, 'w')",),
        getattr: ("text", "upper"),
        open: (str(mark), "w"),
    }[function]
    torch.save(
        {"state_dict": {"a": torch.zeros(1)}, "x": Command(function, *arguments)},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(UsageError, match=rf"holds Python objects beside tensors, and those are not run \(({named})\)"):
        read_weights(path, "r3d_18")
    assert not mark.exists()


def test_lightning(network, tmp_path):
    """Its criterion and metrics lie beside the network; an average of the weights has a longer name."""
    state = under("model.", network) | under("ema_model.module.", create("r3d_18", 5, width=4, **FRAMES))
    state |= {"criterion.weight": torch.ones(5), "train_acc.tp": torch.zeros(5)}
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": state,
        "loops": {"fit_loop": {}},
        "callbacks": {"ModelCheckpoint{'monitor': 'acc'}": {"best_model_score": torch.tensor(0.7)}},
        "hyper_parameters": {"lr": 0.1, "out": pathlib.PurePosixPath("a")},
    }
    ours = loaded(content, tmp_path / "a.ckpt")
    assert same(ours, network)
    assert "not of the network below model., left out: ema_model.module.stem.0.weight" in str(ours.loaded_weights)


def test_averages_of_weights_are_told(network, tmp_path):
    average = torch.optim.swa_utils.AveragedModel(network)
    average.update_parameters(network)
    average.update_parameters(network)
    ours = loaded(average.state_dict(), tmp_path / "swa.pth")
    assert same(ours, network)
    assert "an average of weights, over 2 updates (n_averaged)" in str(ours.loaded_weights)
    other = create("r3d_18", 5, width=4, **FRAMES)
    ours = loaded({"state_dict": network.state_dict(), "state_dict_ema": other.state_dict()}, tmp_path / "timm.pth")
    assert same(ours, network)
    assert "taken from state_dict; state_dict_ema is there too, and was left out" in str(ours.loaded_weights)


@pytest.mark.parametrize(
    "content",
    [
        lambda state: {"generator": state, "critic": state},
        lambda state: {f"{who}.{name}": tensor for who in ("student", "teacher") for name, tensor in state.items()},
    ],
)
def test_several_networks_are_not_chosen_from(network, tmp_path, content):
    torch.save(content(network.state_dict()), tmp_path / "a.pth")
    with pytest.raises(UsageError, match=r"holds several networks \((generator, critic|student, teacher)\)"):
        read_weights(tmp_path / "a.pth", "r3d_18")


def test_a_wrapped_head_is_told_as_what_it_is(tmp_path, network):
    theirs = create("r3d_18", 5, width=4, **FRAMES)
    theirs.fc = nn.Sequential(nn.Dropout(0.5), theirs.fc)
    ours = loaded(theirs.state_dict(), tmp_path / "a.pth")
    assert torch.equal(ours.fc.weight, theirs.fc[1].weight) and torch.equal(ours.fc.bias, theirs.fc[1].bias)
    assert "adapted: fc.weight (it is fc.1.weight in the file)" in str(ours.loaded_weights)
    theirs.fc = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 5))
    report = loaded(theirs.state_dict(), tmp_path / "a.pth").loaded_weights
    assert report.missing == ("fc.weight", "fc.bias")
    assert "left out: fc.0.weight (a head of several layers, fc.0, fc.2; here it is fc)" in str(report)
    swapped = create("mvit_v2_s", 5, width=8, num_frames=4, crop_size=32)
    swapped.head = swapped.head[1]
    torch.save(swapped.state_dict(), tmp_path / "mvit.pth")
    ours = create("mvit_v2_s", 5, width=8, num_frames=4, crop_size=32, weights=tmp_path / "mvit.pth")
    assert torch.equal(ours.head[1].weight, swapped.head.weight) and not ours.loaded_weights.missing


def test_norms_of_before_pytorch_0_4_1_count_no_batches(tmp_path, network):
    state = {name: t for name, t in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert same(loaded(state, tmp_path / "a.pth"), network)


def zipped(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return path.read_bytes()


def torch_bytes(path, state=None):
    torch.save(state or {"stem.0.weight": torch.zeros(100)}, path)
    return path.read_bytes()


def safetensors_bytes(path):
    save_file({"stem.0.weight": torch.zeros(100)}, path)
    return path.read_bytes()


KINDS = {
    "a Git LFS pointer, not the file itself; fetch that with `git lfs pull`": lambda p: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
    ),
    "an HTML or XML page, not a file of weights: the download went wrong": lambda p: b"\n<!DOCTYPE html><html>Sign in",
    "empty: its copy or download broke off": lambda p: b"",
    "broken off or damaged: it begins as a zip archive": lambda p: torch_bytes(p)[:-150],
    "broken off or damaged: 92 of 4": lambda p: safetensors_bytes(p)[:92],
    "a TorchScript archive, which holds a program": lambda p: zipped(p, "m/constants.pkl", "m/data.pkl", "m/code/a.py"),
    "a package of torch.export or AOTInductor": lambda p: zipped(p, "m/archive_format", "m/data/weights/weight_0"),
    "a zip archive of X3D_M.pyth; unpack it first": lambda p: zipped(p, "X3D_M.pyth"),
    "packed by gzip; unpack it first": lambda p: b"\x1f\x8b\x08" + bytes(20),
    "an HDF5 file, as Keras and MATLAB write them": lambda p: b"\x89HDF\r\n\x1a\n" + bytes(20),
    "an ONNX file; give it a name that ends in .onnx": lambda p: b"\x08\x08\x12\x07pytorch\x1a\x062.14.1" + bytes(90),
    "a pickle of Caffe2, and those are not run": lambda p: pickle.dumps({"blobs": {"conv1_w": [1.0]}}, 2),
    "a pickle that torch.save did not write": lambda p: pickle.dumps({"x": [1]}, 4),
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[:20])
def test_a_file_that_is_something_else_is_named(kind, tmp_path):
    content = KINDS[kind](tmp_path / "made")
    for name in ("best.safetensors", "a.pth"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError) as error:
            read_weights(tmp_path / name, "r3d_18")
        assert f"{name} is {kind}" in str(error.value)
    with pytest.raises(UsageError) as error:
        load_weights(tmp_path / "best.safetensors")
    assert f"best.safetensors is {kind}" in str(error.value)
    with pytest.raises(UsageError) as error:
        load_state(tmp_path / "a.pth")
    assert f"a.pth is damaged ({kind}" in str(error.value)


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_an_exported_network_that_is_something_else_is_named(name, tmp_path):
    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime")
    for kind in list(KINDS)[:4]:
        (tmp_path / name).write_bytes(KINDS[kind](tmp_path / "made"))
        with pytest.raises(UsageError) as error:
            load_exported(tmp_path / name, torch.device("cpu"), trust=True)
        assert f"{name} is {kind}" in str(error.value)


def test_a_video_is_no_file_of_weights(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41" + bytes(200))
    with pytest.raises(UsageError, match="clip.mp4 is no file of torch.save, or it is damaged"):
        read_weights(tmp_path / "clip.mp4", "r3d_18")


def test_files_are_read_by_what_they_are(network, tmp_path):
    save_file(under("model.", network), tmp_path / "a.pth")
    assert same(create("r3d_18", 5, width=4, **FRAMES, weights=tmp_path / "a.pth"), network)
    legacy = tmp_path / "legacy.pth"
    assert same(loaded(network.state_dict(), legacy, _use_new_zipfile_serialization=False), network)
    legacy.write_bytes(legacy.read_bytes()[:5000])
    with pytest.raises(UsageError, match="legacy.pth is no file of torch.save, or it is damaged|broken off"):
        read_weights(legacy, "r3d_18")
