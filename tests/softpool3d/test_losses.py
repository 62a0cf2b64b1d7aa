"""Losses against their formulas; clips with several labels from list to scores."""

import csv
import os

import pytest
import torch
from videos import write_numbered

from softpool3d.config_file import load_config
from softpool3d.datasets.batches import TrainBatches
from softpool3d.datasets.loader import train_loader
from softpool3d.datasets.manifest import Clip, Manifest, read_manifests_in, write_manifests
from softpool3d.errors import UsageError
from softpool3d.evaluation.evaluator import view_probabilities
from softpool3d.evaluation.losses import build_loss, choose_loss
from softpool3d.evaluation.scores import Scores
from softpool3d.training.keeper import Keeper
from softpool3d.training.trainer import train

SINGLE = Manifest(("a", "b", "c"), [Clip("1", 0), Clip("2", 0), Clip("3", 1), Clip("4", 0)])
SEVERAL = Manifest(("a", "b", "c"), [Clip("1", (0, 2)), Clip("2", ()), Clip("3", (1,))])


def loss_of(manifest, *overrides):
    config = choose_loss(load_config("r3d_softpool", ["optim.label_smoothing=0", *overrides]), manifest)
    return build_loss(config, manifest, torch.device("cpu"))


def test_cross_entropy_with_weights_smoothing_and_soft_targets():
    logits, label = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    nll = -logits.log_softmax(1)
    assert torch.allclose(loss_of(SINGLE)(logits, label), nll[range(5), label].mean())
    smooth = 0.9 * nll[range(5), label] + 0.1 * nll.mean(1)
    assert torch.allclose(loss_of(SINGLE, "optim.label_smoothing=0.1")(logits, label), smooth.mean())
    weights = torch.tensor([2 / 3, 2.0, 2.0])  # 4 clips, 3 + 1 + 0 of the classes: (3 * 2/3 + 2) / 4 = 1
    weighted = (weights[label] * nll[range(5), label]).sum() / 5
    assert torch.allclose(loss_of(SINGLE, "optim.class_weights=balanced")(logits, label), weighted)
    assert torch.allclose(loss_of(SINGLE, "optim.class_weights=[1,3,3]")(logits, label), weighted)
    assert torch.allclose(loss_of(SINGLE, "optim.class_weights=[10,30,30]")(logits, label), weighted)
    soft = torch.rand(5, 3).softmax(1)
    assert torch.allclose(loss_of(SINGLE)(logits, soft), (soft * nll).sum(1).mean())
    with pytest.raises(UsageError, match="optim.class_weights has 2 numbers and the data set 3 classes"):
        loss_of(SINGLE, "optim.class_weights=[1,2]")
    with pytest.raises(UsageError, match="optim.class_weights are 0 for every class that has training clips"):
        loss_of(SINGLE, "optim.class_weights=[0,0,1]")
    with pytest.raises(UsageError, match="optim.class_weights are 0 for every class that has training clips"):
        loss_of(SINGLE, "optim.class_weights=[0,0,1]", "optim.loss=binary")


SMOOTH, WEIGHTS = "optim.label_smoothing=0.1", "optim.class_weights=[0.1,3,1]"


@pytest.mark.parametrize(
    ("manifest", "target", "overrides"),
    [
        (SINGLE, "labels", []),
        (SINGLE, "labels", [WEIGHTS]),
        (SINGLE, "labels", [WEIGHTS, SMOOTH]),
        (SINGLE, "mixed", [WEIGHTS, SMOOTH]),
        (SINGLE, "labels", [WEIGHTS, SMOOTH, "optim.loss=binary"]),
        (SINGLE, "mixed", [WEIGHTS, SMOOTH, "optim.loss=binary"]),
        (SEVERAL, "several", [WEIGHTS, SMOOTH]),
        (SEVERAL, "several", [WEIGHTS, SMOOTH, "optim.loss=cross_entropy"]),
    ],
)
def test_an_update_is_the_same_in_one_batch_in_several_and_in_several_processes(manifest, target, overrides):
    """Ten clips, at once, and as `TrainBatches` deals them out: accumulated, to 2 processes, to 3."""
    generator = torch.Generator().manual_seed(0)
    clips, network = torch.randn(10, 4, generator=generator), torch.nn.Linear(4, 3)
    targets = {
        "labels": torch.tensor([0, 0, 1, 0, 2, 0, 0, 1, 0, 0]),
        "mixed": torch.rand(10, 3, generator=generator).softmax(1),
        "several": torch.randint(2, (10, 3), generator=generator).float(),
    }[target]
    criterion = loss_of(manifest, *overrides)

    def value_and_gradient(world_size, accumulate):
        network.zero_grad()
        value = 0
        for rank in range(world_size):
            batches = TrainBatches(10, 10, 0, rank, world_size, accumulate)
            for step, keys in enumerate(batches):
                places = [key.index for key in keys]
                loss = criterion(network(clips[places]), targets[places]) * batches.weight(step) / world_size
                loss.backward()
                value += loss.detach()
        return value, network.weight.grad.clone()

    whole = value_and_gradient(1, 1)
    for world_size, accumulate in ((1, 2), (1, 3), (2, 1), (2, 2), (3, 2)):
        torch.testing.assert_close(value_and_gradient(world_size, accumulate), whole, rtol=1e-5, atol=1e-7)


def test_binary_loss_of_several_labels():
    logits, target = torch.randn(2, 3), torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    p = logits.sigmoid()
    by_hand = -(target * p.log() + (1 - target) * (1 - p).log())
    assert torch.allclose(loss_of(SEVERAL)(logits, target), by_hand.mean())
    shared = -(torch.tensor([0.5, 0, 0.5]) * logits[0].log_softmax(0)).sum() / 2
    assert torch.allclose(loss_of(SEVERAL, "optim.loss=cross_entropy")(logits, target), shared)
    label = torch.tensor([2, 0])
    expected = loss_of(SEVERAL)(logits, torch.tensor([[0.0, 0, 1], [1, 0, 0]]))
    assert torch.allclose(loss_of(SINGLE, "optim.loss=binary")(logits, label), expected)


@pytest.fixture
def several(tmp_path):
    """Eight videos with none, one or two of three classes."""
    (tmp_path / "videos").mkdir()
    for number in range(8):
        write_numbered(tmp_path / "videos" / f"{number}.mp4", 16)
    labels = ["run;jump", "jump", "", "run", "wave;run", "wave", "wave ; jump", "run"]
    text = "path,labels\n" + "".join(f"{n}.mp4,{some}\n" for n, some in enumerate(labels))
    for split in ("train", "val"):
        (tmp_path / "videos" / f"{split}.csv").write_text(text)
    return tmp_path / "videos"


def test_lists_of_several_labels(several, tmp_path):
    manifests = read_manifests_in(several)
    assert manifests["train"].classes == ("jump", "run", "wave")
    labels = [clip.label for clip in manifests["train"].clips]
    assert labels == [(0, 1), (0,), (), (1,), (1, 2), (2,), (0, 2), (1,)]
    assert manifests["train"].class_counts().tolist() == [3, 4, 3]
    write_manifests(several / "copy", manifests)
    assert [clip.label for clip in read_manifests_in(several / "copy")["train"].clips] == labels
    (several / "val.csv").write_text("path,label\n0.mp4,run\n")
    with pytest.raises(UsageError, match="one has a column label, another a column labels"):
        read_manifests_in(several)


def test_a_run_on_several_labels(several, tmp_path):
    settings = ["data.dataset=folder", f"data.root={several}", "data.num_workers=0", "data.num_frames=4"]
    sizes = ["data.short_side=48", "data.train_short_side=[48,48]", "data.crop_size=48", "model.width=4"]
    short = ["train.epochs=1", "optim.warmup_epochs=0"]
    config = load_config(
        "r3d_softpool",
        [*settings, *sizes, *short, "train.mixup=0.2", "test.num_clips=1", f"output={tmp_path / 'runs'}"],
    )
    batch = next(iter(train_loader(read_manifests_in(several)["train"], config)))
    assert batch.label.shape == (8, 3) and batch.label.dtype == torch.float32
    summary = train(config)
    with open(os.path.join(summary["folder"], "metrics.csv"), newline="") as file:
        row = next(csv.DictReader(file))
    assert 0 < float(row["val_loss"]) < 2
    assert summary["val_map"] == pytest.approx(float(row["val_map"]), abs=1e-6) and 0 < summary["test_map"] <= 1
    # what classify and test do with its weights: a sigmoid for each class
    from softpool3d.runs.checkpoint import load_weights

    learned = load_weights(summary["weights"]).config
    assert learned.optim.loss == "binary"
    logits = torch.tensor([[2.0, 2.0, -1.0]])
    views = torch.zeros(1, 1, 3, 4, 48, 48, dtype=torch.uint8)
    assert torch.allclose(view_probabilities(lambda _: logits, views, learned), logits.sigmoid())


def test_the_best_weights_are_those_of_the_best_map(tmp_path):
    def scores(*rows):
        return Scores(torch.tensor(rows), torch.tensor([[1, 0], [1, 1]], dtype=torch.uint8), torch.arange(2))

    ranked, likely = scores([0.4, 0.3], [0.5, 0.6]), scores([0.9, 0.8], [0.9, 0.1])  # mAP 1 and 3/4; top-1 the same
    worse = scores([0.4, 0.5], [0.3, 0.6])  # mAP 1, top-1 1/2
    keeper = Keeper(tmp_path, load_config("r3d_softpool"), ("a", "b"))
    assert all(keeper.offer({}, one, name, write=False) for name, one in (("1", likely), ("2", worse), ("3", ranked)))
    assert not keeper.offer({}, likely, "4", write=False)
    assert (keeper.mean_average_precision, keeper.top1) == (1, 1)
