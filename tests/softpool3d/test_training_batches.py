"""What training's options make of the batches that reach the network and the loss, and data sets from their configs."""

import pytest
import torch
from layouts import hmdb51, kinetics, short_video, ssv2, ucf101

from softpool3d.config_file import load_config
from softpool3d.errors import UsageError
from softpool3d.training import setup, trainer
from softpool3d.training.preflight import check_order
from softpool3d.training.trainer import train

TINY = [
    "data.motion_clips=[8,8,8]",
    "data.num_workers=0",
    "model.width=4",
    "train.batch_size=4",
    "train.epochs=1",
    "optim.warmup_epochs=0",
    "test.num_clips=1",
]


@pytest.fixture
def batches(tmp_path, monkeypatch):
    """Trains with these settings; what the network and the loss saw in the first step, and how clips came."""

    def run(*overrides):
        seen = {"clips": [], "targets": [], "raw": []}
        build, loss, to_device = setup.build_model, setup.build_loss, trainer.to_device

        def watched_model(*arguments):
            network = build(*arguments)
            network.register_forward_pre_hook(
                lambda module, inputs: seen["clips"].append(inputs[0].detach().clone()) if module.training else None
            )
            return network

        def watched_loss(*arguments):
            criterion = loss(*arguments)

            def watched(logits, target, *rest, **settings):
                seen["targets"].append(target.clone())
                return criterion(logits, target, *rest, **settings)

            return watched

        def watched_transfer(batch, *arguments):
            seen["raw"].append(not isinstance(batch.video, torch.Tensor))
            return to_device(batch, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(setup, "build_model", watched_model)
            patch.setattr(setup, "build_loss", watched_loss)
            patch.setattr(trainer, "to_device", watched_transfer)
            name = f"run{len(list(tmp_path.iterdir()))}"
            train(load_config("r3d_softpool", [*TINY, f"output={tmp_path}", f"name={name}", *overrides]))
        return seen["clips"][0].cpu(), seen["targets"][0].cpu(), seen["raw"]

    return run


def test_options_of_a_batch_reach_the_network(batches):
    clips, labels, raw = batches()
    assert labels.dtype == torch.int64 and not any(raw)
    for option in ("train.mixup=0.8", "train.cutmix=1.0"):
        mixed, targets, _ = batches(option)
        assert mixed.shape == clips.shape and not torch.equal(mixed, clips)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        assert (targets.argmax(1) != labels).any() or ((targets > 0) & (targets < 1)).any()
        kept = (mixed == clips).flatten(1).float().mean(1)  # CutMix leaves pixels as they are, mixup hardly any
        assert (kept.max() > 0.2) == ("cutmix" in option)
    repeated, pairs, _ = batches("train.repeats=2", "data.augment.crop=area")
    assert pairs.view(2, 2)[:, 0].equal(pairs.view(2, 2)[:, 1])
    assert not torch.equal(repeated[0], repeated[1]) and len(repeated) == 4
    on_device, same, raw = batches("data.transforms_on_device=true")
    assert any(raw) and torch.equal(same, labels)
    level = 0.02 if torch.cuda.is_available() else 1e-5  # a GPU rounds a resized pixel another way, by one of 255
    torch.testing.assert_close(on_device, clips, atol=level, rtol=0)


SMALL = [
    "model.width=8",
    "data.num_frames=4",
    "data.sampling_rate=1",
    "data.train_short_side=[32,32]",
    "data.short_side=32",
    "data.crop_size=32",
    "data.num_workers=0",
    "train.batch_size=2",
    "train.epochs=1",
    "train.precision=fp32",
    "optim.warmup_epochs=0",
    "optim.schedule=constant",
    "optim.milestones=[]",
    "test.num_clips=2",
]


@pytest.mark.parametrize(
    ("config", "layout", "clips"),
    [
        ("hmdb51/r3d_18_softpool", hmdb51, 2),
        ("ucf101/r3d_18", ucf101, 2),
        ("kinetics400/r3d_18", kinetics, 2),
        ("r3d_softpool", ssv2, 2),
    ],
)
def test_a_data_set_trains_and_tests_from_its_config(config, layout, clips, tmp_path):
    root = layout(tmp_path / "data", short_video)
    of_none = ["data.dataset=ssv2"] if layout is ssv2 else []  # a configuration of no data set
    summary = train(load_config(config, [*SMALL, *of_none, f"data.root={root}", f"output={tmp_path / 'runs'}"]))
    assert summary["test_clips"] == clips and summary["views"] >= 2
    assert not any(summary["bad_files"].values())
    assert list((tmp_path / "runs").glob("*/best.safetensors"))


def test_classes_in_another_order_are_refused():
    with pytest.raises(UsageError, match="a.safetensors has .* in another order: number 0 is 'b' there and 'a' here"):
        check_order("a.safetensors", ("b", "a", "c"), ("a", "b", "c"))
    check_order("a.safetensors", ("a", "b"), ("a", "b"))
    check_order("a.safetensors", ("x", "y"), ("a", "b"))  # other classes: a new last layer
