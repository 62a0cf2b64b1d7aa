"""softpool3d models, and softpool3d train on every video network."""

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from softpool3d.config_file import load_config
from softpool3d.errors import UsageError
from softpool3d.models import create, registry
from softpool3d.models.pools import KINDS
from softpool3d.models.registry import SPECS
from softpool3d.tools import models
from softpool3d.training.trainer import train

VIDEO = [name for name, spec in SPECS.items() if not spec.is_image]
TINY = ["data.motion_clips=[8,8,8]", "data.num_workers=0", "train.batch_size=4", "train.epochs=1", "test.num_clips=1"]
TINY += ["optim.warmup_epochs=0", "data.num_frames=8", "data.train_short_side=[32,32]", "data.short_side=32"]
TINY += ["data.crop_size=32"]


def run_train(tmp_path, name, *overrides):
    spec = SPECS[name]
    width = 16 if name == "mvit_v2_s" else max(4, spec.width_step)
    settings = [*TINY, f"model.name={name}", f"model.width={width}", f"output={tmp_path}", f"name={name}", *overrides]
    return train(load_config("r3d_softpool", settings))


@pytest.mark.parametrize("name", VIDEO)
def test_two_steps_of_training(name, tmp_path):
    where = "existing,downsample" if name == "mvit_v2_s" else "existing,downsample,head"
    summary = run_train(tmp_path, name, f"model.pool.where={where}")
    assert summary["test_clips"] == 8 and 0 <= summary["test_top1"] <= 1


def test_training_an_inflated_network_and_going_on_from_its_weights(tmp_path, capsys):
    settings = ["model.inflate=true", "model.pool.kind=mixed", "model.checkpointing=true"]
    settings += ["model.pool.where=existing,temporal", "model.pool.temporal=stage2"]
    first = run_train(tmp_path, "resnet18", *settings)
    again = tmp_path / "again"
    again.mkdir()
    run_train(again, "resnet18", *settings, f"model.weights={first['weights']}")
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(r"best.safetensors \(softpool3d\): \d+ tensors loaded", printed)


def invoke(*arguments):
    import typer

    app = typer.Typer()
    app.command()(models.main)
    return CliRunner().invoke(app, list(arguments))


def test_the_table(monkeypatch):
    some = {name: SPECS[name] for name in ("x3d_xs", "resnet18")}
    monkeypatch.setattr(registry, "SPECS", some)
    printed = invoke().output
    assert re.search(
        r"x3d_xs +4 x 160x160 +3.79 +0.63 +3.79 M, 0.60 G +existing, downsample, temporal, head +PyTorchV", printed
    )
    assert re.search(
        r"resnet18 +224x224 +11.69 +1.82 +11.69 M, 1.81 G +existing, stem, downsample, head +torchvision", printed
    )


def test_one_network():
    small = ["--set", "data.num_frames=4", "--set", "data.crop_size=64"]
    printed = invoke("x3d_xs", *small, "--set", "model.pool.where=downsample").output
    assert "input (1, 3, 4, 64, 64)" in printed and "3.79 M parameters" in printed
    assert re.search(r"stage4 +192x4x2x2 +1.347", printed)
    assert re.search(r"\* +downsample +blocks.0.conv.conv_t +Conv3d -> soft 1x2x2 / 1x2x2", printed)
    assert re.search(r"\n +head +blocks.5.pool.pool +AvgPool 4x2x2", printed)
    assert re.search(r"[\d.]+ ms ±\d+% forward, \d+ MiB", printed)
    plain = invoke("slowfast_r50", "--set", "data.num_frames=8", "--set", "data.crop_size=32").output
    assert "640x2x4x4 and 64x8x4x4" in plain and not re.search(r"^ \* ", plain, re.M)


def test_one_network_with_weights(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(create("x3d_xs", 400, width=8).state_dict(), path)
    small = ["--set", "model.width=8", "--set", "data.num_frames=4", "--set", "data.crop_size=32"]
    printed = invoke("x3d_xs", *small, "--set", f"model.weights={path}").output
    assert "(pytorchvideo): " in printed and "tensors loaded" in printed


def test_the_kinds_of_pooling():
    printed = invoke("--pools").output
    assert all(re.search(rf"^ {kind} ", printed, re.M) for kind in KINDS)


def test_the_page(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "SPECS", {"x3d_xs": SPECS["x3d_xs"]})
    assert "1 networks" in invoke("--save", str(tmp_path / "models.md")).output
    text = (tmp_path / "models.md").read_text()
    assert "| x3d_xs | 0.60 | 0.63 | 0.61 | 0.02 |" in text and "| x3d_xs | 4 x 160x160 | 3.79 | 0.63 |" in text
    assert all(f"| {kind} |" in text for kind in KINDS)
    by_hand = "## Public weights\n\nGrüße\n"
    (tmp_path / "models.md").write_text(f"# old\n\n{by_hand}", encoding="utf-8")
    invoke("--save", str(tmp_path / "models.md"))
    assert (tmp_path / "models.md").read_text("utf-8") == f"{text}\n{by_hand}"
    head = Path(__file__).parents[2].joinpath("docs/models.md").read_text("utf-8").partition("| name |")[0]
    assert text.startswith(head)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x3d"], "unknown network 'x3d'; did you mean x3d_"),
        (["x3d_m", "--pools"], "one of them"),
        (["--set", "model.width=3"], "--set changes one network: name it"),
        (["x3d_m", "--set", "optim.lr=1"], "--set optim.lr: what is shown depends on model, data.num_frames"),
        (["x3d_m", "--set", "data.jitter=1"], "--set data.jitter: what is shown depends on"),
        (["x3d_m", "--set", "model.pool.where=neck"], "override model.pool.where=neck: model.pool.where"),
        (["x3d_m", "--set", "data.crop_size=16"], "data.crop_size: x3d_m needs 32 pixels at least, not 16"),
        (["r3d_18", "--set", "model.weights=no.pth"], "model.weights: no weights file no.pth"),
        (["mvit_v2_s", "--set", "model.pool.where=head"], "mvit_v2_s has no place 'head'"),
    ],
)
def test_requests_that_are_wrong(arguments, message):
    result = invoke(*arguments)
    assert isinstance(result.exception, UsageError) and message in str(result.exception)


def with_bases(file):
    """The texts of a recipe and of what it is based on."""
    text = file.read_text()
    yield text
    if base := re.search(r"^base: (.+)$", text, re.M):
        yield from with_bases(file.parent / base[1])


@pytest.mark.parametrize("path", ["kinetics400", "hmdb51", "ucf101"])
def test_configurations_name_networks_and_clips_that_fit(path):
    from importlib.resources import files
    from pathlib import Path

    from softpool3d.models import build_model

    folder = Path(str(files("softpool3d.configs"))) / path
    found = sorted(folder.glob("*.yaml"))
    assert len(found) >= 6
    for file in found:
        config = load_config(file)
        assert config.data.dataset == path and config.name == f"{path}_{file.stem}"
        assert any("source" in text.lower() for text in with_bases(file)), file
        if config.model.name in ("x3d_xs", "r3d_18"):
            build_model(config, 5)
