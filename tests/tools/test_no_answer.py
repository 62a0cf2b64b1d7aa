"""A network whose answers are no numbers: every tool says so, and none calls the first class the likeliest."""

import json
import sys

import pytest
import torch
from scores import CLASSES, write_data_set, write_weights
from videos import write_numbered

from softpool3d import Classifier, cli
from softpool3d.inference.predictor import NoAnswer
from softpool3d.runs.checkpoint import load_weights, save_weights

MESSAGE = "the network's answer is not finite: its weights hold NaN or inf, or its precision is too low"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    path = write_weights(folder / "w.safetensors", write_data_set(folder / "data", 3, 2, 2), "test.num_clips=1")
    loaded = load_weights(path)
    loaded.state["fc.bias"][1] = torch.nan
    save_weights(path, loaded.state, loaded.config, CLASSES)
    for number in range(2):
        write_numbered(folder / f"{number}.mp4", 12)
    return path


@pytest.mark.parametrize("average", ["softmax", "logits"])
@pytest.mark.parametrize("loss", [None, "binary"])
def test_an_answer_that_is_no_number_has_no_labels(weights, average, loss):
    classifier = Classifier(weights, device="cpu")
    classifier.config.test.average, classifier.config.optim.loss = average, loss
    with pytest.raises(NoAnswer, match=MESSAGE):
        classifier(weights.parent / "0.mp4")


@pytest.mark.parametrize("options", [["--jobs", "0", "--out", "out.jsonl"], ["--timeline"]])
def test_classify_names_each_file_that_it_has_no_answer_for(weights, monkeypatch, capsys, tmp_path, options):
    files = [weights.parent / f"{number}.mp4" for number in range(2)]
    monkeypatch.chdir(tmp_path)
    command = ["softpool3d", "classify", *files, "--weights", weights, "--device", "cpu", *options]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    with pytest.raises(SystemExit) as ended:
        cli.run()
    errors = capsys.readouterr().err
    assert ended.value.code == 1 and all(f"cannot classify {file}: {MESSAGE}" in errors for file in files), errors
    if "--out" in options:
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert rows == [{"file": str(file), "error": MESSAGE} for file in files]
