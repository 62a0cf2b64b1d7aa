"""Numbers that can be worked out by hand."""

import numpy as np
import pytest
import torch

from softpool3d.evaluation.metrics import measure, most_confused, share_interval
from softpool3d.evaluation.plots import confusion_figure, png
from softpool3d.evaluation.results import _confusion
from softpool3d.evaluation.scores import Scores

CLASSES = ("a", "b", "c", "never")


def scores_of(predictions, labels, certainty=0.7):
    """One clip for each prediction; the rest of the probability is shared by the other classes."""
    probabilities = torch.full((len(labels), len(CLASSES)), (1 - certainty) / (len(CLASSES) - 1))
    probabilities[torch.arange(len(labels)), torch.tensor(predictions)] = certainty
    return Scores(probabilities, torch.tensor(labels), torch.arange(len(labels)))


def test_accuracies_by_hand():
    metrics = measure(scores_of([0, 0, 0, 1, 1, 2, 0, 0], [0, 0, 0, 0, 0, 2, 2, 1]), CLASSES)
    assert metrics.summary["top1"] == 4 / 8
    assert metrics.summary["top5"] == 1
    assert metrics.summary["mean_class_accuracy"] == pytest.approx((3 / 5 + 0 + 1 / 2) / 3)  # `never` has no clips
    assert metrics.summary["classes_without_clips"] == 1
    assert metrics.confusion.tolist() == [[3, 2, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    a, b, c, never = metrics.classes
    assert (a.clips, a.top1, a.precision, a.mistaken_for, a.mistakes) == (5, 3 / 5, 3 / 5, "b", 2)
    assert (b.clips, b.top1, b.precision, b.mistaken_for) == (1, 0, 0, "a")
    assert (c.top1, c.precision) == (1 / 2, 1)
    assert (never.clips, never.top1, never.precision, never.mistaken_for) == (0, None, None, "")
    pairs = most_confused(metrics.confusion, CLASSES)
    assert [(p.label, p.prediction, p.count, p.clips) for p in pairs] == [
        ("a", "b", 2, 5),
        ("b", "a", 1, 1),
        ("c", "a", 1, 2),
    ]


@pytest.mark.parametrize("certainty", [0.4, 0.7, 0.98])
def test_calibration_error_is_the_distance_of_certainty_and_accuracy(certainty):
    metrics = measure(scores_of([0, 1, 2, 0], [0, 1, 0, 0], certainty), CLASSES)
    assert metrics.summary["calibration_error"] == pytest.approx(abs(certainty - 3 / 4), abs=1e-6)


def test_the_interval_is_that_of_resampled_clips():
    right = np.arange(97) < 60
    rng = np.random.default_rng(1)
    resampled = right[rng.integers(0, 97, (20_000, 97))].mean(1)
    expected = np.quantile(resampled, [0.025, 0.975])
    assert share_interval(60, 97) == pytest.approx(expected, abs=0.011)  # one clip of 97


def test_the_interval_has_a_width_where_all_or_none_are_right():
    """Wilson's: the roots of |share - p| = z sqrt(p (1 - p) / n)."""
    low, high = share_interval(0, 8)
    assert low == 0 and high == pytest.approx(1.96**2 / (8 + 1.96**2), abs=1e-4)
    assert share_interval(80, 80) == pytest.approx((0.9542, 1), abs=1e-4)


def test_several_labels():
    """Average precision by its definition: the mean, over a class's clips by falling score, of precision there."""
    probabilities = torch.tensor([[0.9, 0.2, 0.1], [0.8, 0.6, 0.1], [0.7, 0.4, 0.1], [0.6, 0.1, 0.1]])
    labels = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]], dtype=torch.uint8)
    metrics = measure(Scores(probabilities, labels, torch.arange(4)), ("a", "b", "never"))
    assert [row.average_precision for row in metrics.classes] == [pytest.approx((1 + 2 / 3) / 2), 1.0, None]
    assert metrics.summary["mean_average_precision"] == pytest.approx((5 / 6 + 1) / 2)
    assert metrics.summary["top1"] == 2 / 4
    assert metrics.confusion is None
    expected = torch.nn.functional.binary_cross_entropy(probabilities, labels.float())
    assert metrics.summary["loss"] == pytest.approx(float(expected))


@pytest.mark.parametrize("count", [3, 30, 400])
def test_pictures_of_few_and_many_classes(count):
    confusion = torch.eye(count, dtype=torch.int64) * 5
    figure = confusion_figure(confusion, [f"$class {n}" for n in range(count)], "title")
    assert len(figure.axes[0].get_yticklabels()) == count or count == 400
    assert png(figure, dpi=40).startswith(b"\x89PNG")


def test_thousands_of_classes_share_the_cells_of_a_picture_and_the_file_has_the_pairs_that_occur():
    classes = [f"class {n}" for n in range(3000)]
    confusion = torch.zeros(3000, 3000, dtype=torch.int64)
    confusion[4, 4], confusion[4, 2999] = 3, 1
    figure = confusion_figure(confusion, classes, "title")
    drawn = figure.axes[0].images[0].get_array()
    assert drawn.shape == (1000, 1000) and (drawn[1, 1], drawn[1, 999], drawn.sum()) == (0.75, 0.25, 1)
    assert "3000 classes, 3.0 in a row" in figure.axes[0].get_title()
    rows = list(_confusion(confusion, classes))
    assert rows[1:] == [["class 4", "class 4", 3], ["class 4", "class 2999", 1]]
