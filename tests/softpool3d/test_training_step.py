"""What training makes of a batch, computed again by hand: an option that does nothing is seen, which two runs of the
same code would not show."""

import csv
import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from by_hand import descend, training

from softpool3d.datasets import read_manifests
from softpool3d.datasets.loader import train_loader
from softpool3d.runs.checkpoint import load_state
from softpool3d.training import setup
from softpool3d.training.norms import ProcessesBatchNorm, SplitBatchNorm


@pytest.fixture
def run(tmp_path, monkeypatch):
    return partial(training, tmp_path, monkeypatch)


def rates(done) -> list[float]:
    with (Path(done.summary["folder"]) / "metrics.csv").open(newline="") as file:
        return [float(row["lr"]) for row in csv.DictReader(file)]


# --- the optimiser ---------------------------------------------------------------------------------------------------


def test_gradient_descent(run):
    """optim.lr, of clips that are (x / 255 - data.mean) / data.std."""
    done = run("data.mean=[0.1,0.2,0.3]", "data.std=[0.4,0.5,0.6]", "optim.lr=0.3")
    batch = next(iter(train_loader(read_manifests(done.config.data)["train"], done.config)))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1, 1) for values in ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]))
    torch.testing.assert_close(done.network.trained[0], (batch.video / 255 - mean) / std)
    for parameters, gradients in done.updates():
        descend(parameters, gradients, 0.3)
    assert done.close(parameters)


@pytest.mark.parametrize("nesterov", [True, False])
def test_momentum_and_the_decay_of_weights_alone(run, nesterov):
    settings = ["optim.momentum=0.8", f"optim.nesterov={str(nesterov).lower()}", "optim.weight_decay=0.1"]
    done, moving = run("optim.lr=0.2", *settings), {}
    for parameters, gradients in done.updates():
        with torch.no_grad():
            for name, value in parameters.items():
                step = gradients[name] + (0.1 * value if name.endswith("weight") else 0)
                moving[name] = step if name not in moving else 0.8 * moving[name] + step
                value -= 0.2 * (step + 0.8 * moving[name] if nesterov else moving[name])
    assert len(done.labels) == 2 and done.close(parameters)


def test_another_optimiser_with_its_options(run):
    """AdamW (arXiv 1711.05101), with betas and eps of its own."""
    options = ["optim.name=adamw", "optim.options.betas=[0.7,0.8]", "optim.options.eps=0.01"]
    done = run(*options, "optim.weight_decay=0.2", "optim.lr=0.1")
    first, second = {}, {}
    for step, (parameters, gradients) in enumerate(done.updates(), 1):
        with torch.no_grad():
            for name, value in parameters.items():
                gradient = gradients[name]
                first[name] = 0.7 * first.get(name, 0) + 0.3 * gradient
                second[name] = 0.8 * second.get(name, 0) + 0.2 * gradient**2
                value *= 1 - 0.1 * (0.2 if name.endswith("weight") else 0)
                size = (second[name] / (1 - 0.8**step)).sqrt() + 0.01
                value -= 0.1 * first[name] / (1 - 0.7**step) / size
    assert done.close(parameters)


def test_blocks_learn_at_rates_of_their_own(run):
    done = run("optim.layer_decay=0.25")
    for parameters, gradients in done.updates():
        for name, value in parameters.items():
            descend({name: value}, gradients, 0.5 if name.startswith("fc") else 0.125)
    assert done.close(parameters)


def test_the_head_learns_alone_at_first(run):
    done = run("optim.head_epochs=1", "train.epochs=2")
    half = len(done.labels) // 2
    for step, (parameters, gradients) in enumerate(done.updates()):
        learns = {name: value for name, value in parameters.items() if step >= half or name.startswith("fc")}
        descend(learns, gradients, 0.5)
    assert done.close(parameters)


def test_what_is_frozen_keeps_its_first_values(run):
    """Norms keep their running statistics too."""
    done = run("optim.freeze=[norm]", norm=True)
    assert done.weights()["norm.running_mean"].eq(0).all() and done.weights()["norm.weight"].eq(1).all()
    done = run("optim.freeze=[hidden]", "name=hidden")
    for parameters, gradients in done.updates():
        descend({name: parameters[name] for name in ("fc.weight", "fc.bias")}, gradients, 0.5)
    found = done.weights()
    assert all(torch.equal(found[name], done.begin[name]) for name in ("hidden.weight", "hidden.bias"))
    assert done.close({name: parameters[name] for name in ("fc.weight", "fc.bias")})


@pytest.mark.parametrize("by", ["norm", "value", "both"])
def test_gradients_are_clipped(run, by):
    """By the norm of all of them together, and each element by itself; the norm first."""
    settings = {"norm": ["optim.clip_grad_norm=0.2"], "value": ["optim.clip_grad_value=0.01"]}
    done = run(*(sum(settings.values(), []) if by == "both" else settings[by]))
    for parameters, gradients in done.updates():
        length = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
        assert length > 0.3 and max(float(gradient.abs().max()) for gradient in gradients.values()) > 0.03
        if by != "value":
            gradients = {name: gradient * 0.2 / length for name, gradient in gradients.items()}
        if by != "norm":
            gradients = {name: gradient.clamp(-0.01, 0.01) for name, gradient in gradients.items()}
        descend(parameters, gradients, 0.5)
    assert done.close(parameters)


# --- the rate --------------------------------------------------------------------------------------------------------

SCHEDULES = {
    "constant": ([], [0.5] * 8),
    "warm-up": (
        ["optim.warmup_epochs=2", "optim.warmup_start=0.2"],
        [0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5],
    ),
    "cosine": (
        ["optim.schedule=cosine", "optim.final_lr=0.1"],
        [0.5 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * n / 8))) for n in range(8)],
    ),
    "cosine after the warm-up": (
        ["optim.schedule=cosine", "optim.warmup_epochs=1"],
        [0.25, 0.5, *(0.25 * (1 + math.cos(math.pi * n / 6)) for n in range(6))],
    ),
    "cosine from the start": (
        ["optim.schedule=cosine", "optim.cosine_from_start=true", "optim.warmup_epochs=1"],
        [
            0.125 * (1 + math.cos(math.pi / 4)),
            0.25 * (1 + math.cos(math.pi / 4)),
            *(0.25 * (1 + math.cos(math.pi * n / 8)) for n in range(2, 8)),
        ],
    ),
    "steps": (
        ["optim.schedule=multistep", "optim.milestones=[1,2.5]", "optim.gamma=0.3"],
        [0.5, 0.5, 0.15, 0.15, 0.15, 0.045, 0.045, 0.045],
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_of_each_update(run, name):
    """Four epochs of two updates."""
    settings, expected = SCHEDULES[name]
    if name == "warm-up":  # to half of the rate and a tenth of it, in four steps from 0.1 to 0.5
        expected = [0.1 + 0.4 * n / 4 for n in range(1, 5)] + [0.5] * 4
    done = run("train.epochs=4", *settings)
    for rate, (parameters, gradients) in zip(expected, done.updates(), strict=True):
        descend(parameters, gradients, rate)
    assert done.close(parameters)
    assert rates(done) == pytest.approx(expected[1::2], rel=1e-5)


def test_the_rate_goes_with_the_clips_of_an_update(run):
    """optim.base_batch counts clips, and train.repeats makes several of one video."""
    done = run("optim.base_batch=16", "train.repeats=2", "train.batch_size=4")
    assert [len(clips) for clips in done.network.trained] == [4] * 4
    for parameters, gradients in done.updates():
        descend(parameters, gradients, 0.5 * 4 / 16)
    assert done.close(parameters)
    assert rates(done) == [pytest.approx(0.125)]


@pytest.mark.parametrize("settings", [["train.accumulate=2"], ["train.global_batch=4"]], ids=["accumulate", "global"])
def test_batches_add_up_to_an_update(run, settings):
    done = run("train.batch_size=2", *settings)
    assert [len(clips) for clips in done.network.trained] == [2] * 4
    for parameters, gradients in done.updates(share=2):
        descend(parameters, gradients, 0.5)
    assert done.close(parameters)


# --- the loss --------------------------------------------------------------------------------------------------------


def smoothed(values, label):
    return -(0.7 * values.log_softmax(1)[range(len(label)), label] + 0.3 * values.log_softmax(1).mean(1)).mean()


def weighted(values, label):
    """Scaled so that the mean weight of the eight training clips, three, two and three of the classes, is 1."""
    weights = torch.tensor([1.0, 5.0, 0.5]) / ((3 * 1 + 2 * 5 + 3 * 0.5) / 8)
    return -(weights[label] * values.log_softmax(1)[range(len(label)), label]).mean()


def balanced(values, label):
    weights = 8 / (3 * torch.tensor([3.0, 2.0, 3.0]))[label]
    return -(weights * values.log_softmax(1)[range(len(label)), label]).mean()


def binary(values, label):
    target = F.one_hot(label, 3).float() * 0.8 + 0.1
    return -(target * values.sigmoid().log() + (1 - target) * (1 - values.sigmoid()).log()).mean()


LOSSES = {
    "smoothing": (["optim.label_smoothing=0.3"], smoothed),
    "weights": (["optim.class_weights=[1,5,0.5]"], weighted),
    "balanced": (["optim.class_weights=balanced"], balanced),
    "binary": (["optim.loss=binary", "optim.label_smoothing=0.2"], binary),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_the_one_asked_for(run, name):
    settings, loss = LOSSES[name]
    done = run(*settings)
    for parameters, gradients in done.updates(loss):
        descend(parameters, gradients, 0.5)
    assert done.close(parameters)


def test_mixed_clips_and_labels_have_the_same_share_of_each_other(run):
    """arXiv 1710.09412: x + s (x' - x) has the label y + s (y' - y)."""
    done = run("train.mixup=1", "train.epochs=2")
    loader, seen, mixed = train_loader(read_manifests(done.config.data)["train"], done.config), [], []
    for epoch in range(2):
        loader.batch_sampler.set_position(epoch)
        seen += [((batch.video / 255 - 0.45) / 0.225, F.one_hot(batch.label, 3).float()) for batch in loader]
    for (clips, labels), given in zip(seen, done.network.trained, strict=True):
        way = clips.roll(1, 0) - clips
        share = ((given - clips) * way).sum() / way.square().sum()
        torch.testing.assert_close(given, clips + share * way, atol=1e-4, rtol=0)
        mixed.append(labels + share * (labels.roll(1, 0) - labels))
    done.labels = mixed
    for parameters, gradients in done.updates():
        descend(parameters, gradients, 0.5)
    found = done.weights()
    assert all(torch.allclose(found[name], value, atol=1e-5) for name, value in parameters.items())


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_clips_are_mixed_as_far_as_alpha_says(run, monkeypatch, kind):
    """The share of the other clip is drawn from Beta(alpha, alpha): near a half where alpha is large, at the ends where
    it is small."""
    build, targets = setup.build_loss, []

    def watched(*arguments):
        criterion = build(*arguments)
        return lambda logits, target, *more: targets.append(target.clone()) or criterion(logits, target, *more)

    monkeypatch.setattr(setup, "build_loss", watched)
    low = 0.3 if kind == "mixup" else 0.1  # of a box, what lies beyond the picture's edge is cut off
    for alpha, halves in ((60, True), (0.02, False)):
        targets.clear()
        run(f"train.{kind}={alpha}", "train.epochs=3", f"name={kind}{alpha}")
        shares = [float(target.max(1).values.min()) for target in targets]
        middle = [share for share in shares if share < 1 - low]  # of batches that were mixed by halves or so
        assert len(shares) == 6 and (len(middle) == 6 if halves else len(middle) < 3), shares


def test_mixing_is_told_both_alphas(run, monkeypatch):
    mix, told = setup.BatchMix, []
    monkeypatch.setattr(setup, "BatchMix", lambda *alphas: told.append(alphas) or mix(*alphas))
    run("train.mixup=0.3", "train.cutmix=7")
    assert told == [(3, 0.3, 7)]


# --- averages and statistics -----------------------------------------------------------------------------------------


def test_the_average_of_the_weights_is_updated_by_its_decay(run):
    """It begins as the weights after the first update."""
    done, average = run("train.ema=0.7", "train.epochs=2"), {}
    for parameters, gradients in done.updates():
        descend(parameters, gradients, 0.5)
        average = {name: 0.7 * average.get(name, value) + 0.3 * value.detach() for name, value in parameters.items()}
    assert done.close(parameters) and done.close(average, "last_ema")
    state = load_state(Path(done.summary["folder"]) / "last" / "checkpoint.pt")
    torch.testing.assert_close(state["parts"]["average"]["module.fc.weight"], average["fc.weight"].detach())


def pooled(clips):
    return F.adaptive_avg_pool3d(clips, (1, 2, 2))


def test_precise_statistics_are_those_of_that_many_batches(run):
    """Of the first batches of the training split, seen with the weights as they are."""
    plain = run(norm=True).weights()["norm.running_mean"]
    for count in (1, 2):
        done = run(f"train.precise_norm={count}", f"name=precise{count}", norm=True)
        batches = [pooled(clips) for clips in done.network.trained[:count]]
        mean = torch.stack([batch.mean((0, 2, 3, 4)) for batch in batches]).mean(0)
        for name in ("last", "best"):
            found = done.weights(name)
            torch.testing.assert_close(found["norm.running_mean"], mean)
            variance = torch.cat(batches).var((0, 2, 3, 4), unbiased=False)
            torch.testing.assert_close(found["norm.running_var"], variance)
            assert found["norm.num_batches_tracked"] == 2 and not torch.allclose(plain, mean, rtol=0.1)


class Spoiled:
    """A loss that is NaN for the second batch."""

    def __init__(self, *_):
        self.calls = 0

    def __call__(self, logits, target, *_, **__):
        self.calls += 1
        return F.cross_entropy(logits, target) * (float("nan") if self.calls == 2 else 1)


def test_a_skipped_update_leaves_weights_and_running_statistics(run, monkeypatch):
    monkeypatch.setattr(setup, "build_loss", Spoiled)
    done = run("train.on_nonfinite=skip", norm=True)
    assert len(done.network.trained) == 2 and done.summary["skipped_updates"] == 1
    found, first = done.weights(), pooled(done.network.trained[0])
    torch.testing.assert_close(found["norm.running_mean"], 0.1 * first.mean((0, 2, 3, 4)))
    torch.testing.assert_close(found["norm.running_var"], 0.9 + 0.1 * first.var((0, 2, 3, 4)))
    assert found["norm.num_batches_tracked"] == 1
    assert found["fc.weight"].isfinite().all() and not torch.equal(found["fc.weight"], done.begin["fc.weight"])


def test_norms_are_those_asked_for(run):
    """Two clips of four are normalised by themselves; each part counts in the running statistics."""
    done = run("train.norm=split", "train.norm_clips=2", norm=True)
    assert isinstance(done.network.norm, SplitBatchNorm)
    mean = torch.zeros(3)
    for part in (part for clips in done.network.trained for part in pooled(clips).split(2)):
        mean = 0.9 * mean + 0.1 * part.mean((0, 2, 3, 4))
    torch.testing.assert_close(done.weights()["norm.running_mean"], mean)
    assert isinstance(run("train.norm=sync", "name=sync", norm=True).network.norm, ProcessesBatchNorm)
