"""What is damaged, missing or forbidden is named in one sentence; nothing hangs or crashes, and the rest goes on."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from videos import damaged_files, write_numbered

from softpool3d.config_file import load_config
from softpool3d.datasets.loader import eval_loader, train_loader
from softpool3d.datasets.manifest import Clip, Manifest
from softpool3d.datasets.video.decoder import DecodeError, open_video
from softpool3d.training.bad_files import BadFiles, write_bad_files

SOURCES = {
    "h264.mp4": ("libx264", {"g": "10", "bf": "2"}),
    "plain.mp4": ("libx264", {"g": "10", "bf": "0"}),
    "mpeg4.avi": ("mpeg4", {"g": "10", "bf": "2"}),
    "vp9.webm": ("libvpx-vp9", {"cpu-used": "8", "deadline": "realtime"}),
    "h264.ts": ("libx264", {"g": "10"}),
}


def mutations(count: int, folder: Path):
    """Files with bits flipped, ends cut off, and another file's beginning: from a seed, the same every time."""
    rng = random.Random(0)
    wholes = {
        name: write_numbered(folder / name, 30, codec, **options).read_bytes()
        for name, (codec, options) in SOURCES.items()
    }
    for number in range(count):
        name = list(wholes)[number % len(wholes)]
        data = bytearray(wholes[name])
        kind = ("flips", "many flips", "truncation", "header")[number // len(wholes) % 4]
        if kind == "flips":
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == "many flips":
            for _ in range(len(data) // 50):
                data[rng.randrange(len(data))] ^= 0xFF
        elif kind == "truncation":
            data = data[: rng.randrange(len(data))]
        else:
            other = wholes[rng.choice(list(wholes))]
            length = rng.randrange(8, 400)
            data[:length] = other[:length]
        path = folder / f"{number:03d} {kind} {name}"
        path.write_bytes(data)
        yield path


def test_two_hundred_mutations(tmp_path):
    rng = np.random.default_rng(0)
    outcomes = {"frames": 0, "errors": 0}
    for path in mutations(200, tmp_path):
        for decoder in ("pyav", "decord"):
            try:
                with open_video(path, 32, timeout_s=5, decoder=decoder) as video:
                    wanted = np.sort(rng.integers(0, video.num_frames, 4))
                    assert video.frames(wanted).shape[:3] == (4, 3, 32) or video.frames(wanted).shape[3] == 32
                outcomes["frames"] += 1
            except DecodeError as error:
                assert error.path == str(path) and "\n" not in str(error) and error.reason
                outcomes["errors"] += 1
    assert min(outcomes.values()) > 80


@pytest.fixture
def mixed(tmp_path) -> Manifest:
    """Eight good clips, and one of everything that goes wrong."""
    good = [Clip(str(write_numbered(tmp_path / f"good {n}.mp4", 20)), 0) for n in range(8)]
    bad = list(damaged_files(tmp_path).values())
    folder = tmp_path / "folder.mp4"
    folder.mkdir()
    link = tmp_path / "link.mp4"
    link.symlink_to("nowhere.mp4")
    bad += [folder, link, tmp_path / "vanished.mp4", tmp_path / "with, comma\nand line.mp4"]
    return Manifest(("a", "b"), [*good, *(Clip(str(path), 1) for path in bad)])


def settings(*overrides):
    sizes = ["data.crop_size=32", "data.short_side=32", "data.train_short_side=[32,32]", "data.num_frames=4"]
    return load_config("r3d_softpool", [*sizes, "train.batch_size=4", "test.batch_size=4", *overrides])


@pytest.mark.parametrize("workers", [0, 2])
def test_training_goes_on_without_the_bad_clips(mixed, workers):
    config = settings(f"data.num_workers={workers}")
    loader = train_loader(mixed, config)
    found = {}
    for epoch in range(2):
        loader.batch_sampler.set_position(epoch)
        for batch in loader:
            assert batch.video.shape[0] == 4 and batch.label.tolist() == [0] * 4
            found |= {error.index: error for error in batch.bad}
    assert set(found) == set(range(8, len(mixed)))
    for index, error in found.items():
        assert error.path == mixed.clips[index].path and f"(clip {index})" in str(error)
    scored = [index for batch in eval_loader(mixed, config) for index in batch.index.tolist()]
    assert sorted(scored) == list(range(8))


def test_a_file_that_vanishes_during_the_run(tmp_path):
    paths = [write_numbered(tmp_path / f"{n}.mp4", 20) for n in range(6)]
    manifest = Manifest(("a", "b"), [Clip(str(path), 0) for path in paths])
    loader = train_loader(manifest, settings("data.num_workers=1", "train.batch_size=2"))
    assert not [error for batch in loader for error in batch.bad]
    paths[3].unlink()
    loader.batch_sampler.set_position(1)
    (error,) = {str(error): error for batch in loader for error in batch.bad}.values()
    assert str(error) == f"cannot read {paths[3]}: no such file or directory (clip 3)"


def test_permission_denied(tmp_path):
    path = write_numbered(tmp_path / "secret.mp4", 5)
    path.chmod(0)
    code = (
        "import sys\nfrom softpool3d.datasets.video.decoder import open_video, DecodeError\n"
        "try:\n    open_video(sys.argv[1])\nexcept DecodeError as error:\n    print(error)"
    )
    # root may read everything, unless it gives that up
    prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    if prefix and not shutil.which("setpriv"):
        pytest.skip("root may read every file, and there is no setpriv here to give that up")
    result = subprocess.run([*prefix, sys.executable, "-c", code, path], capture_output=True, text=True)
    assert result.stdout.strip() == f"cannot read {path}: permission denied", result.stderr


def test_a_bug_in_a_worker_names_the_clip(tmp_path, monkeypatch):
    from softpool3d.datasets import loader

    def broken(*_):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(loader, "train_indices", broken)
    path = write_numbered(tmp_path / "a.mp4", 5)
    for workers in (0, 1):
        batches = train_loader(Manifest(("a",), [Clip(str(path), 0)]), settings(f"data.num_workers={workers}"))
        with pytest.raises(RuntimeError, match=r"a.mp4 \(clip 0\): ZeroDivisionError: division by zero"):
            next(iter(batches))


def test_the_list_of_bad_files(tmp_path):
    said = []
    bad = BadFiles("train", 10, 0.5, said.append)
    error = DecodeError("a, b\nc.mp4", "the file is empty", 7)
    bad.add([error, error])
    bad.add([DecodeError("d.mp4", "it has no video stream")])
    assert said == [
        "skipped: cannot read a, b\nc.mp4: the file is empty (clip 7)",
        "skipped: cannot read d.mp4: it has no video stream",
    ]
    write_bad_files(tmp_path / "bad_files.csv", [bad, BadFiles("val", 10, 0.5, said.append)])
    import csv

    with (tmp_path / "bad_files.csv").open(newline="", encoding="utf-8-sig") as file:
        assert list(csv.reader(file)) == [
            ["split", "index", "path", "reason"],
            ["train", "7", "a, b\nc.mp4", "the file is empty"],
            ["train", "", "d.mp4", "it has no video stream"],
        ]
