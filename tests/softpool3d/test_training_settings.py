"""Settings around the updates of a run: which weights are tested and how, what the network is given, what processes and
accelerate are told."""

import csv
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from by_hand import training

from softpool3d.config import Config
from softpool3d.config_file import override_config
from softpool3d.evaluation.evaluator import Scores, view_probabilities
from softpool3d.runtime import devices
from softpool3d.training import trainer


@pytest.fixture
def run(tmp_path, monkeypatch):
    return partial(training, tmp_path, monkeypatch)


def scores(right: int) -> Scores:
    """Of three validation clips, of which so many are right."""
    label = torch.tensor([0, 1, 2])
    guess = torch.where(torch.arange(3) < right, label, (label + 1) % 3)
    return Scores(torch.eye(3)[guess] * 0.9 + 0.03, label, torch.arange(3))


def test_the_best_weights_are_tested_and_not_the_last(run, monkeypatch):
    """And of the average of the weights its own best ones; each in the views that `test` asks for."""
    right, given = iter([1, 3, 2, 1, 1, 2, 0, 0]), []  # three epochs of the weights and their average, and the test

    def scripted(network, loader, *_):
        weights = {name: value.clone() for name, value in network.state_dict().items()}
        given.append((weights, loader.dataset.num_clips, loader.dataset.num_crops))
        return scores(next(right))

    monkeypatch.setattr(trainer, "evaluate", scripted)
    done = run("train.epochs=3", "train.ema=0.5", "test.num_clips=2", "test.num_crops=3")
    assert [views for _, *views in given] == [[1, 1]] * 6 + [[2, 3]] * 2
    plain, average = given[2][0], given[1][0]
    for tested, best, name in ((given[6][0], plain, "best"), (given[7][0], average, "best_ema")):
        assert all(torch.equal(tested[key], best[key]) for key in best)
        assert all(torch.equal(done.weights(name)[key], best[key]) for key in best)
        assert not torch.equal(tested["fc.weight"], done.weights(name.replace("best", "last"))["fc.weight"])
    assert done.summary["val_top1"] == pytest.approx(2 / 3) and done.summary["val_ema_top1"] == 1


def test_the_final_test_has_the_views_that_were_asked_for(run, capsys):
    """Five videos in two clips of three crops each, of which the network sees at most four at once."""
    done = run("test.num_clips=2", "test.num_crops=3", "data.short_side=40", "test.batch_size=4")
    sizes = [len(clips) for clips in done.network.tested]
    assert sum(sizes[1:]) == 5 * 6 and sizes[0] == 3 and max(sizes) == 4
    assert done.summary["views"] == 6 and "validation sees one view of each video, the test at the end 6" in (
        printed := capsys.readouterr().out
    )
    assert "6 views each); best val top-1" in printed and "(one view each)" in printed
    views = torch.cat(done.network.tested[1:]).unflatten(0, (5, 2, 3))
    assert len({view.numpy().tobytes() for view in views[0].flatten(0, 1)}) == 6


@pytest.mark.parametrize("average", ["softmax", "logits"])
def test_views_are_averaged_as_asked_for(average):
    config = override_config(Config(), [f"test.average={average}", "data.mean=[0,0,0]", "data.std=[1,1,1]"])
    logits = torch.tensor([[2.0, 0.0, -1.0], [-3.0, 1.0, 0.5]])
    views = torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1, 1, 1).expand(1, 2, 3, 1, 1, 1)
    found = view_probabilities(lambda clips: logits[clips[:, 0, 0, 0, 0].long()], views, config)
    expected = logits.softmax(1).mean(0) if average == "softmax" else logits.mean(0).softmax(0)
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize("name", ["channels_last_3d", "contiguous"])
def test_clips_lie_in_memory_as_asked_for(run, monkeypatch, name):
    """A square of pixels in planes of three colours, or three colours at each pixel; in training and evaluation."""
    strides = []

    def watched(module, inputs):
        strides.append((module.training, inputs[0].stride(1)))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: watched(module, inputs) if type(module).__name__ == "Network" else None
    )
    try:
        run(f"train.memory_format={name}")
    finally:
        hook.remove()
    assert {training for training, _ in strides} == {True, False}
    assert {stride for _, stride in strides} == ({1} if name == "channels_last_3d" else {2 * 32 * 32})


def test_the_network_is_compiled_where_that_is_asked_for(run):
    done = run("train.compile=true")
    for parameters, gradients in done.updates():
        with torch.no_grad():
            for key, value in parameters.items():
                value -= 0.5 * gradients[key]
    assert done.network.compiled and done.network._compiled_call_impl is not None and done.close(parameters)
    assert not run("name=plain").network.compiled


def test_the_seed_decides_the_first_weights_and_the_order_of_clips(run):
    one, two, again = (run(f"seed={seed}", f"name={n}") for n, seed in enumerate((3, 4, 3)))
    assert not torch.equal(one.begin["fc.weight"], two.begin["fc.weight"])
    assert not torch.equal(torch.cat(one.labels), torch.cat(two.labels))
    assert not torch.equal(torch.cat(one.network.trained), torch.cat(two.network.trained))
    assert torch.equal(one.weights()["fc.weight"], again.weights()["fc.weight"])
    for name in ("one", "two"):  # the weights that training began with are those of the seed
        done = {"one": one, "two": two}[name]
        for parameters, gradients in done.updates():
            with torch.no_grad():
                for key, value in parameters.items():
                    value -= 0.5 * gradients[key]
        assert done.close(parameters)


@pytest.mark.parametrize(("minutes", "saves"), [("1e-9", 6), ("0", 2), ("10", 2)])
def test_the_state_is_saved_so_often(run, monkeypatch, minutes, saves):
    """After each of the epochs, and after each update where it was longer ago than that."""
    save, places = trainer.save_state, []

    def counted(path, state):
        places.append((state["epoch"], state["clips"]))
        save(path, state)

    monkeypatch.setattr(trainer, "save_state", counted)
    run(f"checkpoint.every_minutes={minutes}", "train.epochs=2")
    assert len(places) == saves and places[-1] == (2, 0), places


def test_the_last_epoch_is_always_evaluated(run):
    done = run("train.eval_every=2", "train.epochs=3")
    with (Path(done.summary["folder"]) / "metrics.csv").open(newline="") as file:
        assert [bool(row["val_top1"]) for row in csv.DictReader(file)] == [False, True, True]


def test_a_run_goes_into_the_folder_of_its_name(run, tmp_path):
    done = run("name=mine", f"output={tmp_path / 'elsewhere'}")
    assert done.summary["folder"] == str(tmp_path / "elsewhere" / "mine")
    assert (Path(done.summary["folder"]) / "best.safetensors").is_file()


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_accelerate_is_told_the_precision_and_how_long_to_wait(monkeypatch, precision):
    told = {}
    matmul, convolutions = SimpleNamespace(allow_tf32=None), SimpleNamespace(allow_tf32=None)
    monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
    monkeypatch.setattr(torch.backends, "cudnn", convolutions)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(devices, "pick_device", lambda name: torch.device(name))
    monkeypatch.setattr(devices, "join", lambda device, timeout: told.update(device=device, timeout=timeout))
    monkeypatch.setattr(devices, "Accelerator", lambda **settings: told.update(settings))
    settings = ["device=cuda", f"train.precision={precision}", "train.timeout_minutes=3", "train.trackers=[aim]"]
    devices.make_accelerator(override_config(Config(), settings))
    assert told["mixed_precision"] == {"fp32": "no", "tf32": "no"}.get(precision, precision)
    assert matmul.allow_tf32 == convolutions.allow_tf32 == (precision == "tf32")
    assert told["timeout"] == timedelta(minutes=3) == told["kwargs_handlers"][0].timeout
    assert told["device"] == torch.device("cuda") and not told["cpu"] and told["log_with"] == ["aim"]
