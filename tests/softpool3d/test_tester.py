"""Testing on a split: the same numbers however it is done."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from locks import HOLDS, held
from scores import CLASSES, write_data_set, write_weights
from torch.distributed import TCPStore
from videos import damaged_files

from softpool3d.datasets import read_manifests
from softpool3d.datasets.inputs import clip_name
from softpool3d.datasets.loader import EvalClips
from softpool3d.datasets.views import read_views
from softpool3d.errors import UsageError, WorkError
from softpool3d.evaluation import tester
from softpool3d.evaluation.scores import Scores, VideoScores
from softpool3d.evaluation.subject import subject_of_config, subject_of_weights
from softpool3d.inference.classifier import Classifier
from softpool3d.runs.checkpoint import load_weights
from softpool3d.runtime.interrupt import Interrupted


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return write_weights(folder / "best.safetensors", write_data_set(folder / "data"))


def run(weights, out, *overrides, **options):
    return tester.test(subject_of_weights(weights, list(overrides)), out=out, **options)


def test_scores_are_those_of_the_network(weights, tmp_path):
    """Against the network, run on each view by itself."""
    result = run(weights, tmp_path / "out", "test.num_clips=2", "test.num_crops=3")
    found = VideoScores.load(tmp_path / "out" / "scores.npz")
    classifier = Classifier(weights, num_clips=2, num_crops=3)
    data = classifier.config.data
    manifest = read_manifests(data)["test"]
    right = 0
    for number, clip in enumerate(manifest.clips):
        views = read_views(clip, data, 2, 3).clips.float().to(classifier.device) / 255
        mean, std = (views.new_tensor(v).view(1, 3, 1, 1, 1) for v in (data.mean, data.std))
        with torch.no_grad():
            each = [classifier.model(v[None])[0].softmax(-1) for v in (views - mean) / std]
        expected = torch.stack(each).mean(0).cpu()
        torch.testing.assert_close(found.scores.probabilities[number], expected, atol=1e-5, rtol=1e-4)
        assert found.scores.label[number] == clip.label
        right += int(expected.argmax()) == clip.label
    assert result["videos"] == 13 and result["top1"] == pytest.approx(right / 13)
    assert found.classes == CLASSES and found.videos[1] == "video 1.mp4#0.05-0.55"
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == result
    with open(tmp_path / "out" / "confusion.csv", newline="", encoding="utf-8-sig") as file:
        header, *rows = csv.reader(file)
    assert header[1:] == [row[0] for row in rows] == list(CLASSES)
    assert sum(int(row[1 + n]) for n, row in enumerate(rows)) == right
    with open(tmp_path / "out" / "per_class.csv", newline="", encoding="utf-8-sig") as file:
        assert [(row["name"], row["clips"]) for row in csv.DictReader(file)] == list(zip(CLASSES, "544", strict=True))
    with open(tmp_path / "out" / "videos.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    shares = [float(row["probability_of_label"]) for row in rows]
    assert len(rows) == 13 and shares == sorted(shares) and sum(r["label"] == r["prediction"] for r in rows) == right
    place = [clip_name(clip) for clip in manifest.clips].index(rows[0]["path"])
    assert rows[0]["label"] == CLASSES[manifest.clips[place].label] and 0 < shares[0] == pytest.approx(
        float(found.scores.probabilities[place, manifest.clips[place].label]), abs=1e-6
    )
    assert (tmp_path / "out" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "out" / "partial").exists()


def test_another_split_has_a_folder_of_its_own(tmp_path):
    weights = write_weights(tmp_path / "best.safetensors", write_data_set(tmp_path / "data", 3, 2, 2))
    for split, folder in (("val", "test-val"), ("test", "test")):
        run(weights, None, "test.num_clips=1", split=split)
        assert json.loads((tmp_path / folder / "results.json").read_text())["split"] == split


def test_logits_can_be_averaged(weights, tmp_path):
    run(weights, tmp_path / "softmax", "test.num_clips=3")
    run(weights, tmp_path / "logits", "test.num_clips=3", "test.average=logits")
    one, other = (VideoScores.load(tmp_path / n / "scores.npz").scores.probabilities for n in ("softmax", "logits"))
    assert not torch.allclose(one, other, atol=1e-7)  # a geometric mean, normalised, is another one
    classifier = Classifier(weights, num_clips=3)
    for number, clip in enumerate(read_manifests(classifier.config.data)["test"].clips):
        logits = classifier.predictor(classifier.read(clip).clips)
        torch.testing.assert_close(one[number], logits.softmax(1).mean(0))
        torch.testing.assert_close(other[number], logits.mean(0).softmax(0))


@pytest.mark.parametrize("processes", [2, 3])
def test_each_video_counts_once_under_any_number_of_processes(weights, tmp_path, processes):
    """13 and 7 videos in batches of 4: the processes have unequal shares, and unequal numbers of batches."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom softpool3d.evaluation.subject import subject_of_weights\n"
        "from softpool3d.evaluation.tester import test\n"
        "for split in ('test', 'val'):\n"
        "    test(subject_of_weights(sys.argv[1], ['test.num_clips=1']), split, Path(sys.argv[2]) / split)\n"
    )
    environment = os.environ | {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # held here, as torchrun holds its own
    environment |= {"MASTER_PORT": str(meeting.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(weights), str(tmp_path / "many")],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    printed = [process.communicate(timeout=180) for process in started]
    assert [process.returncode for process in started] == [0] * processes, printed
    assert "top-1" in printed[0][0] and not any(out for out, _ in printed[1:])  # the first one speaks
    for split, count in (("test", 13), ("val", 7)):
        run(weights, tmp_path / split, "test.num_clips=1", split=split)
        one, many = (VideoScores.load(f / "scores.npz") for f in (tmp_path / split, tmp_path / "many" / split))
        assert one.videos == many.videos and len(one.videos) == count
        assert torch.equal(one.scores.label, many.scores.label)
        torch.testing.assert_close(one.scores.probabilities, many.scores.probabilities, atol=1e-6, rtol=1e-5)


def test_a_test_that_was_stopped_goes_on_where_it_was(weights, tmp_path, monkeypatch, capsys):
    whole = run(weights, tmp_path / "whole", "test.num_clips=1")
    real, read = tester.scored_batches, []

    def stopping(*arguments):
        for number, pair in enumerate(real(*arguments)):
            if number == 1:
                os.kill(os.getpid(), signal.SIGINT)
            yield pair

    def stopped(**options):
        with monkeypatch.context() as patch, pytest.raises(Interrupted, match="the same command goes on"):
            patch.setattr(tester, "scored_batches", stopping)
            run(weights, tmp_path / "out", "test.num_clips=1", **options)

    stopped()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["partial"]
    with pytest.raises(UsageError, match="holds the results of another test"):
        run(weights, tmp_path / "out", "test.num_clips=2")

    item = EvalClips.__getitem__
    monkeypatch.setattr(EvalClips, "__getitem__", lambda self, key: read.append(key) or item(self, key))
    result = run(weights, tmp_path / "out", "test.num_clips=1")
    assert len(read) == 13 - 8 and "going on: 8 of them were tested" in capsys.readouterr().out
    assert {k: v for k, v in result.items() if k != "seconds"} == {k: v for k, v in whole.items() if k != "seconds"}

    again = run(weights, tmp_path / "out", "test.num_clips=1")  # finished: nothing is read
    assert len(read) == 13 - 8 and again == result and "tested already" in capsys.readouterr().out
    run(weights, tmp_path / "out", "test.num_clips=1", overwrite=True)
    assert len(read) == 13 - 8 + 13
    stopped(overwrite=True)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["videos"] == 13  # the old ones stay till then
    read.clear()
    run(weights, tmp_path / "out", "test.num_clips=1", overwrite=True)
    assert len(read) == 13 - 8


def test_a_test_that_was_killed_goes_on_from_what_was_saved(weights, tmp_path, capsys):
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom softpool3d.evaluation import tester\n"
        "from softpool3d.evaluation.subject import subject_of_weights\n"
        "real = tester.scored_batches\ntester.SAVE_EVERY_S = 0\n"
        "def killed(*arguments):\n"
        "    for number, pair in enumerate(real(*arguments)):\n"
        "        if number == 2:\n            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield pair\n"
        "tester.scored_batches = killed\n"
        "tester.test(subject_of_weights(sys.argv[1], ['test.num_clips=1']), out=Path(sys.argv[2]))\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(weights), str(tmp_path / "out")], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (tmp_path / "out" / "partial" / "process-9.npz").write_bytes(b"PK\x03\x04cut off")  # by a disk that was full
    result = run(weights, tmp_path / "out", "test.num_clips=1")
    assert "going on: 8 of them were tested" in capsys.readouterr().out
    whole = run(weights, tmp_path / "whole", "test.num_clips=1")
    assert {k: v for k, v in result.items() if k != "seconds"} == {k: v for k, v in whole.items() if k != "seconds"}


def test_results_are_not_lost_to_another_test(weights, tmp_path):
    first = run(weights, tmp_path / "out", "test.num_clips=1")
    with pytest.raises(UsageError, match="--out .* holds the results of another test; .*--overwrite"):
        run(weights, tmp_path / "out", "test.num_clips=2")
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == first
    (tmp_path / "run").mkdir()
    mine = tmp_path / "run" / "best.safetensors"
    mine.write_bytes(weights.read_bytes())
    for clips in (1, 2, 1):
        run(tmp_path / "run", None, f"test.num_clips={clips}")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["best.safetensors", "test", "test-2"]


def test_two_tests_at_once_do_not_write_into_one_folder(weights, tmp_path, monkeypatch):
    """The same test is refused, another one takes the next folder; with --out every one is refused."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.safetensors").write_bytes(weights.read_bytes())
    folder = tmp_path / "run" / "test"
    request = run(tmp_path / "run", None, "test.num_clips=1")["request"]
    shutil.rmtree(folder)
    with held(folder, request, is_folder=True) as pid:
        with pytest.raises(UsageError, match=f"{folder} is being written by process {pid} on .*; wait for it or stop"):
            run(tmp_path / "run", None, "test.num_clips=1")
        run(tmp_path / "run", None, "test.num_clips=2")
        with pytest.raises(UsageError, match="is being written by process"):
            run(tmp_path / "run", folder, "test.num_clips=2", overwrite=True)
        assert [path.name for path in folder.iterdir()] == [".lock"]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"best.safetensors", "test", "test-2"}
    assert run(tmp_path / "run", None, "test.num_clips=1")["request"] == request
    assert (folder / "results.json").is_file() and not list((tmp_path / "run").rglob(".lock"))


def test_a_folder_is_claimed_while_the_work_goes_on(weights, tmp_path, monkeypatch):
    real, read = tester.scored_batches, []

    def watched(*arguments):
        command = [sys.executable, "-c", HOLDS, tmp_path / "out", "yes", ""]
        other = subprocess.run(command, capture_output=True, text=True)
        assert other.returncode and not other.stdout and f"process {os.getpid()} on" in other.stderr
        read.append(True)
        yield from real(*arguments)

    monkeypatch.setattr(tester, "scored_batches", watched)
    run(weights, tmp_path / "out", "test.num_clips=1")
    assert read
    with held(tmp_path / "out", is_folder=True):
        pass


def test_unreadable_files_are_named_and_not_counted(tmp_path, capsys):
    root = write_data_set(tmp_path / "data", test=5)
    damaged = damaged_files(tmp_path)
    rows = "".join(f"{path},0,,\n" for path in [damaged["text"], damaged["empty"], tmp_path / "absent.mp4"])
    with (root / "test.csv").open("a") as file:
        file.write(rows)
    weights = write_weights(tmp_path / "best.safetensors", root)
    result = run(weights, tmp_path / "out")
    assert (result["videos"], result["unreadable"]) == (5, 3)
    assert capsys.readouterr().out.count("skipped: cannot read") == 3
    with open(tmp_path / "out" / "bad_files.csv", newline="", encoding="utf-8-sig") as file:
        assert [(row["split"], row["index"]) for row in csv.DictReader(file)] == [("test", str(n)) for n in (5, 6, 7)]
    (root / "test.csv").write_text("path,label,start,end\n" + rows)
    with pytest.raises(WorkError, match="not one of the videos could be read"):
        run(weights, tmp_path / "none")


def test_labels_count_into_the_classes_of_the_weights(tmp_path):
    """A data set with the classes in another order, or with some of them, is read by their names."""
    root = write_data_set(tmp_path / "data")
    weights = write_weights(tmp_path / "best.safetensors", root)
    run(weights, tmp_path / "before")
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in reversed(CLASSES)))
    for split in ("train", "test"):
        path = root / f"{split}.csv"
        rows = path.read_text().splitlines()
        turned = (row.split(",") for row in rows[1:])
        text = [",".join([path, str(2 - int(label)), *times]) for path, label, *times in turned]
        path.write_text("\n".join([rows[0], *text]) + "\n")
    run(weights, tmp_path / "after")
    before, after = (VideoScores.load(tmp_path / name / "scores.npz").scores for name in ("before", "after"))
    assert torch.equal(before.label, after.label) and torch.equal(before.probabilities, after.probabilities)
    (root / "classes.txt").write_text("clapping\nrunning\nwaving\n")
    with pytest.raises(
        UsageError, match=r"knows 3 classes .* and 1 of the data set's 3 are not among them \(running\)"
    ):
        run(weights, tmp_path / "other")


def test_videos_with_several_labels(tmp_path, capsys):
    root = write_data_set(tmp_path / "data", test=5)
    for split, labels in (("train", ["0;1", "1", "2"]), ("test", ["0;1", "", "2", "0", "1;2"])):
        rows = [f"video {n % 3}.mp4,{some},{n * 0.05:g},{n * 0.05 + 0.5:g}" for n, some in enumerate(labels)]
        (root / f"{split}.csv").write_text("\n".join(["path,labels,start,end", *rows]) + "\n")
    (root / "val.csv").unlink()
    weights = write_weights(tmp_path / "best.safetensors", root, "optim.loss=binary")
    result = run(weights, tmp_path / "out")
    scores = VideoScores.load(tmp_path / "out" / "scores.npz").scores
    assert scores.label.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 1]]
    assert (scores.probabilities.sum(1) - 1).abs().min() > 0.01  # sigmoids, each by itself
    precision = []
    for c in range(3):
        order = scores.probabilities[:, c].argsort(descending=True)
        hits = scores.label[order, c].float()
        precision.append(float((hits.cumsum(0) / torch.arange(1, 6) * hits).sum() / hits.sum()))
    assert result["mean_average_precision"] == pytest.approx(sum(precision) / 3)
    assert "confusion" not in str(sorted((tmp_path / "out").iterdir())) and "mAP" in capsys.readouterr().out
    with open(tmp_path / "out" / "per_class.csv", newline="", encoding="utf-8-sig") as file:
        assert [row["clips"] for row in csv.DictReader(file)] == ["2", "2", "2"]


def test_requests_that_are_wrong(weights, tmp_path):
    for setting, said in (
        ("data.jitter=0.5", "data.jitter=0.5: that is done to training's clips alone"),
        ("data.flip=false", "data.flip=false: that is done to training's"),
    ):
        with pytest.raises(UsageError, match=said):
            subject_of_weights(weights, [setting])
    with pytest.raises(UsageError, match="a test learns nothing: optim.lr=1 cannot be changed"):
        subject_of_config("r3d_softpool", ["optim.lr=1"])
    with pytest.raises(UsageError, match="data.root=/x: the data set motion is generated and has no folder"):
        subject_of_weights(weights, ["data.dataset=motion", "data.root=/x"])
    uniform = ["data.sampling=uniform", "test.num_clips=3"]
    assert "test.num_clips=3 has no effect" in subject_of_weights(weights, uniform).note
    with pytest.raises(UsageError, match="the weights decide what the network is: model.width=8 cannot be changed"):
        subject_of_weights(weights, ["model.width=8"])
    with pytest.raises(UsageError, match="no such split .it has train, val, test"):
        run(weights, None, split="holdout")
    with pytest.raises(UsageError, match="--cfg: testing needs weights"):
        subject_of_config("r3d_softpool", ["data.motion_clips=[8,8,8]"])


def test_a_network_whose_answers_are_no_numbers(weights, tmp_path):
    loaded = load_weights(weights)
    subject = subject_of_weights(weights, [])
    with torch.no_grad():
        subject.model.state_dict()["fc.bias"][0] = float("nan")
    with pytest.raises(WorkError, match=r"answers for 13 of 13 videos are not finite \(the first: video 0.mp4#0-0.5\)"):
        tester.test(subject, out=tmp_path / "out")
    assert loaded.classes == CLASSES


def test_out_of_memory_is_said(weights, tmp_path, monkeypatch):
    subject = subject_of_weights(weights, [])
    monkeypatch.setattr(subject.model, "forward", lambda clips: torch.empty(2**60))
    with pytest.raises(WorkError, match="out of memory with test.batch_size=4 clips of 4 frames at 32 pixels; try"):
        tester.test(subject, out=tmp_path / "out")


def test_weights_of_others_are_tested_by_configuration(weights, tmp_path):
    loaded = load_weights(weights)
    torch.save(loaded.state, tmp_path / "theirs.pth")
    cfg = tmp_path / "theirs.yaml"
    cfg.write_text(loaded.config.to_yaml())
    tester.test(subject_of_config(cfg, [f"model.weights={tmp_path / 'theirs.pth'}"]), out=tmp_path / "theirs")
    run(weights, tmp_path / "ours")
    theirs, ours = (VideoScores.load(tmp_path / n / "scores.npz").scores.probabilities for n in ("theirs", "ours"))
    assert torch.equal(theirs, ours)
    with pytest.raises(UsageError, match="leaves fc.weight without a value"):
        subject_of_config(
            "r3d_softpool", [f"model.weights={tmp_path / 'theirs.pth'}", "model.width=4", "data.motion_clips=[8,8,8]"]
        )


def test_the_worst_videos_are_least_sure_of_their_label():
    given = torch.tensor([[0.1, 0.9, 0.0], [0.3, 0.3, 0.4], [0.6, 0.3, 0.1], [0.8, 0.15, 0.05]])
    scores = Scores(given, torch.tensor([0, 2, 1, 1]), torch.arange(4))
    found = VideoScores(scores, tuple("abcd"), ("x", "y", "z"), {})
    assert [(miss.video, miss.label, miss.prediction) for miss in found.worst()] == [
        *(("a", "x", "y"), ("d", "y", "x"), ("c", "y", "x"))
    ]
    assert found.worst(1)[0].probability == pytest.approx(0.1) and found.worst(1)[0].score == pytest.approx(0.9)
    several = Scores(given, torch.ones(4, 3, dtype=torch.int64), torch.arange(4))
    assert VideoScores(several, tuple("abcd"), ("x", "y", "z"), {}).worst() == []


def test_files_of_scores_that_are_damaged(weights, tmp_path):
    run(weights, tmp_path / "out")
    good = (tmp_path / "out" / "scores.npz").read_bytes()
    path = tmp_path / "scores.npz"
    for content in (b"", b"text", good[: len(good) // 2]):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="is no file of scores"):
            VideoScores.load(path)
    with np.load(tmp_path / "out" / "scores.npz") as file:
        arrays = dict(file)
    np.savez(path, **arrays | {"labels": arrays["labels"] + 3})
    with pytest.raises(UsageError, match="a label lies outside of the 3 classes"):
        VideoScores.load(path)
    np.savez(path, **arrays | {"videos": arrays["videos"][:5]})
    with pytest.raises(UsageError, match="do not fit together"):
        VideoScores.load(path)
