import os
import resource
import signal
import subprocess

import pytest
import torch
from torch import nn

from softpool3d import __version__
from softpool3d.config import Config
from softpool3d.errors import UsageError, WorkError
from softpool3d.runs.checkpoint import (
    STATE_FORMAT,
    load_into,
    load_last_state,
    load_state,
    load_weights,
    previous_state,
    save_state,
    save_weights,
    write_atomically,
)


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4)).to(memory_format=torch.channels_last_3d)


def test_a_weights_file_describes_itself(tmp_path, model):
    path = tmp_path / "deep" / "best.safetensors"
    config = Config(seed=7)
    save_weights(path, model, config, ("Grüße", "b"))
    weights = load_weights(path)
    assert (weights.config, weights.classes) == (config, ("Grüße", "b"))
    other = nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4))
    load_into(other, weights.state, path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


def test_weights_that_cannot_be_used(tmp_path, model):
    path = tmp_path / "best.safetensors"
    with pytest.raises(UsageError, match="no weights file"):
        load_weights(path)
    path.write_bytes(b"not a weights file")
    with pytest.raises(UsageError, match="is not a safetensors file, or it is damaged"):
        load_weights(path)
    save_weights(path, model, Config(), ("a", "b"))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UsageError, match="damaged"):
        load_weights(path)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(UsageError, match="was not written by softpool3d"):
        load_weights(path)
    save_file({"a": torch.zeros(1)}, path, {"softpool3d": "99", "version": "9.0"})
    with pytest.raises(UsageError, match=r"written by a newer softpool3d \(9.0\)"):
        load_weights(path)


def test_another_network_is_named_by_its_first_difference(model):
    state = model.state_dict()
    wider = nn.Sequential(nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8))
    with pytest.raises(UsageError, match=r"x.pt holds another network: 0.weight is \(4, 3, 3, 3, 3\) there and \(8,"):
        load_into(wider, state, "x.pt")
    with pytest.raises(UsageError, match="it lacks 2.weight"):
        load_into(nn.Sequential(*model, nn.BatchNorm3d(4)), state, "x.pt")
    with pytest.raises(UsageError, match="it has 1.weight, which this network lacks"):
        load_into(model[:1], state, "x.pt")


def test_state_comes_back_as_it_was(tmp_path):
    state = {"epoch": 3, "best": [0.5, -1.0], "model": {"w": torch.arange(3.0)}, "meter": None}
    save_state(tmp_path / "last" / "checkpoint.pt", state)
    loaded = load_state(tmp_path / "last" / "checkpoint.pt")
    assert torch.equal(loaded.pop("model")["w"], state.pop("model")["w"])
    assert loaded == {**state, "softpool3d": STATE_FORMAT, "version": __version__}


def test_a_damaged_state_is_said(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(UsageError, match="nothing to resume from"):
        load_state(path)
    save_state(path, {"model": torch.arange(1000.0)})
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damaged in (content[: len(content) // 2], b"", b"junk" * 100, bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match="is damaged"):
            load_state(path)
    torch.save({"softpool3d": "1"}, path)
    with pytest.raises(UsageError, match="written by an older softpool3d"):
        load_state(path)
    torch.save({"softpool3d": STATE_FORMAT + 1, "version": "9.0"}, path)
    with pytest.raises(UsageError, match=r"written by a newer softpool3d \(9.0\); update"):
        load_last_state(path)


def test_the_state_before_the_last_takes_the_place_of_a_damaged_one(tmp_path):
    path = tmp_path / "last" / "checkpoint.pt"
    assert load_last_state(path) == (None, "")
    for epoch in range(3):
        save_state(path, {"epoch": epoch})
    assert load_last_state(path)[0]["epoch"] == 2 and not load_last_state(path)[1]
    path.write_bytes(path.read_bytes()[:-20])
    state, note = load_last_state(path)
    assert state["epoch"] == 1 and "checkpoint.pt is damaged; going on from the checkpoint before it" in note
    path.unlink()  # killed between two renames
    assert load_last_state(path)[0]["epoch"] == 1
    path.write_bytes(b"")
    previous_state(path).write_bytes(b"")
    with pytest.raises(UsageError, match="checkpoint.pt is damaged"):
        load_last_state(path)


def test_a_full_disk_is_said_and_the_earlier_state_stays(tmp_path):
    """On a file system of one megabyte where it can be mounted, else with a limit on the size of files."""
    path, full = tmp_path / "checkpoint.pt", {"epoch": 2, "model": torch.zeros(1_000_000)}
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        save_state(path, {"epoch": 1})
        if mounted.returncode:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
        with pytest.raises(WorkError, match="cannot write .*checkpoint.pt: (no space left on device|file too large)"):
            save_state(path, full)
        assert load_state(path)["epoch"] == 1
        assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
        if not mounted.returncode:
            subprocess.run(["umount", tmp_path], check=True)


def test_a_state_with_code_in_it_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"softpool3d": "1", "x": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(UsageError, match="is damaged"):
        load_state(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "ran").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkError, match="cannot write .*no space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
