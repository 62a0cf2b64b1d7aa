"""What a run says at its end."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from softpool3d.config import Config
from softpool3d.datasets.manifest import Clip, Manifest
from softpool3d.evaluation.scores import Scores
from softpool3d.runtime import progress
from softpool3d.runtime.progress import Display, duration
from softpool3d.training.closing import closing_lines

CLASSES = ("jump", "run", "wave")


def ended(answers, sure=0.6, learned=0.9, folder=Path("runs/x"), **splits):
    """A run of three classes; answers: (label, guess) of each tested clip, `sure` of them all."""
    splits = {"test": answers} | splits
    judged, manifests = {}, {}
    for split, pairs in splits.items():
        labels = [label for label, _ in pairs]
        probabilities = torch.full((len(pairs), 3), (1 - sure) / 2)
        for row, (_, guess) in zip(probabilities, pairs, strict=True):
            row[guess] = sure
        judged[split] = Scores(probabilities, torch.tensor(labels), torch.arange(len(pairs)))
        clips = [Clip(f"{split}/{n}.mp4", label) for n, label in enumerate(labels)]
        manifests[split] = Manifest(CLASSES, clips, source=split)
    manifests["train"] = Manifest(CLASSES, [Clip(f"{n}.mp4", n % 3) for n in range(60)], source="train")
    disk = SimpleNamespace(folder=folder, rows=[{"train_top1": str(learned)}])
    return SimpleNamespace(judged=judged, manifests=manifests, classes=CLASSES, disk=disk, config=Config())


RIGHT = [(n % 3, n % 3) for n in range(27)]


def test_what_is_wrong_and_how_sure_it_is():
    lines = closing_lines(ended([*RIGHT, (0, 1), (0, 1), (2, 1)]))
    assert lines[0].startswith("with other clips like these top-1 would be 7") and "95%, 30 clips" in lines[0]
    assert lines[1] == "worst classes: jump 82% of 11, wave 90% of 10"
    assert lines[2] == "most often taken for another: jump for run (2 of 11), wave for run (1 of 10)"
    assert lines[-4:] == [
        "next:",
        "  softpool3d classify FILE --weights runs/x",
        "  softpool3d test --weights runs/x",
        "  softpool3d explain FILE --weights runs/x",
    ]
    assert not any("labels worth a look" in line for line in lines)  # it was sure of none of them


def test_labels_that_may_be_wrong_are_named_where_the_network_can_be_trusted():
    lines = closing_lines(ended([*RIGHT, (0, 1)], sure=0.9, val=[(2, 0), (1, 1)]))
    at = lines.index(
        "labels worth a look: of 30 clips that the network is sure of, 2 are labelled as something else, such as"
    )
    assert set(lines[at + 1 : at + 3]) == {
        "  test/27.mp4: labelled jump, looks like run (90%)",
        "  val/0.mp4: labelled wave, looks like jump (90%)",
    }
    often_wrong = closing_lines(ended([(0, 1)] * 10 + RIGHT[:20], sure=0.9))
    assert not any("labels worth a look" in line for line in often_wrong)


@pytest.mark.parametrize(
    ("answers", "learned", "words"),
    [
        (RIGHT, 0.9, None),
        ([(0, 1)] * 10 + RIGHT[:10], 0.98, "it knows 98% of the clips it trained on and 50% of others: more clips"),
        ([(0, 1)] * 10 + RIGHT[:10], 0.98, "20 of a class; jump needs them most"),
        ([(0, 1)] * 10 + RIGHT[:10], 0.5, "it knows only 50% of the clips it trained on: train longer"),
        ([(0, 1)] * 3 + RIGHT[:17], 0.9, "what may help: more clips of jump; train longer"),
    ],
)
def test_what_may_help_goes_by_both_accuracies(answers, learned, words):
    advice = [line for line in closing_lines(ended(answers, learned=learned)) if line.startswith("what may help")]
    assert (words in advice[0]) if words else not advice


def test_several_labels_and_no_clips():
    several = ended(RIGHT)
    several.judged["test"] = Scores(torch.rand(4, 3), torch.ones(4, 3), torch.arange(4))
    assert closing_lines(several)[0] == "next:"
    none = ended(RIGHT)
    none.judged["test"] = Scores(torch.rand(0, 3), torch.zeros(0, dtype=torch.long), torch.arange(0))
    assert closing_lines(none)[0] == "next:"


@pytest.mark.parametrize(
    ("total", "done", "line"),
    [
        (100, 0, "4 minutes to go: 87 steps of 2.00 s, and what evaluating takes"),
        (113, 13, "4 minutes to go: 87 steps of 2.00 s, and what evaluating takes"),  # resumed
        (20, 0, None),  # over soon
    ],
)
def test_the_time_to_go_is_said_once_after_a_few_steps(total, done, line, monkeypatch):
    console, now = Console(file=io.StringIO(), width=200), [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    display = Display(total, done, console, enabled=True, beside=0.5)
    for step in range(total - done):
        now[0] += 2 if step >= 3 else 60  # the first ones compile
        display.advance()
    assert console.file.getvalue() == (f"{line}\n" if line else "")


@pytest.mark.parametrize(
    ("seconds", "words"), [(40, "40 seconds"), (150, "2 minutes"), (9000, "2.5 hours"), (400_000, "4.6 days")]
)
def test_a_duration_in_words(seconds, words):
    assert duration(seconds) == words
