"""Means of scores, worked out by hand, and members that do not fit together."""

from dataclasses import replace

import pytest
import torch

from softpool3d.analysis.ensemble import combine
from softpool3d.errors import UsageError
from softpool3d.evaluation.scores import Scores, VideoScores

CLASSES, NAMES = ("a", "b", "c"), ("one.npz", "two.npz")


def member(probabilities, labels=(0, 1), videos=("v0", "v1"), classes=CLASSES, **about):
    scores = Scores(torch.tensor(probabilities), torch.tensor(labels), torch.arange(len(videos)))
    return VideoScores(scores, tuple(videos), classes, {"dataset": "folder", "split": "test"} | about)


ONE = [[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]
TWO = [[0.1, 0.6, 0.3], [0.1, 0.8, 0.1]]


def test_weighted_means():
    members = [member(ONE), member(TWO)]
    together = combine(members, NAMES)
    torch.testing.assert_close(together.scores.probabilities, (torch.tensor(ONE) + torch.tensor(TWO)) / 2)
    assert together.scores.accuracy() == 0.5 and together.videos == ("v0", "v1")
    weighted = combine(members, NAMES, [1, 3]).scores.probabilities
    torch.testing.assert_close(weighted, 0.25 * torch.tensor(ONE) + 0.75 * torch.tensor(TWO))
    product = (torch.tensor(ONE) * torch.tensor(TWO)).sqrt()
    geometric = combine(members, NAMES, mean="geometric").scores.probabilities
    torch.testing.assert_close(geometric, product / product.sum(1, keepdim=True))


def test_members_in_another_order_of_videos_and_classes():
    expected = combine([member(ONE), member(TWO)], NAMES)
    columns, rows = [2, 0, 1], [1, 0]
    shuffled = torch.tensor(TWO)[rows][:, columns].tolist()
    other = member(shuffled, labels=(2, 1), videos=("v1", "v0"), classes=("c", "a", "b"))  # b and a
    together = combine([member(ONE), other], NAMES)
    torch.testing.assert_close(together.scores.probabilities, expected.scores.probabilities)
    assert together.scores.label.tolist() == [0, 1]


def test_several_labels():
    labels = torch.tensor([[1, 0, 1], [0, 1, 0]], dtype=torch.uint8)
    members = [member(ONE), member(TWO)]
    for one in members:
        one.scores.label = labels
    together = combine(members, NAMES, mean="geometric").scores
    torch.testing.assert_close(together.probabilities, (torch.tensor(ONE) * torch.tensor(TWO)).sqrt())
    assert together.label.tolist() == labels.tolist()


def test_members_that_do_not_fit_together():
    one = member(ONE)
    for other, message in (
        (member(TWO, classes=("a", "b", "d")), "one.npz and two.npz are about other classes: 'c' is in one.npz alone"),
        (member(TWO, split="val"), "are about another split: test and val"),
        (member(TWO, labels=(0, 2)), r"have another label for 1 videos \(one is v1\)"),
        (member(TWO, videos=("v0", "v2")), r"two.npz has no scores of 1 videos .*\(the first: v1\); --common"),
        (member([*TWO, TWO[0]], (0, 1, 0), ("v0", "v1", "v2")), r"one.npz has no scores of 1 videos .*the first: v2"),
    ):
        with pytest.raises(UsageError, match=message):
            combine([one, other], NAMES)
    together = combine([one, member(TWO, videos=("v1", "v2"), labels=(1, 0))], NAMES, common=True)
    assert together.videos == ("v1",) and together.scores.probabilities.shape == (1, 3)
    with pytest.raises(UsageError, match="no video that one.npz, two.npz have in common"):
        combine([one, member(TWO, videos=("x", "y"))], NAMES, common=True)
    for weights, message in (([1], "1 weights for 2 files"), ([1, -1], "0 or more"), ([0, 0], "not all 0")):
        with pytest.raises(UsageError, match=message):
            combine([one, member(TWO)], NAMES, weights)


def test_names_with_letters_beyond_ascii_survive_the_file(tmp_path):
    names = ("Grüße/口.mp4", "odd\udcff.mp4")  # the second is no UTF-8 on disk
    written = replace(member(ONE), videos=names)
    written.save(tmp_path / "scores.npz")
    again = VideoScores.load(tmp_path / "scores.npz")
    assert again.videos == names and again.about == written.about
    assert torch.equal(again.scores.probabilities, written.scores.probabilities)
