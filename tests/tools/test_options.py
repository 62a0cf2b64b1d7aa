"""Options of the verbs that other tests do not see: each is given, and what comes of it is looked at; where the work is
done by a function whose own tests see the argument, what that function is told."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scores import CLASSES, write_data_set, write_weights
from videos import write_numbered

from softpool3d.config_file import load_config
from softpool3d.datasets import reencode, verify
from softpool3d.datasets.video.decoder import DecodeError
from softpool3d.errors import WorkError
from softpool3d.evaluation import tester
from softpool3d.evaluation.scores import Scores, VideoScores
from softpool3d.evaluation.subject import subject_of_weights
from softpool3d.inference import bulk, classify_live, classify_timeline, exporter, predictor, trained, work
from softpool3d.inference.classifier import Classifier
from softpool3d.inference.exported import ExportedNetwork
from softpool3d.inference.exporter import export_weights
from softpool3d.runs.run import Run
from softpool3d.training import trainer


class Told:
    """Takes the place of a function, notes how it was called, and ends the command."""

    def __init__(self, monkeypatch, owner, name):
        self.calls = []

        def noted(*arguments, **settings):
            self.calls.append((arguments, settings))
            raise WorkError("enough")

        monkeypatch.setattr(owner, name, noted)

    @property
    def last(self):
        return self.calls[-1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("options") / "data", train=4, val=2, test=5)


@pytest.fixture(scope="module")
def weights(data, tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "best.safetensors", data)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_numbered(tmp_path_factory.mktemp("clip") / "clip.mp4", 40)


# --- train, test, study ----------------------------------------------------------------------------------------------


def test_train_hands_on_what_to_go_on_with(run, tmp_path, monkeypatch):
    told = Told(monkeypatch, trainer, "train")
    assert run("train", "--cfg", "r3d_softpool", "optim.lr=0.25").stderr == "error: enough\n"
    (config, resumed), settings = told.last
    assert config == load_config("r3d_softpool", ["optim.lr=0.25"]) and resumed is None
    assert settings == {"auto_resume": False, "force_resume": False}
    run("train", "--cfg", "r3d_softpool", "--resume", "auto", "seed=3")
    assert told.last[0][0].seed == 3 and told.last[1]["auto_resume"]
    old = Run.create(load_config("r3d_softpool", [f"output={tmp_path}", "optim.lr=0.25", "seed=5"]))
    (tmp_path / "new.yaml").write_text("optim:\n  lr: 0.125\n")
    run("train", "--resume", old.folder, "--cfg", tmp_path / "new.yaml", "--force-resume", "train.epochs=77")
    (config, resumed), settings = told.last
    assert (config.seed, config.optim.lr, config.train.epochs) == (5, 0.125, 77)
    assert resumed.folder == old.folder and settings == {"auto_resume": False, "force_resume": True}
    assert run("train", "--cfg", "r3d_softpool", "--print-config").returncode == 0 and len(told.calls) == 3


def test_test_tests_what_it_is_told_to(run, weights, tmp_path, monkeypatch):
    told = Told(monkeypatch, tester, "test")
    assert run("test", "--weights", weights).returncode == 1
    (subject, *rest), _ = told.last
    assert (subject.weights, subject.config.test.num_clips, *rest) == (str(weights), 2, None, None, False)
    out = tmp_path / "out"
    run("test", "--weights", weights, "--split", "val", "--out", out, "--overwrite", "test.num_clips=7")
    (subject, *rest), _ = told.last
    assert subject.config.test.num_clips == 7 and rest == ["val", out, True]
    (tmp_path / "a.yaml").write_text(subject_of_weights(weights, []).config.to_yaml())
    run("test", "--cfg", tmp_path / "a.yaml", f"model.weights={weights}", "data.sampling_rate=2")
    (subject, *_), _ = told.last
    assert subject.config.data.sampling_rate == 2 and subject.classes == CLASSES


def test_study_says_what_there_is_and_writes_its_page(run, data, tmp_path, monkeypatch):
    from softpool3d.analysis import study_run

    (tmp_path / "tiny.yaml").write_text("name: tiny\nmodel:\n  width: 4\n")
    text = "title: One\noutput: runs\nseeds: [0]\nnetworks: [tiny.yaml]\nreference: soft\n"
    text += "variants:\n  soft: [model.pool.kind=soft]\n  max: [model.pool.kind=max]\n"
    (tmp_path / "study.yaml").write_text(text)
    told = Told(monkeypatch, study_run, "run_study")
    base = ["study", "--cfg", tmp_path / "study.yaml", f"output={tmp_path / 'mine'}"]
    dry = run(*base, "--dry-run")
    assert dry.returncode == 0 and not told.calls and not (tmp_path / "mine").exists()
    assert dry.stdout.splitlines() == [
        f"{tmp_path / 'mine'}/tiny-{kind}-seed0: to be trained" for kind in ("soft", "max")
    ]
    (tmp_path / "mine" / "tiny-soft-seed0").mkdir(parents=True)
    first, second = run(*base, "--dry-run").stdout.splitlines()
    assert "move it away, and the study trains that run anew" in first and second.endswith("to be trained")
    (tmp_path / "mine" / "tiny-soft-seed0").rmdir()
    assert run(*base, "train.epochs=9", "--out", tmp_path / "page.md").returncode == 1
    (trials, _, _, jobs), _ = told.last
    assert [trial.config.train.epochs for trial in trials] == [9, 9] and jobs == 1
    assert "0 of 2 runs are finished" in (tmp_path / "page.md").read_text()
    assert not (tmp_path / "mine" / "study.md").exists()
    run(*base)
    assert "0 of 2 runs are finished" in (tmp_path / "mine" / "study.md").read_text()
    run(*base, "--data", data, "--jobs", 2)
    (trials, _, _, jobs), _ = told.last
    assert {trial.config.data.root for trial in trials} == {str(data)} and jobs == 2
    (tmp_path / "study.yaml").write_text(f"{text}sets:\n  {data.name}: []\n  absent: []\n")
    dry = run(*base, "--data", data.parent, "--dry-run")
    assert dry.stdout.startswith(f"absent: there is no folder {data.parent / 'absent'}; the study goes on without it\n")


# --- ensemble, compare -----------------------------------------------------------------------------------------------


def test_ensemble_takes_the_mean_and_the_videos_asked_for(run, tmp_path):
    one, two = [[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]], [[0.1, 0.6, 0.3], [0.1, 0.8, 0.1]]
    for name, probabilities, videos in (("a", one, ("v0", "v1")), ("b", two, ("v0", "v1")), ("c", two, ("v1", "v2"))):
        scores = Scores(torch.tensor(probabilities), torch.tensor([0, 0]), torch.arange(2))
        VideoScores(scores, videos, ("x", "y", "z"), {"dataset": "folder", "split": "test"}).save(
            tmp_path / f"{name}.npz"
        )

    def together(*arguments):
        found = run("ensemble", *arguments, "--out", tmp_path / "out", "--overwrite")
        assert found.returncode == 0, found.stderr
        return VideoScores.load(tmp_path / "out" / "scores.npz")

    a, b, c = (tmp_path / f"{name}.npz" for name in "abc")
    first, second = torch.tensor(one), torch.tensor(two)
    torch.testing.assert_close(together(a, b, "--weights", "1,3").scores.probabilities, (first + 3 * second) / 4)
    product = (first * second).sqrt()
    geometric = together(a, b, "--mean", "geometric").scores.probabilities
    torch.testing.assert_close(geometric, product / product.sum(1, keepdim=True))
    assert run("ensemble", a, c).returncode == 2
    assert together(a, c, "--common").videos == ("v1",)


def test_compare_puts_the_runs_in_order(run, tmp_path):
    results = {"a": (0.5, 0.3, 30.0), "b": (0.7, 0.2, 10.0), "c": (0.6, 0.4, 20.0)}
    for name, (val, top1, seconds) in results.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(load_config("r3d_softpool", [f"name={name}"]).to_yaml())
        (tmp_path / name / "metrics.csv").write_text(f"epoch,train_loss,val_top1\n1,2.0,{val}\n")
        summary = {"val_top1": val, "test_top1": top1, "seconds": seconds, "tested_on": "test"}
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    table, folders = tmp_path / "table.csv", [tmp_path / name for name in "cab"]
    for sort, order in (("given", "cab"), ("val", "bca"), ("test", "cab"), ("seconds", "bca")):
        found = run("compare", *folders, "--sort", sort, "--out", table, "--overwrite")
        assert found.returncode == 0, found.stderr
        assert [line.split(",")[0] for line in table.read_text().splitlines()[1:]] == list(order), sort
    assert run("compare", *folders, "--out", table).returncode == 2  # it is there
    found = run("compare", *folders[1:], "--sort", "test", "--out", table, "--overwrite")
    assert [line.split(",")[0] for line in table.read_text().splitlines()[1:]] == ["a", "b"]


# --- prepare ---------------------------------------------------------------------------------------------------------


def test_prepare_hands_on_how_to_check_and_copy(run, tmp_path, monkeypatch):
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(5):
            (tmp_path / "data" / label / f"{number}.mp4").write_bytes(b"x")
    checks, copies = Told(monkeypatch, verify, "bad_files"), Told(monkeypatch, reencode, "reencode")
    base = ["prepare", "folder", "--root", tmp_path / "data", "--max-missing", 0.25, "--workers", 3]
    assert run(*base, "--verify", "--out", tmp_path / "out").returncode == 1
    (paths, log, workers), limits = checks.last
    assert len(paths) == 10 and log == tmp_path / "out" / "manifest" / "checked.csv" and workers == 3
    assert limits["max_missing"] == 0.25 and not copies.calls
    assert run(*base, "--reencode", "--short-side", 100, "--gop", 5, "--crf", 30).returncode == 1
    (_, root, out, encoding, workers), limits = copies.last
    assert (root, out) == (tmp_path / "data", tmp_path / "data-100px") and len(checks.calls) == 1
    assert (encoding.short_side, encoding.gop, encoding.crf) == (100, 5, 30)
    assert workers == 3 and limits["max_missing"] == 0.25
    run(*base, "--reencode", "--out", tmp_path / "copies")
    assert copies.last[0][2] == tmp_path / "copies"


def test_prepare_takes_the_official_split_asked_for(run, tmp_path):
    from layouts import hmdb51

    root = hmdb51(tmp_path / "hmdb51")
    found = run("prepare", "hmdb51", "--root", root, "--split", 2)
    assert found.returncode == 0, found.stderr
    assert (root / "manifest-split2" / "train.csv").is_file() and not (root / "manifest-split1").exists()
    assert "data.official_split=2" in found.stdout


def test_copies_are_as_small_as_their_quality(tmp_path):
    """crf reaches the encoder: noise of quality 40 takes less than a fifth of the room of quality 10."""
    from softpool3d.datasets.manifest import Clip
    from softpool3d.datasets.video.encoder import write_video

    noise = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), np.uint8)
    write_video(tmp_path / "a.mp4", noise, 25, crf=5)
    sizes, noisy = {}, Clip(str(tmp_path / "a.mp4"), 0)
    for crf in (10, 40):
        reencode.encode_copy(noisy, str(tmp_path / f"{crf}.mp4"), reencode.Encoding(64, 8, crf))
        sizes[crf] = (tmp_path / f"{crf}.mp4").stat().st_size
    assert sizes[40] < sizes[10] / 5


# --- classify --------------------------------------------------------------------------------------------------------


def test_classify_hands_on_how_to_run_the_network(run, clip, weights, tmp_path, monkeypatch):
    told = Told(monkeypatch, work, "Classifier")
    options = ["--views", 4, "--crops", 3, "--device", "cpu", "--precision", "bf16", "--compile", "--max-missing", 0.4]
    assert run("classify", clip, "--weights", weights, "--batch", 7, *options).returncode == 1
    (given,), settings = told.last
    assert given.origin == str(weights)
    assert settings == {
        **{"device": "cpu", "num_clips": 4, "num_crops": 3, "precision": "bf16", "compile": True, "max_missing": 0.4},
        "batch": 7,
    }
    run("classify", clip, "--weights", weights)
    assert told.last[1] == dict.fromkeys(settings) | {"device": "auto", "compile": False}
    told = Told(monkeypatch, trained, "load_trained")
    (tmp_path / "a.pt2").write_bytes(b"")
    run("classify", clip, "--weights", tmp_path / "a.pt2", "--trust")
    assert told.last[0] == (str(tmp_path / "a.pt2"), torch.device("cpu"), True)


def test_classify_in_batches_of_the_size_asked_for(run, clip, weights, monkeypatch):
    """A batch of one: what a video gets does not depend on the videos beside it, to the bit."""
    sizes, forward = [], predictor.Predictor._forward

    def noted(self, part):
        sizes.append(len(part))
        return forward(self, part)

    monkeypatch.setattr(predictor.Predictor, "_forward", noted)
    assert run("classify", clip, "--weights", weights, "--views", 5, "--batch", 2).returncode == 0
    assert sizes == [2, 2, 1]


def test_classify_takes_the_views_asked_for(run, clip, weights):
    for options, views in (([], 2), (["--views", 3], 3), (["--views", 3, "--crops", 3], 9)):
        found = run("classify", clip, "--weights", weights, "--json", *options)
        assert json.loads(found.stdout)["views"] == views, found.stderr


@pytest.mark.parametrize(("jobs", "files", "processes"), [([], 1, 0), ([], 2, None), (["--jobs", 5], 2, 5)])
def test_classify_decodes_in_the_processes_asked_for(run, clip, weights, monkeypatch, jobs, files, processes):
    from softpool3d.datasets.parallel import cores

    told = Told(monkeypatch, bulk, "run_files")
    found = run("classify", *[clip, clip.parent / "other.mp4"][:files], "--weights", weights, "--topk", 2, *jobs)
    assert found.returncode == 1
    work, _, given = told.last[0]
    assert work.make.keywords == {"top_k": 2}
    assert given == (max(1, cores()) if processes is None else processes)


def test_classify_hands_on_how_to_slide_and_what_to_watch(run, clip, weights, monkeypatch):
    told = Told(monkeypatch, classify_timeline, "watch")
    options = ["--window", "1500ms", "--hop", "0.25", "--smooth", 5, "--min-score", 0.9]
    assert run("classify", clip, "--weights", weights, "--timeline", *options).returncode == 1
    (_, video, *rest), _ = told.last
    assert video == str(clip) and rest[:4] == [1.5, 0.25, 5, 0.9]
    run("classify", clip, "--weights", weights, "--timeline")
    assert told.last[0][2:6] == (None, None, 3, 0.5)
    told = Told(monkeypatch, classify_live, "follow")
    watching = (
        (["--camera", 7], (7, None, None, True)),
        (["--stream", "rtsp://a", "--window", 2, "--hop", "1m"], ("rtsp://a", 2.0, 60.0, False)),
        (["--stream", "rtsp://a", "--live"], ("rtsp://a", None, None, True)),
    )
    for options, expected in watching:
        run("classify", "--weights", weights, *options)
        assert told.last[0][1:] == expected


def test_live_labels_are_as_many_as_asked_for(run, weights, monkeypatch):
    def two(*_):
        yield 1.0, torch.tensor([0.2, 0.5, 0.3])
        yield 2.0, torch.tensor([0.7, 0.1, 0.2])

    monkeypatch.setattr(classify_live, "follow", two)
    found = run("classify", "--camera", 0, "--weights", weights, "--topk", 2, "--json")
    assert [[x["label"] for x in json.loads(line)["labels"]] for line in found.stdout.splitlines()] == [
        [CLASSES[1], CLASSES[2]],
        [CLASSES[0], CLASSES[2]],
    ]


def test_a_stream_that_comes_back_goes_on(run, weights, monkeypatch):
    """Not there, then there, ended, there again, broken off, and gone for good."""
    probabilities, refused = torch.tensor([0.2, 0.5, 0.3]), DecodeError("rtsp://a", "connection refused")
    rounds = iter([[refused], [1.0, 2.0], [], [0.5, DecodeError("rtsp://a", "end of file")]])

    def follow(*_):
        for one in next(rounds, [refused]):
            if isinstance(one, DecodeError):
                raise one
            yield one, probabilities

    monkeypatch.setattr(classify_live, "follow", follow)
    monkeypatch.setattr(classify_live, "_PAUSE_S", 0.05)
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[-1], sleep=lambda seconds: now.append(now[-1] + seconds))
    monkeypatch.setattr(classify_live, "time", clock)
    watching = ("classify", "--stream", "rtsp://a", "--weights", weights, "--json")
    found = run(*watching, "--reconnect", "300ms")
    times = [json.loads(line)["time"] for line in found.stdout.splitlines()]
    assert times[0] == 1.0 and times[1] == 2.0 and 2.5 <= times[2] < 3.0
    assert found.returncode == 1 and found.stderr.splitlines()[-6:] == [
        "cannot read rtsp://a: connection refused; trying again for 0.3 s",
        "rtsp://a is back after 0 s",
        "rtsp://a ended after 2.0 s; trying again for 0.3 s",
        "rtsp://a is back after 0 s",
        "rtsp://a broke off after 2.5 s (end of file); trying again for 0.3 s",
        "error: rtsp://a broke off after 2.5 s (connection refused); 3 windows done",
    ]
    rounds = iter([[1.0], [1.0]])
    found = run(*watching)
    assert found.stdout.count("time") == 1 and found.stderr.endswith(
        "rtsp://a ended after 1.0 s; 1 windows classified\n"
    )
    soon = run(*watching, "--reconnect", "soon")
    assert soon.returncode == 2 and "--reconnect soon: write a time above 0" in soon.stderr
    assert "--reconnect needs --camera or --stream" in run("classify", "a.mp4", "--reconnect", "3s").stderr


# --- visualize, explain, export --------------------------------------------------------------------------------------


def test_visualize_shows_the_part_and_the_poolings_asked_for(run, clip, tmp_path):
    part = ["--start", 0.4, "--seconds", 0.2, "--short-side", 24]
    pooled = ["--kernel", "1,2,3", "--pools", "soft,max", "--beta", "3,7"]
    found = run("visualize", clip, "--out", tmp_path / "a.png", *part, *pooled)
    assert found.returncode == 0, found.stderr
    assert "5 frames of 32x24, pooled to 5 frames of 10x12 (soft, beta 3, soft, beta 7, max); 0.2 s" in found.stdout
    whole = run("visualize", clip, "--out", tmp_path / "b.png", "--pools", "max", "--repeat", 2)
    assert "40 frames of 64x48, pooled to 20 frames of 32x24, 10 frames of 16x12 (max); 1.6 s" in whole.stdout
    late = run("visualize", clip, "--out", tmp_path / "c.png", "--start", 5)
    assert late.returncode == 2 and "--start 5.0: " in late.stderr and "ends after 1.56 s" in late.stderr


def test_visualize_lays_out_as_asked_for(run, clip, tmp_path):
    def size(*options):
        found = run("visualize", clip, "--out", tmp_path / "a.mp4", "--overwrite", "--pools", "avg", *options)
        assert found.returncode == 0, found.stderr
        from softpool3d.datasets.video.decoder import open_video

        with open_video(tmp_path / "a.mp4") as video:
            return tuple(video.frames([0]).shape[2:])

    beside, below = size("--seconds", 0.2), size("--seconds", 0.2, "--below")
    assert beside[1] > 1.5 * below[1] and below[0] > 1.4 * beside[0]
    widths = {}
    for columns in (2, 4):
        found = run("visualize", clip, "--out", tmp_path / f"{columns}.png", "--pools", "avg", "--columns", columns)
        assert found.returncode == 0, found.stderr
        widths[columns] = Image.open(tmp_path / f"{columns}.png").width
    assert widths == {2: 2 * 68 - 4, 4: 4 * 68 - 4}


def test_visualize_measures_only_where_asked_for(run, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run("visualize", clip, "--measure", "--pools", "avg", "--seconds", 0.4)
    assert found.returncode == 0 and "PSNR" in found.stdout and not list(tmp_path.iterdir())
    assert "PSNR" not in run("visualize", clip, "--pools", "avg", "--seconds", 0.4).stdout
    assert [path.name for path in tmp_path.iterdir()] == ["clip_pooled.mp4"]


def test_explain_looks_where_asked_for(run, clip, weights, tmp_path, monkeypatch):
    from softpool3d.visual import gradcam

    asked, real = [], gradcam.explain

    def noted(made, source, label, stage):
        asked.append((made.device.type, tuple(source.frames.shape), label, stage))
        return real(made, source, label, stage)

    monkeypatch.setattr(gradcam, "explain", noted)
    base = ["explain", clip, "--weights", weights]
    found = run(*base, "--out", tmp_path / "a.png", "--class", CLASSES[1], "--stage", "stage2", "--device", "cpu",
                "--seconds", 0.4, "--short-side", 24)  # fmt: skip
    assert found.returncode in (0, 1)
    assert asked == [("cpu", (10, 3, 24, 32), CLASSES[1], "stage2")]
    widths = {}
    for channels in (2, 3):
        maps = ["--method", "features", "--out", tmp_path / "maps.png", "--overwrite", "--channels", channels]
        found = run(*base, *maps)
        assert found.returncode == 0, found.stderr
        widths[channels] = Image.open(tmp_path / "maps.png").width
    assert widths == {2: 2 * 116 - 4, 3: 3 * 116 - 4}
    names = found.stdout.strip().rpartition("poolings: ")[2].split(", ")
    assert len(names) > 1
    found = run(*base, *maps, "--layers", f"*{names[-1]}")
    assert found.stdout.strip().endswith(f"1 poolings: {names[-1]}")


def test_export_hands_on_what_to_write(run, weights, tmp_path, monkeypatch):
    told = Told(monkeypatch, exporter, "export_weights")
    out = tmp_path / "a.pt2"
    assert run("export", "--weights", weights, "--out", out).returncode == 1
    assert told.last == ((str(weights), "torchexport", out), {"plain": False, "tolerance": 1e-4})
    run("export", "--weights", weights, "--out", tmp_path / "a.onnx")
    assert told.last[0][1] == "onnx"
    out.write_text("old")
    run("export", "--weights", weights, "--out", out, "--to", "aoti", "--plain", "--tolerance", 0.5, "--overwrite")
    assert told.last == ((str(weights), "aoti", out), {"plain": True, "tolerance": 0.5})


def test_the_tolerance_of_an_export_is_the_one_given(data, tmp_path, monkeypatch):
    weights = write_weights(tmp_path / "a.safetensors", data, "model.width=8", "model.pool.where=[head]")
    monkeypatch.setattr(exporter, "_difference", lambda _, there, *size: 0.01 if type(there) is ExportedNetwork else 0)
    with pytest.raises(WorkError, match="1.0e-02 of the largest, and 5e-03 is allowed"):
        export_weights(weights, "torchexport", tmp_path / "a.pt2", tolerance=0.005)
    assert export_weights(weights, "torchexport", tmp_path / "a.pt2", tolerance=0.02).difference == 0.01


def test_the_network_runs_in_the_precision_asked_for(weights):
    """bf16 keeps eight bits: its logits are other numbers than fp32's, and equal them to a hundredth."""
    clips = torch.randint(0, 256, (1, 3, 4, 32, 32), dtype=torch.uint8)
    made = {name: Classifier(weights, "cpu", precision=name) for name in (None, "fp32", "bf16")}
    types, logits = {}, {}
    for name, one in made.items():
        layer = one.model.fc
        layer.register_forward_hook(lambda _, inputs, output, name=name: types.update({name: output.dtype}))
        logits[name] = one.predictor(clips)
    assert types == {None: torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16}
    assert torch.equal(logits[None], logits["fp32"]) and not torch.equal(logits["bf16"], logits["fp32"])


def test_a_compiled_network_is_one(weights, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda network, **settings: asked.append(settings) or network)
    Classifier(weights, "cpu", compile=True)
    assert asked == [{"dynamic": False}]
    Classifier(weights, "cpu")
    assert len(asked) == 1


@pytest.mark.parametrize("average", ["softmax", "logits"])
def test_the_classifier_averages_views_as_its_weights_say(data, tmp_path, average):
    made = Classifier(write_weights(tmp_path / "a.safetensors", data, f"test.average={average}"))
    logits = torch.tensor([[2.0, 0.0, -1.0], [-3.0, 1.0, 0.5]])
    expected = logits.softmax(1).mean(0) if average == "softmax" else logits.mean(0).softmax(0)
    torch.testing.assert_close(made.average(logits), expected)
    views = SimpleNamespace(duration=1.0, damage="")
    best = made.prediction(logits, None, views, 0.0, 1)
    assert best.score == pytest.approx(float(expected.max())) and best.label == CLASSES[int(expected.argmax())]


# --- options that would do nothing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["explain", "a.mp4", "--method", "features", "--class", "x"], "--class needs --method gradcam"),
        (["explain", "a.mp4", "--channels", 3], "--channels needs --method features"),
        (["explain", "a.png", "--seconds", 3], "--seconds needs a video"),
        (["visualize", "a.mp4", "--pools", "max", "--beta", 4], "--beta needs soft among --pools"),
        (["visualize", "a.mp4", "--columns", 4], "--columns needs a contact sheet (--format png)"),
        (["visualize", "a.mp4", "--measure", "--below"], "--below needs a clip that is drawn"),
        (["visualize", "a.mp4", "--measure", "--overwrite"], "--overwrite needs a file that is written"),
        (["visualize", "a.png", "--start", 1], "--start needs a video"),
        (["prepare", "folder", "--root", "x", "--gop", 4], "--gop needs --reencode"),
        (["prepare", "folder", "--root", "x", "--workers", 4], "--workers needs --verify or --reencode"),
        (["prepare", "folder", "--root", "x", "--split", 2], "--split needs official splits"),
        (["prepare", "ssv2", "--root", "x", "--path-prefix", "y"], "--path-prefix needs lists"),
        (["export", "--weights", "w", "--out", "a.onnx", "--plain"], "--plain needs a .pt2 file"),
        (["ensemble", "a", "b", "--overwrite"], "--overwrite needs --out"),
        (
            ["probe", "a.npz", "--labels", "a", "--test", "b", "--folds", 10],
            "--folds needs cross-validation",
        ),
        (["compare", "a", "--overwrite"], "--overwrite needs --out"),
        (["classify", "a.mp4", "--overwrite"], "--overwrite needs --out, --plot or --annotate"),
        (["classify", "a.mp4", "--resume", "a.csv", "--out", "a.csv", "--overwrite"], "give one of them"),
        (["classify", "--camera", 0, "--max-missing", 0.5], "do not go together with --max-missing"),
        (["train", ".", "data.root=x"], ". and data.root=x both say where the videos are"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(run, command, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp4", "a.png"):
        (tmp_path / name).write_bytes(b"")
    done = run(*command)
    assert done.returncode == 2 and said in done.stderr
