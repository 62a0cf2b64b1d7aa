"""`softpool3d train videos/`: what is seen of videos and machine, what is chosen, and that a newcomer's line trains."""

import os
import re
from dataclasses import replace

import numpy as np
import pytest
from served import Server, make_weights, served, take_away
from videos import write_numbered

from softpool3d.choosing import choose_for
from softpool3d.choosing.look import Machine, Span, Videos
from softpool3d.choosing.recipe import asked_for, choose, configure
from softpool3d.choosing.start import start_for
from softpool3d.config_file import load_config
from softpool3d.datasets.video.encoder import write_video
from softpool3d.errors import UsageError
from softpool3d.naming import SHIPPED
from softpool3d.runs.checkpoint import load_weights
from softpool3d.runs.run import stored_config

CPU = Machine("cpu", 2, 24.0)
GPU = Machine("cuda:0", 16, 40.0, "NVIDIA A100", bf16=True)
SHORT = Videos(
    classes=("jump", "wave"),
    clips={"train": 300, "val": 40, "test": 40},
    fewest=140,
    most=160,
    multi_label=False,
    looked_at=100,
    seconds=Span(1.0, 2.0, 4.0),
    fps=Span(25.0, 25.0, 30.0),
    short_side=Span(240, 240, 240),
    portrait=0.0,
    unreadable=(),
)


def chosen(videos=SHORT, machine=CPU, why="no network", *overrides):
    asked = asked_for(overrides)
    choices = choose(videos, machine, start_for(machine, asked, lambda published: why), asked)
    return configure(choices, ["data.dataset=folder", "data.root=videos"], overrides), choices


def test_from_scratch_on_a_cpu_as_in_the_study_of_real_actions():
    config, choices = chosen()
    study = load_config("study/actions_r3d_18", ["data.dataset=folder"])
    same = ("model.name", "model.width", "model.pool.where", "model.pool.head", "data.num_frames", "data.sampling")
    same += ("data.crop_size", "data.flip", "optim.name", "optim.lr", "optim.weight_decay", "optim.label_smoothing")
    same += ("optim.warmup_epochs", "optim.clip_grad_norm", "train.batch_size", "train.precision", "test.num_clips")
    assert [config.flat()[key] for key in same] == [study.flat()[key] for key in same]
    assert config.model.weights is None and config.model.pool.kind == "soft"
    assert "no network" in str(choices[0]) and "model.pool.kind=soft" in str(choices[0])


@pytest.mark.parametrize(
    ("clips", "classes", "why", "epochs"),
    [
        (323, 27, "no network", 24),  # depth_actions, lip_letters, interactions, motion: docs/own-videos.md
        (468, 26, "no network", 24),
        (48, 6, "no network", 40),
        (400, 8, "no network", 10),
        (100_000, 400, "no network", 10),
        (300, 2, "", 10),  # with weights
        (100_000, 400, "", 8),
    ],
)
def test_the_more_clips_a_class_has_the_fewer_epochs(clips, classes, why, epochs):
    videos = replace(SHORT, clips={"train": clips, "val": 9}, classes=tuple(f"class {n}" for n in range(classes)))
    assert chosen(videos, CPU, why)[0].train.epochs == epochs


@pytest.mark.parametrize(
    ("train", "val", "overrides", "every"),
    [
        (323, 108, ["train.epochs=24"], 3),
        (468, 78, ["train.epochs=24"], 2),
        (400, 40, ["train.epochs=24"], 1),
        (323, 5000, ["train.epochs=20"], 4),  # five times at the least
        (323, 5000, ["train.epochs=3"], 1),
        (323, 108, ["train.eval_every=1"], 1),
    ],
)
def test_validating_takes_a_twentieth_of_the_time(train, val, overrides, every):
    config, choices = chosen(replace(SHORT, clips={"train": train, "val": val}), CPU, "no network", *overrides)
    assert config.train.eval_every == every
    assert ("train.eval_every" in " ".join(map(str, choices))) == (every > 1)


@pytest.mark.parametrize(
    ("machine", "name", "crop", "precision"),
    [(CPU, "r3d_18", 112, "fp32"), (replace(GPU, memory_gb=8), "r3d_18", 112, "bf16"), (GPU, "mvit_v2_s", 224, "bf16")],
)
def test_fine_tuning_where_public_weights_can_be_had(machine, name, crop, precision):
    config, choices = chosen(SHORT, machine, "")
    assert (config.model.name, config.model.weights) == (name, f"{name}:kinetics400")
    assert (config.data.crop_size, config.train.precision) == (crop, precision)
    assert config.optim.head_epochs == 1 and config.optim.layer_decay < 1 and config.model.width is None
    assert config.model.pool.where == [] and "mean" not in config.data.model_fields_set  # the weights' own are taken
    assert ("no GPU" in str(choices[0])) == (not machine.gpu)


def test_what_the_user_sets_wins_and_the_rest_goes_with_it():
    config, choices = chosen(SHORT, CPU, "no network", "data.crop_size=96", "optim.lr=0.01")
    assert (config.data.crop_size, config.data.short_side, config.data.train_short_side) == (96, 96, [96, 112])
    assert config.optim.lr == 0.01 and "optim.lr" not in "".join(map(str, choices))
    config, choices = chosen(SHORT, GPU, "", "model.name=x3d_s")
    assert (config.model.name, config.model.width, config.model.weights) == ("x3d_s", None, None)
    assert str(choices[0]) == "It learns from nothing: torchvision has no weights of x3d_s for Kinetics-400."
    config, choices = chosen(SHORT, CPU, "no network", "model.pool.kind=max", "data.sampling=dense", "optim.name=sgd")
    assert "beta" not in config.model.pool.model_fields_set and "with max pooling" in str(choices[0])
    assert (config.data.target_fps, config.test.num_clips) == (6, 5) and "one stretch" in "".join(map(str, choices))
    assert not {"lr", "weight_decay"} & config.optim.model_fields_set  # those of AdamW
    config, _ = chosen(SHORT, CPU, "", "train.epochs=1")
    assert (config.optim.head_epochs, config.optim.warmup_epochs) == (0, 0)
    uniform, choices = chosen(replace(SHORT, seconds=Span(20, 60, 300)), CPU, "no network", "data.sampling=uniform")
    assert uniform.test.num_clips == 1 and "as you say" in "".join(map(str, choices))
    with pytest.raises(UsageError, match=r"override data.crop_size=wide: data.crop_size = 'wide'"):
        chosen(SHORT, CPU, "no network", "data.crop_size=wide")
    with pytest.raises(UsageError, match="unknown key optim.learning"):
        chosen(SHORT, CPU, "no network", "optim.learning=1")


def test_weights_that_the_user_names_are_tuned_as_those_that_are_chosen(tmp_path):
    own, _ = chosen(SHORT, CPU, "")
    assert chosen(SHORT, CPU, "", "model.weights=kinetics400")[0].model.name == "mvit_v2_s"
    for overrides in (["model.weights=r3d_18:kinetics400"], ["model.name=r3d_18"]):
        config, choices = chosen(SHORT, CPU, "", *overrides)
        assert config.flat() == own.flat() and str(choices[0]).startswith("It starts from "), overrides
    assert chosen(SHORT, GPU, "", "model.name=r3d_18")[0].model.weights == "r3d_18:kinetics400"
    assert chosen(SHORT, CPU, "", "model.width=16")[0].model.weights is None
    assert chosen(SHORT, CPU, "", "model.weights=null")[0].model.width == 16
    config, choices = chosen(SHORT, CPU, "no network", f"model.weights={SHIPPED}")  # those of a run
    theirs = load_weights(SHIPPED).config
    assert config.model.name == theirs.model.name and config.model.pool == theirs.model.pool
    assert (config.data.num_frames, config.data.crop_size) == (theirs.data.num_frames, theirs.data.crop_size)
    assert config.optim.head_epochs == 1 and f"It starts from {SHIPPED}, as you say" in str(choices[0])
    assert "dropout" not in str(choices[0])  # as it is anyway
    with pytest.raises(UsageError, match="no weights file .*absent"):
        chosen(SHORT, CPU, "", f"model.weights={tmp_path}/absent.safetensors")


def test_large_updates_where_few_clips_fit():
    config, _ = chosen(SHORT, replace(GPU, memory_gb=11.5), "")
    assert (config.model.name, config.train.batch_size, config.train.accumulate) == ("mvit_v2_s", 6, 2)
    assert chosen(SHORT, GPU, "")[0].train.accumulate == 1


def test_long_videos_are_seen_in_stretches():
    long = replace(SHORT, seconds=Span(20, 60, 300), fps=Span(24, 25, 60))
    data, test = chosen(long)[0].data, chosen(long)[0].test
    assert (data.sampling, data.target_fps, data.sampling_rate, test.num_clips) == ("dense", 6, 1, 5)
    assert "one stretch of 1.8 s" in "".join(map(str, chosen(long)[1]))
    assert chosen(replace(long, fps=Span(1, 1, 240)))[0].data.target_fps == 1
    one_long = replace(SHORT, seconds=Span(1, 2, 60))
    assert chosen(one_long)[0].data.sampling == "dense"


def test_classes_say_what_is_mirrored_and_what_counts():
    assert not chosen()[0].data.flip  # from nothing, on a CPU
    for machine, why in ((CPU, ""), (GPU, "no network")):
        config, choices = chosen(SHORT, machine, why)
        assert config.data.flip and "no class is named after a direction" in "".join(map(str, choices))
    turned = "".join(map(str, chosen(replace(SHORT, classes=("swipe_left", "swipe_right", "x")), CPU, "")[1]))
    assert "none of the 2 classes that are named after a direction (swipe_left, swipe_right)" in turned
    assert config.optim.class_weights is None
    assert chosen(replace(SHORT, fewest=10, most=31))[0].optim.class_weights == "balanced"
    assert chosen(replace(SHORT, fewest=10, most=31, multi_label=True))[0].optim.class_weights is None
    assert chosen(replace(SHORT, clips={"train": 3, "val": 2}))[0].train.batch_size == 3


@pytest.fixture
def videos(tmp_path):
    """Twelve videos of two classes, one of them twice as long and upright; and one that is damaged."""
    for number in range(6):
        for label in ("jump", "wave"):
            (tmp_path / "videos" / label).mkdir(parents=True, exist_ok=True)
        write_numbered(tmp_path / "videos" / "jump" / f"{number}.mp4", 16)
        upright = np.random.default_rng(0).integers(0, 256, (32, 64, 48, 3), dtype=np.uint8)
        write_video(tmp_path / "videos" / "wave" / f"{number}.mp4", upright, 25)
    (tmp_path / "videos" / "wave" / "x.mp4").write_bytes(b"no video")
    return tmp_path / "videos"


def test_what_is_seen_of_videos(videos):
    seen = choose_for(["data.dataset=folder", f"data.root={videos}"], []).videos
    assert (seen.looked_at, seen.classes, len(seen.unreadable)) == (12, ("jump", "wave"), 1)
    assert sum(seen.clips.values()) == 13 and seen.portrait == 0.5 and seen.short_side == Span(48, 48, 48)
    assert seen.seconds.high == pytest.approx(2 * seen.seconds.low, rel=0.1)
    text = str(seen)
    assert "13 videos of 2 classes" in text and "portrait and landscape" in text and "x.mp4" in text
    with pytest.raises(UsageError, match="for pictures: --cfg imagenet/resnet18_softpool"):
        choose_for(["data.dataset=pictures", f"data.root={videos}"], ["data.num_frames=1"])
    for file in videos.rglob("*.mp4"):
        file.write_bytes(b"no video")
    with pytest.raises(UsageError, match="none of the 13 videos looked at can be read; .*mp4"):
        choose_for(["data.dataset=folder", f"data.root={videos}"], [])


SMALL = ("model.width=4", "data.crop_size=16", "data.num_frames=4", "train.epochs=1", "device=cpu")


def test_a_folder_is_all_that_training_needs(videos, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dry = run("train", "videos/", "--dry-run", *SMALL)
    assert dry.returncode == 0 and not (tmp_path / "runs").exists()
    assert re.search(r"^13 videos of 2 classes, .*\n1 of these could not be read: .*x.mp4.*\n\d+ cores?, ", dry.stdout)
    assert "model.width=" not in dry.stdout and "model.name=r3d_18" in dry.stdout  # what is set is not chosen
    (videos / "wave" / "x.mp4").unlink()
    done = run("train", "videos/", *SMALL)
    assert done.returncode == 0, done.stderr
    config = stored_config(tmp_path / "runs" / "videos")
    assert (config.name, config.data.root, config.data.crop_size) == ("videos", str(videos), 16)
    tail = done.stdout.splitlines()[-4:]
    assert tail == ["next:", *(f"  softpool3d {verb} --weights runs/videos" for verb in VERBS)]
    assert "with other clips like these top-1 would be" in done.stdout
    again = run("train", "--cfg", tmp_path / "runs" / "videos" / "config.yaml", "--print-config")
    assert load_config(_written(tmp_path / "again.yaml", again.stdout)) == config


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return make_weights("r3d_18", tmp_path_factory.mktemp("served"))


TINY = ("data.crop_size=16", "data.num_frames=4", "train.epochs=2", "device=cpu")


def test_training_starts_from_public_weights_where_they_can_be_had(videos, file, tmp_path, monkeypatch, run):
    """Fetched, then kept; cut off on the way, which is no reason to train from nothing; out of reach, which is one."""
    monkeypatch.chdir(tmp_path)
    (videos / "wave" / "x.mp4").unlink()
    with served(file, "r3d_18", tmp_path / "torch", monkeypatch) as weights:
        monkeypatch.setattr(Server, "cut_off", True)
        broken = run("train", "videos", *TINY)
        assert broken.returncode == 1 and "the transfer may have been cut off" in broken.stderr
        assert not (tmp_path / "runs").exists()
        monkeypatch.setattr(Server, "cut_off", False)
        done = run("train", "videos", *TINY)
        assert done.returncode == 0, done.stderr
        assert "It starts from Kinetics-400's weights" in done.stdout
        assert "r3d_18:kinetics400 (torchvision): " in done.stdout and "head of another size" in done.stdout
        config = stored_config(tmp_path / "runs" / "videos")
        assert config.optim.head_epochs == 1 and config.model.weights == "r3d_18:kinetics400"
        take_away(weights)
        assert "It starts from Kinetics-400's weights" in run("train", "videos", "--dry-run", *TINY).stdout
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "elsewhere"))
        scratch = run("train", "videos", "--dry-run", *TINY)
        assert "cannot be had (127.0.0.1:9 cannot be reached: [Errno 111] Connection refused)" in scratch.stdout


def _written(path, text):
    path.write_text(text)
    return path


VERBS = ("classify FILE", "test", "explain FILE")


def test_a_list_is_enough_too(videos, tmp_path, run):
    rows = [f"{path},{path.parent.name}" for path in sorted(videos.rglob("[0-9].mp4"))]
    (tmp_path / "mine.csv").write_text("\n".join(["path,label", *rows]))
    found = run("train", tmp_path / "mine.csv", "--print-config", *SMALL)
    assert f"root: {tmp_path / 'mine.csv'}" in found.stdout and "name: mine" in found.stdout
    assert "12 videos of 2 classes, 4 of each" in run("train", tmp_path / "mine.csv", "--dry-run", *SMALL).stdout
    done = run("train", tmp_path / "mine.csv", f"output={tmp_path / 'runs'}", *SMALL)
    assert done.returncode == 0 and (tmp_path / "runs" / "mine" / "summary.json").is_file(), done.stderr
    (tmp_path / "mine.csv").rename(tmp_path / "train.csv")
    (tmp_path / "val.csv").write_text("\n".join(["path,label", *rows[:1], *rows[-1:]]))
    beside = run("train", tmp_path / "train.csv", "--dry-run", *SMALL)
    assert "14 videos of 2 classes, 6 of each" in beside.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing/"], "no folder of videos, and no list of them: nothing/"),
        (["optim.lr=1"], "give VIDEOS, a folder of them; or --cfg FILE"),
        ([], "give VIDEOS, a folder of them; or --cfg FILE"),
        ([".", "videos"], ". and videos: videos come from one folder or list"),
        (["videos/jump/0.mp4"], "is a file and no list (.csv, .txt, .list); name the folder"),
        (["videos/jump"], "no videos in"),
        ([".", "--resume", "runs/x"], "--resume goes on with a run's own videos"),
        (["--cfg", "r3d_softpool", "--dry-run"], "--dry-run says what is chosen for VIDEOS"),
    ],
)
def test_mistakes_get_a_sentence(videos, tmp_path, run, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    result = run("train", *arguments, "--print-config") if not arguments else run("train", *arguments)
    assert result.returncode == 2 and words in result.stderr, result.stderr
    assert not os.path.exists("runs")


def test_a_file_of_settings_takes_a_folder_too(videos, run):
    found = run("train", videos, "--cfg", "r3d_softpool", "--print-config", "optim.lr=0.5")
    assert f"root: {videos}" in found.stdout and "dataset: folder" in found.stdout and "lr: 0.5" in found.stdout


def test_two_videos_of_a_class_are_enough_without_a_test(videos, run):
    for file in videos.rglob("*.mp4"):
        if file.stem not in "01":
            file.unlink()
    result = run("train", videos, "--dry-run")
    assert result.returncode == 2 and "with data.split=[0.8,0.2,0] the validation clips are tested too" in result.stderr
    found = run("train", videos, "--dry-run", "data.split=[0.8,0.2,0]")
    assert found.returncode == 0 and "4 videos of 2 classes, 1 of each" in found.stdout
    assert "train.batch_size=2 " in found.stdout
