"""Runs that are killed, stopped, spread over several processes, and gone on with."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from soak_trainings import differences, rows
from videos import damaged_files

from softpool3d.config_file import load_config
from softpool3d.errors import UsageError, WorkError
from softpool3d.runs.checkpoint import load_state, load_weights, save_state
from softpool3d.runs.lock import lock, release
from softpool3d.runs.resume import begin, keep_update
from softpool3d.runs.run import Run
from softpool3d.runtime.devices import make_accelerator

ZYGOTE = Path(__file__).parents[1] / "support" / "zygote.py"
KILLED = -signal.SIGKILL
SMALL = [
    "device=cpu",
    "data.motion_clips=[16,8,8]",
    "data.num_workers=0",
    "model.width=4",
    "train.batch_size=4",
    "train.epochs=3",
    "test.num_clips=1",
    "train.timeout_minutes=1",
]


@pytest.fixture(scope="module")
def trainings():
    """(folder, overrides, ...) -> exit codes, and what each process printed."""
    process = subprocess.Popen(
        [sys.executable, ZYGOTE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    def run(folder, *overrides, resume=False, **job):
        log = folder.parent / f"{folder.name}.log"
        settings = list(overrides) if resume else [*SMALL, f"output={folder.parent}", f"name={folder.name}", *overrides]
        job = {**job, "overrides": settings, "resume": str(folder) if resume else None, "log": str(log)}
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        codes = json.loads(process.stdout.readline())
        return codes, [Path(f"{log}.{rank}").read_text() for rank in range(len(codes))]

    yield run
    process.stdin.close()
    process.wait()


def test_killed_at_twenty_moments_it_goes_on_to_the_same_bits(trainings, tmp_path):
    """Also in the middle of writing a checkpoint, which it does after every step, and with other workers."""
    settings = ["model.dropout=0.5", "model.width=8", "checkpoint.every_minutes=1e-9"]
    assert trainings(tmp_path / "whole", *settings)[0] == [0]
    folder, draw = tmp_path / "killed", random.Random(1)
    codes, printed = trainings(folder, *settings, at=[0, 9, signal.SIGKILL])
    for number in range(15):
        assert codes == [KILLED], printed
        workers = f"data.num_workers={number % 5 // 4}"
        codes, printed = trainings(folder, workers, resume=True, at=[0, draw.randrange(3, 24), signal.SIGKILL])
    assert codes == [KILLED], printed
    for _ in range(4):
        trainings(folder, resume=True, after=[0, draw.uniform(0.05, 0.6), signal.SIGKILL])
    codes, printed = trainings(folder, resume=True)
    assert codes == [0], printed
    assert not differences(tmp_path / "whole", folder)
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"]  # half-written files are gone


def test_all_that_a_run_keeps_goes_on_to_the_same_bits(trainings, tmp_path):
    """Averaged weights, precise statistics, mixed and repeated clips; interrupted in mid-epoch and in an evaluation,
    with updates left out before and after, one of them the first after an evaluation."""
    settings = ["train.ema=0.9", "train.precise_norm=2", "train.on_nonfinite=skip", "train.mixup=0.8"]
    settings += ["train.repeats=2", "model.dropout=0.5", "model.width=8"]
    nan = [2, 8, 12, 16, 21]  # of 24 batches, 8 an epoch
    assert trainings(tmp_path / "whole", *settings, nan=nan)[0] == [0]
    folder = tmp_path / "stopped"
    codes, printed = trainings(folder, *settings, nan=nan, at=[0, 7, signal.SIGTERM, "add"])
    for epoch, clips, at in ((0, 8, [0, 5, signal.SIGTERM, "evaluate"]), (1, 16, None)):
        state = load_state(folder / "last" / "checkpoint.pt")
        assert codes == [143] and (state["epoch"], state["clips"]) == (epoch, clips), printed
        left = [number - state["steps"] for number in nan]
        codes, printed = trainings(folder, resume=True, nan=left, at=at)
    assert codes == [0], printed
    assert not differences(tmp_path / "whole", folder)


def test_a_cluster_s_signals_save_and_stop(trainings, tmp_path):
    assert trainings(tmp_path / "whole")[0] == [0]
    for number in (signal.SIGTERM, signal.SIGUSR1):
        folder = tmp_path / f"signal{number}"
        codes, printed = trainings(folder, at=[0, 30, number])
        assert codes == [128 + number]
        assert f"stopped; go on with: softpool3d train --resume {folder}" in printed[0]
        assert len(rows(folder)) == 1
        assert trainings(folder, resume=True)[0] == [0]
        assert not differences(tmp_path / "whole", folder)


def test_processes_learn_together_what_one_learns(trainings, tmp_path):
    """One, two and four: the same losses and weights up to rounding, and from one to the other in mid-epoch; 17 and 13
    clips cannot be divided by any of them."""
    settings = ["data.motion_clips=[17,13,11]", "train.global_batch=8", "optim.clip_grad_norm=1", "train.epochs=2"]
    folders = [tmp_path / name for name in ("one", "two", "four", "mixed")]
    for folder, count in zip(folders, (1, 2, 4), strict=False):
        codes, printed = trainings(folder, *settings, processes=count)
        assert codes == [0] * count, printed
    # four, one of which is lost; then one alone, killed; then two
    codes, printed = trainings(folders[3], *settings, "checkpoint.every_minutes=1e-9", processes=4, at=[2, 4, 9])
    assert codes == [1, 1, KILLED, 1], printed
    assert "lost another one, which was killed, failed (its own message says why)" in printed[0]
    assert f"softpool3d train --resume {folders[3]}" in printed[0]
    assert 0 < load_state(folders[3] / "last" / "checkpoint.pt")["clips"] < 17
    codes, printed = trainings(folders[3], resume=True, at=[0, 30, signal.SIGKILL])
    assert codes == [KILLED] and "1 processes, 4 before: an update has 8 clips, in 2 batches of each" in printed[0]
    assert trainings(folders[3], resume=True, processes=2)[0] == [0, 0]
    one = rows(folders[0])
    for folder in folders[1:]:
        for a, b in zip(one, rows(folder), strict=True):
            # "step" counts batches, which differ
            for key in ("train_loss", "train_top1", "val_loss", "val_top1", "lr"):
                assert float(a[key]) == pytest.approx(float(b[key]), abs=2e-5), (folder, key)
        summaries = [json.loads((f / "summary.json").read_text()) for f in (folders[0], folder)]
        assert [summary["test_clips"] for summary in summaries] == [11, 11]
        weights = [load_weights(f / "best.safetensors").state for f in (folders[0], folder)]
        assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-5) for name in weights[0])


def test_shards_go_on_in_shards_and_whole(trainings, tmp_path):
    """In as many processes to the same bits; in one, whole, and in three up to rounding. Averaged weights included."""
    settings = ["data.motion_clips=[24,8,8]", "train.batch_size=8", "train.global_batch=8", "train.epochs=2"]
    settings += ["model.width=8", "train.norm=sync", "train.precise_norm=2", "train.ema=0.9"]
    settings += ["optim.clip_grad_norm=1", "optim.clip_grad_value=0.1"]
    shards, stop = ["train.shard=true"], [1, 7, signal.SIGTERM, "add"]
    one, two, stopped, mixed = (tmp_path / name for name in ("one", "two", "stopped", "mixed"))
    assert trainings(one, *settings)[0] == [0]
    codes, printed = trainings(two, *settings, *shards, processes=2)
    assert codes == [0, 0], printed
    codes, printed = trainings(stopped, *settings, *shards, processes=2, at=stop)
    assert codes == [143, 143], printed
    assert load_state(stopped / "last" / "checkpoint.pt")["clips"] == 8
    shutil.copytree(stopped, mixed)
    codes, printed = trainings(stopped, resume=True, processes=2)
    assert codes == [0, 0], printed
    assert not differences(two, stopped)
    codes, printed = trainings(mixed, "train.shard=false", resume=True, at=[0, 1, signal.SIGTERM, "add"])
    assert codes == [143], printed
    assert load_state(mixed / "last" / "checkpoint.pt")["clips"] == 16
    codes, printed = trainings(mixed, "train.shard=true", resume=True, processes=3)
    assert codes == [0, 0, 0], printed
    # Rounding is far inside these bounds: a change of the initial weights in their last bit moves weights and
    # statistics by 1e-6 at most. What is beyond the bounds is no reason to widen them.
    for folder in (two, mixed):
        for ours, theirs in zip(rows(one), rows(folder), strict=True):
            for key in ("train_loss", "val_loss", "val_ema_loss"):
                assert float(ours[key]) == pytest.approx(float(theirs[key]), abs=1e-4), (folder, key)
        for name in ("last", "last_ema"):
            a, b = (load_weights(f / f"{name}.safetensors").state for f in (one, folder))
            for key, value in a.items():
                which = f"{folder.name}/{name}.safetensors, {key}"
                torch.testing.assert_close(
                    value, b[key], atol=1e-5, rtol=1e-3, msg=lambda how, which=which: f"{which}: {how}"
                )


def test_multigrid_goes_on_to_the_same_bits(trainings, tmp_path):
    """Updates of several sizes, in mid-epoch; two processes learn from them what one does, to rounding."""
    settings = [
        "data.motion_clips=[17,13,11]",
        "train.batch_size=2",
        "checkpoint.every_minutes=1e-9",
        "train.multigrid.short_cycle=true",
        "train.multigrid.long_shapes=[[0.5,0.7071],[1,1]]",
        "train.multigrid.long_cycles=[2]",
    ]
    whole, folder, two = (tmp_path / name for name in ("whole", "killed", "two"))
    codes, printed = trainings(whole, *settings)
    assert codes == [0], printed
    assert "to epoch 1.4: 4 frames of 45x45, 4 times the clips an update\n" in printed[0]
    # half of the warm-up is over, and four times; all of it, and once
    assert [float(row["lr"]) for row in rows(whole)][:2] == pytest.approx([4 * 0.5 * 0.03, 0.03])
    codes, printed = trainings(folder, *settings, at=[0, 24, signal.SIGKILL])
    places = set()
    for number in (18, 30):
        assert codes == [KILLED], printed
        state = load_state(folder / "last" / "checkpoint.pt")
        places.add((state["epoch"], state["clips"]))
        codes, printed = trainings(folder, resume=True, at=[0, number, signal.SIGKILL])
    assert any(0 < clips < 17 for _, clips in places), places
    assert trainings(folder, resume=True)[0] == [0]
    assert not differences(whole, folder)
    assert trainings(two, *settings, "train.batch_size=1", processes=2)[0] == [0, 0]
    for a, b in zip(rows(whole), rows(two), strict=True):
        assert float(a["train_loss"]) == pytest.approx(float(b["train_loss"]), abs=2e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("processes, width", [(1, 8), (2, 8), (1, 4)])
def test_verdicts_that_stay_on_the_device_skip_the_same_updates(trainings, tmp_path, optimizer, processes, width):
    """The last process alone has the NaNs; nothing moves by them, the average of the weights neither. A network of
    width 4 has no running statistics."""
    told, kept = tmp_path / "told", tmp_path / "kept"
    settings = [f"optim.name={optimizer}", "optim.options={fused: true}", "train.on_nonfinite=skip", "train.ema=0.9"]
    settings += [f"train.batch_size={4 // processes}", f"model.width={width}"]
    poison = {"processes": processes, "nan": [1, 2, 5, 9], "nan_of": processes - 1}
    assert trainings(told, *settings, **poison)[0] == [0] * processes
    assert trainings(kept, *settings, **poison, on_device=True)[0] == [0] * processes
    assert not differences(told, kept) and rows(told) == rows(kept)
    assert load_state(kept / "last" / "checkpoint.pt")["parts"]["average"]["n_averaged"] == 12 - 4
    tables = [sorted((folder / "nonfinite.csv").read_text().splitlines()) for folder in (told, kept)]
    assert tables[0] == tables[1] and len(tables[0]) > 4


def test_a_verdict_that_stays_on_the_device_stops_all_processes(trainings, tmp_path):
    """Two of four updates after it are made, and go no further than the memory."""
    folder = tmp_path / "stopped"
    settings = ["optim.options={fused: true}", "train.batch_size=2"]
    codes, printed = trainings(folder, *settings, processes=2, nan=[5], nan_of=1, on_device=True)
    assert codes == [1, 1] and all("is nan in epoch 2 at step 2" in text for text in printed), printed
    state = load_state(folder / "last" / "checkpoint.pt")
    assert state["steps"] == 4 and all(value.isfinite().all() for value in state["model"].values())


def test_what_one_process_is_told_all_do(trainings, tmp_path, two_classes):
    """A signal to one of two stops both with the state saved; the bad files of both are listed and counted."""
    for path in damaged_files(tmp_path).values():
        path.rename(two_classes / "jumping" / path.name)
    sizes = ["data.short_side=48", "data.train_short_side=[48,48]", "data.crop_size=48", "data.split=[0.75,0.25,0]"]
    data = ["data.dataset=folder", f"data.root={two_classes}", *sizes]
    folder = tmp_path / "told"
    settings = [*data, "data.max_bad_fraction=0.9", "train.epochs=4"]
    codes, printed = trainings(folder, *settings, processes=2, at=[1, 12, signal.SIGTERM])
    assert codes == [143, 143], printed
    with (folder / "bad_files.csv").open(newline="", encoding="utf-8-sig") as file:
        assert len(list(csv.DictReader(file))) == 4
    state = load_state(folder / "last" / "checkpoint.pt")
    assert len(state["random"]) == 2 and 0 < state["clips"] < state["train_clips"]
    # one sum of both would round otherwise, and the epoch's loss differ in the sixth digit
    assert state["meter"].shape == (2, 3) and state["meter"][:, 2].sum() == state["clips"]
    added = [shutil.copy(path, path.with_name(f"more{path.name}")) for path in two_classes.glob("*/*")]
    codes, printed = trainings(folder, resume=True, processes=2)
    assert codes == [2, 2] and all(
        f"an epoch of {state['train_clips']} training clips, and there" in p for p in printed
    )
    for path in added:
        path.unlink()
    codes, printed = trainings(folder, "data.max_bad_fraction=0.01", resume=True, processes=2)
    assert codes == [1, 1] and all("files cannot be read, more than data.max_bad_fraction=0.01" in p for p in printed)


def test_processes_that_are_missing(trainings, tmp_path, monkeypatch):
    codes, printed = trainings(tmp_path / "run", "train.timeout_minutes=0.02", processes=2, missing=1)
    assert codes == [1]
    assert "error: process 0 of 2 waited for the others at 127.0.0.1:" in printed[0] and "Traceback" not in printed[0]
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    with pytest.raises(UsageError, match="srun started 8 of these"):
        make_accelerator(load_config("r3d_softpool"))


def test_two_trainings_in_one_folder(tmp_path):
    """The second is refused; the lock goes with its process, however that ends."""
    run = Run.create(load_config("r3d_softpool", [f"output={tmp_path}"]))
    code = (
        "import pathlib, sys\nfrom softpool3d.runs.lock import lock\n"
        "lock(pathlib.Path(sys.argv[1]))\nprint(flush=True)\ninput()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, run.folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()
    try:
        with pytest.raises(UsageError, match=f"is being trained by process {holder.pid} on .*; wait for it or stop it"):
            lock(run.folder)
    finally:
        holder.kill()
        holder.wait()
    lock(run.folder)
    release()


def test_a_changed_configuration_is_compared_with_the_checkpoint_s(tmp_path):
    run = Run.create(load_config("r3d_softpool", [f"output={tmp_path}"]))

    def going_on(*overrides, processes=1, force=False):
        _, config = Run.open(run.folder, overrides)
        try:
            _, config, state, lines = begin(config, run, processes, auto=False, force=force)
        finally:
            release()
        return config, state, lines

    assert going_on("optim.lr=1")[2] == [f"{run.folder} has no checkpoint yet: starting from the beginning"]
    config = load_config(run.folder / "config.yaml")
    save_state(run.checkpoint, {"config": config.model_dump(), "processes": 1, "update_size": 8})
    assert going_on()[2] == []
    config, _, lines = going_on("data.num_workers=1", "data.decode_timeout_s=7", "test.num_crops=3")
    assert "changed: data.decode_timeout_s: 30.0 -> 7.0" in lines and len(lines) == 3
    with pytest.raises(UsageError, match=r"optim.lr: 0.03 -> 1.0; train.epochs: 10 -> 5; leave them.* --force-resume"):
        going_on("train.epochs=5", "optim.lr=1", "data.num_workers=1")
    assert going_on("optim.lr=1", force=True)[0].optim.lr == 1
    # by hand, in the file
    text = (run.folder / "config.yaml").read_text()
    (run.folder / "config.yaml").write_text(text.replace("kind: soft", "kind: max"))
    with pytest.raises(UsageError, match="model.pool.kind: soft -> max"):
        going_on()
    (run.folder / "config.yaml").write_text(text)
    # an update keeps its clips
    for overrides, processes, update in (((), 4, (8, 1)), (("train.batch_size=2",), 1, (8, 4)), ((), 3, (8, 1))):
        config, state, lines = going_on(*overrides, processes=processes)
        assert keep_update(config, state["update_size"], processes).train.update(processes) == update
        assert "an update has 8 clips" in lines[0]
    for override in ("train.accumulate=2", "train.global_batch=16"):
        with pytest.raises(UsageError, match=r"clips of an update \(train.global_batch\): 8 -> 16"):
            going_on(override)
    (run.folder / "metrics.csv").write_text("epoch\n")
    run.checkpoint.unlink()
    with pytest.raises(UsageError, match="nothing to resume from: no file"):
        going_on()


def test_resume_auto_and_a_restart_by_torchrun_find_the_run(tmp_path, monkeypatch):
    config = load_config("r3d_softpool", [f"output={tmp_path}", "optim.lr=0.5"])

    def found(auto):
        try:
            return begin(config, None, 1, auto=auto, force=False)[0]
        finally:
            release()

    assert found(auto=True) is None
    first, second = Run.create(config), Run.create(config)
    assert found(auto=True).folder == second.folder
    # runs of other names, whose folders look like a third, fourth and fifth run of this one
    for name in (f"{config.name}-3", f"{config.name}-²", f"{config.name}-04"):
        Run.create(config.model_copy(update={"name": name}))
    assert found(auto=True).folder == second.folder
    assert found(auto=False) is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job 7")
    assert found(auto=False) is None
    lock(first.folder)
    release()
    assert found(auto=False).folder == first.folder
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job 8")
    assert found(auto=False) is None


def test_a_full_disk_leaves_no_folder_of_a_run(tmp_path, monkeypatch):
    """The next try is then the first run of its name."""
    config = load_config("r3d_softpool", [f"output={tmp_path}"])

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(WorkError, match="cannot write .*config.yaml: no space left on device"):
            Run.create(config)
    assert not list(tmp_path.iterdir())
    assert Run.create(config).folder.name == config.name
