"""`softpool3d prepare` as a user types it, and training on what it wrote."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import pytest
from layouts import hmdb51, kinetics, short_video, ssv2, ucf101
from videos import damaged_files, write_numbered

from softpool3d.config_file import load_config
from softpool3d.datasets.manifest import read_manifests_in
from softpool3d.datasets.video.decoder import open_video
from softpool3d.runs.lock import claim
from softpool3d.training.trainer import train

TINY = ["model.width=4", "data.num_frames=4", "data.sampling_rate=2", "data.num_workers=0", "train.epochs=1"]
TINY += ["train.batch_size=2", "test.batch_size=2", "optim.warmup_epochs=0", "data.crop_size=32", "data.short_side=32"]
TINY += ["data.train_short_side=[32,40]", "data.flip=true", "data.max_bad_fraction=0.5", "test.num_crops=3"]


def prepare(*arguments, env=None):
    code = "from softpool3d.cli import run; run()"
    command = [sys.executable, "-c", code, "prepare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **(env or {})})


def works(result):
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout


def rows(path):
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize(
    ("dataset", "make", "clips"),
    [
        ("hmdb51", hmdb51, (4, 2)),
        ("ucf101", ucf101, (3, 2)),
        ("ssv2", ssv2, (4, 2)),
        ("kinetics400", kinetics, (3, 2)),
    ],
)
def test_every_data_set_trains_and_tests(dataset, make, clips, tmp_path):
    """From its official layout as it is, in miniature."""
    make(tmp_path / "data", short_video)
    config = load_config(
        "r3d_softpool", [*TINY, f"data.dataset={dataset}", f"data.root={tmp_path / 'data'}", f"output={tmp_path}"]
    )
    summary = train(config)
    assert summary["test_clips"] == clips[1] and summary["bad_files"] == dict.fromkeys(summary["bad_files"], 0)
    assert summary["views"] == 6
    weights = summary["weights"]
    from softpool3d.inference.classifier import Classifier

    video = next(path for path in (tmp_path / "data").rglob("*.*") if path.suffix in (".avi", ".mp4", ".webm"))
    assert len(Classifier(weights)(video)) == 2


def test_prepare_writes_what_training_reads(tmp_path):
    root = kinetics(tmp_path / "k400", short_video)
    broken = root / "train" / "abseiling" / "-3B32lodo2M_000059_000069.mp4"
    broken.write_bytes(broken.read_bytes()[:300])
    printed = works(prepare("kinetics400", "--root", root, "--verify", "--workers", 1))
    manifest = root / "manifest"
    assert "1 bad files left out" in printed and f"written: {manifest}" in printed
    assert f"data.dataset=kinetics400 data.root={root}" in printed
    assert rows(manifest / "missing.csv") == [["split", "clip"], ["train", "zzzzzzzzzzz_000003_000013"]]
    assert rows(manifest / "bad_files.csv")[1][0] == str(broken)
    assert (manifest / "classes.txt").read_text() == "abseiling\nmaking a cake, slowly\n"
    splits = read_manifests_in(manifest)
    assert {name: len(m) for name, m in splits.items()} == {"train": 2, "val": 2}

    checked = (manifest / "checked.csv").read_text()
    works(prepare("kinetics400", "--root", root, "--verify", "--workers", 1))
    assert (manifest / "checked.csv").read_text().split() == checked.split()  # nothing is decoded twice

    overrides = ["data.dataset=kinetics400", f"data.root={root}", f"output={tmp_path}"]
    assert train(load_config("r3d_softpool", [*TINY, *overrides]))["test_clips"] == 2


def test_copies_for_training(tmp_path):
    root = hmdb51(tmp_path / "hmdb 51", short_video)
    printed = works(prepare("hmdb51", "--root", root, "--reencode", "--short-side", 32, "--gop", 4, "--workers", 1))
    out = tmp_path / "hmdb 51-32px"
    assert f"'data.root={out}'" in printed
    clips = read_manifests_in(out / "manifest-split1")["train"].clips
    assert len(clips) == 4 and all(clip.path.startswith(str(out)) for clip in clips)
    with open_video(clips[0].path) as video:
        assert video.frames([0]).shape[2:] == (32, 42) and video.num_frames == 12
    assert not (root / "manifest-split1").exists()
    overrides = ["data.dataset=hmdb51", f"data.root={out}", f"output={tmp_path}"]
    assert train(load_config("r3d_softpool", [*TINY, *overrides]))["test_clips"] == 2


def test_archives_are_unpacked_or_the_user_is_told_what_to_type(tmp_path):
    """bsdtar here is a script that unpacks zip files, which is what lies in these .rar files."""
    root, source = tmp_path / "hmdb", hmdb51(tmp_path / "source")
    root.mkdir()
    for label in ("brush_hair", "wave"):
        _zip(source / f"{label}.rar", source / "hmdb51_org", label)
    with zipfile.ZipFile(root / "hmdb51_org.rar", "w") as outer:
        for label in ("brush_hair", "wave"):
            outer.write(source / f"{label}.rar", f"{label}.rar")
    _zip(root / "test_train_splits.rar", source, "testTrainMulti_7030_splits")

    bare = tmp_path / "bare"
    bare.mkdir()
    result = prepare("hmdb51", "--root", root, env={"PATH": str(bare)})
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "neither unrar nor bsdtar" in result.stderr and "sudo apt install libarchive-tools" in result.stderr

    program = bare / "bsdtar"
    program.write_text(
        f"#!{sys.executable}\nimport sys, zipfile\nzipfile.ZipFile(sys.argv[3]).extractall(sys.argv[5])\n"
    )
    program.chmod(0o755)
    printed = works(prepare("hmdb51", "--root", root, env={"PATH": str(bare)}))
    assert printed.count("unpacked ") == 4
    assert len(read_manifests_in(root / "manifest-split1")["train"]) == 4
    assert "unpacked " not in works(prepare("hmdb51", "--root", root, env={"PATH": str(bare)}))
    (root / "hmdb51_org" / "laugh.rar").write_bytes(b"damaged")
    result = prepare("hmdb51", "--root", root, env={"PATH": str(bare)})
    assert result.returncode == 1 and "cannot unpack" in result.stderr and "laugh.rar: bsdtar: " in result.stderr


def _zip(archive, folder, name):
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted((folder / name).rglob("*")):
            file.write(path, path.relative_to(folder))


def test_what_a_user_gets_wrong(tmp_path):
    for arguments, message in (
        (("hmdb51", "--root", tmp_path / "absent"), "data.root: no folder"),
        (("hmdb51", "--root", tmp_path), "no *_test_split1.txt of HMDB51"),
        (("hmbd51", "--root", tmp_path), "hmbd51"),
        (("hmdb51", "--root", tmp_path, "--split", 4), "--split"),
        (("folder", "--root", tmp_path, "--reencode", "--short-side", 33), "--short-side 33 has to be even"),
    ):
        result = prepare(*arguments)
        assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr


def test_odd_things_among_the_files(tmp_path):
    """Empty files, links to nothing, folders named like videos, what cannot be decoded: named, and left out."""
    root = tmp_path / "videos"
    for label in "ab":
        (root / label).mkdir(parents=True)
        for index in range(4):
            write_numbered(root / label / f"{index}.mp4", 8)
    for path in damaged_files(tmp_path).values():
        path.rename(root / "a" / path.name)
    (root / "a" / "folder.mp4").mkdir()
    (root / "a" / "link.mp4").symlink_to("/nowhere.mp4")
    works(prepare("folder", "--root", root, "--verify", "--workers", 1))
    bad = {os.path.basename(path): reason for path, reason in rows(root / "manifest" / "bad_files.csv")[1:]}
    assert bad.keys() == {"empty.mp4", "text.mp4", "truncated.mp4", "audio.mp4", "folder.mp4", "link.mp4"}
    assert bad["link.mp4"] == "it is a link to /nowhere.mp4, which is not there"
    assert "no videos in it" in bad["folder.mp4"]
    splits = read_manifests_in(root / "manifest")
    assert sum(len(manifest) for manifest in splits.values()) == 8


def test_ctrl_c_and_on(tmp_path):
    root = tmp_path / "videos"
    for label in "ab":
        (root / label).mkdir(parents=True)
        first = write_numbered(root / label / "0.mp4", 100)
        for index in range(1, 100):
            os.link(first, root / label / f"{index}.mp4")
    command = [sys.executable, "-m", "softpool3d.tools.prepare", "folder", "--root", root, "--verify", "--workers", "1"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        # A shell ignores Ctrl-C for what it runs in the background, and so would all that is started from there.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    log = root / "manifest" / "checked.csv"
    while not (log.is_file() and log.read_text().count("\n") > 5):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip() == "error: stopped; the same command goes on where it was"
    done = log.read_text().count("\n")
    assert done < 200 and not (root / "manifest" / "train.csv").exists()
    works(subprocess.run(command, capture_output=True, text=True))
    assert len({line for line in log.read_text().splitlines() if line}) == 200
    assert len(read_manifests_in(root / "manifest")["train"]) == 160


def test_re_encoding_that_is_stopped_or_killed_leaves_nothing_unfinished(tmp_path):
    root, out = tmp_path / "videos", tmp_path / "copies"
    for label in "ab":
        (root / label).mkdir(parents=True)
        first = write_numbered(root / label / "0.mp4", 400)
        for index in range(1, 4):
            os.link(first, root / label / f"{index}.mp4")
    command = [sys.executable, "-m", "softpool3d.tools.prepare", "folder", "--root", root, "--reencode", "--out", out]
    command += ["--short-side", "48", "--workers", "1"]

    def unfinished():
        return list(out.rglob(".*.mp4"))

    def begun():
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        while not unfinished():
            assert process.poll() is None
            time.sleep(0.01)
        return process

    process = begun()
    process.terminate()
    assert process.communicate() == (None, "error: stopped; the same command goes on where it was\n")
    assert process.returncode == 128 + signal.SIGTERM and not unfinished()

    for _ in range(10):  # it may end a file between our look and the kill
        process = begun()
        process.kill()
        process.communicate()
        if unfinished():
            break
        shutil.rmtree(out)
    assert unfinished()
    with claim(out, is_folder=True):
        refused = subprocess.run(command, capture_output=True, text=True)
        assert refused.returncode == 2 and f"{out} is being written by process {os.getpid()} on " in refused.stderr
    works(subprocess.run(command, capture_output=True, text=True))
    assert not unfinished() and not (out / ".lock").exists()
    assert sum(len(manifest) for manifest in read_manifests_in(out / "manifest").values()) == 8
