import subprocess
import sys

import pytest
import torch
from videos import damaged_files, read_numbers, write_numbered

from softpool3d.config import DataConfig
from softpool3d.config_file import load_config, override_config
from softpool3d.datasets.batches import EvalBatches, TrainBatches
from softpool3d.datasets.loader import eval_loader, timeline_of, train_loader
from softpool3d.datasets.manifest import Clip, Manifest
from softpool3d.datasets.multigrid import Grid
from softpool3d.datasets.sources.motion import read_motion
from softpool3d.datasets.video.decoder import DecodeError, open_video
from softpool3d.datasets.views import read_views
from softpool3d.errors import UsageError


@pytest.fixture(scope="module")
def config():
    return load_config("r3d_softpool", ["data.num_workers=0", "train.batch_size=4", "test.batch_size=4"])


@pytest.fixture(scope="module")
def motion():
    return read_motion((16, 8, 8))


def drawn(loader, epoch):
    loader.batch_sampler.set_position(epoch)
    return {int(i): v for batch in loader for i, v in zip(batch.index, batch.video, strict=True)}


def test_samples_depend_on_seed_epoch_and_index_alone(config, motion):
    alone = drawn(train_loader(motion["train"], config), 3)
    parallel = config.model_copy(deep=True)
    parallel.data.num_workers = 2
    workers = drawn(train_loader(motion["train"], parallel), 3)
    assert alone.keys() == workers.keys() == set(range(16))
    assert all(torch.equal(alone[i], workers[i]) for i in alone)
    later = drawn(train_loader(motion["train"], config), 4)
    assert not all(torch.equal(alone[i], later[i]) for i in alone)
    shares = [drawn(train_loader(motion["train"], config, rank, 2), 3) for rank in (0, 1)]
    assert not shares[0].keys() & shares[1].keys()
    assert all(torch.equal(alone[i], clip) for share in shares for i, clip in share.items())


def test_an_epoch_goes_on_where_it_was():
    batches = TrainBatches(22, 4, seed=0)
    whole = list(batches)
    assert [len(batch) for batch in whole] == [4, 4, 3, 4, 4, 3]
    for step in range(7):
        batches.set_position(0, 0)
        batches.set_position(0, batches.done(step))
        assert list(batches) == whole[step:]
        assert batches.first == step or step == 6
    batches.set_position(1)
    assert list(batches) != whole


def test_fewer_clips_than_a_batch_are_one_batch():
    assert [len(batch) for batch in TrainBatches(3, 16, seed=0)] == [3]


def dealt(count, batch_size, world, accumulate, epoch=0, done=0):
    """Of each update, its clips and the weight that each has; and the sampler of the first process."""
    ranks = [TrainBatches(count, batch_size * world * accumulate, 5, rank, world, accumulate) for rank in range(world)]
    for batches in ranks:
        batches.set_position(epoch, done)
    updates = {}
    for batches in ranks:
        steps = list(batches)
        assert len(steps) == len(batches) == batches.steps_in(epoch) - batches.first
        for step, keys in enumerate(steps, batches.first):
            assert 1 <= len(keys) <= batch_size
            if batches.weight(step):
                share = updates.setdefault(step // accumulate, {})
                for key in keys:
                    assert key not in share
                    share[key] = batches.weight(step) / len(keys) / world
    return [updates[number] for number in sorted(updates)], ranks[0]


def test_each_clip_comes_once_an_epoch_and_counts_the_same():
    """Under any number of processes and accumulated steps: prime counts, fewer clips than processes."""
    for count in (1, 3, 7, 37, 64):
        alone, _ = dealt(count, 8, 1, 1)
        for batch_size, world, accumulate in ((8, 1, 1), (2, 4, 1), (1, 8, 1), (4, 1, 2), (1, 2, 4), (2, 1, 4)):
            updates, _ = dealt(count, batch_size, world, accumulate)
            assert [update.keys() for update in updates] == [update.keys() for update in alone]
            assert sorted(key.index for update in updates for key in update) == list(range(count))
            for update in updates:
                assert all(weight == pytest.approx(1 / len(update)) for weight in update.values())


def test_another_number_of_processes_takes_up_what_is_left():
    updates, batches = dealt(101, 4, 4, 1)
    done = batches.done(3)
    begun = [key for update in updates[:3] for key in update]
    assert len(begun) == done
    for batch_size, world, accumulate in ((4, 1, 1), (4, 2, 2), (3, 5, 1), (4, 4, 1)):
        rest, other = dealt(101, batch_size, world, accumulate, done=done)
        assert sorted(begun + [key for update in rest for key in update]) == [(0, i, Grid()) for i in range(101)]
        if batch_size * world * accumulate == 16:
            assert [update.keys() for update in rest] == [update.keys() for update in updates[3:]]
            assert other.first == 3 * accumulate


def test_evaluation_counts_every_clip_once():
    for world, count in ((1, 17), (2, 17), (3, 17), (4, 2), (4, 13)):
        ranks = [list(EvalBatches(count, 4, rank, world)) for rank in range(world)]
        assert len({len(batches) for batches in ranks}) == 1
        assert sorted(i for batches in ranks for batch in batches for _, i in batch) == list(range(count))


def test_shapes(config, motion):
    batch = next(iter(train_loader(motion["train"], config)))
    assert batch.video.shape == (4, 3, 8, 64, 64) and batch.video.dtype == torch.uint8
    views = override_config(config, ["test.batch_size=12"])
    batch = next(iter(eval_loader(motion["val"], views, num_clips=2, num_crops=3)))
    assert batch.video.shape == (2, 6, 3, 8, 64, 64)  # no more videos than have that many views
    assert batch.index.tolist() == [0, 1]


def test_evaluation_may_have_crops_of_another_size(config, motion):
    larger = override_config(config, ["data.short_side=72", "data.test_crop_size=72"])
    assert next(iter(train_loader(motion["train"], larger))).video.shape[-2:] == (64, 64)
    assert next(iter(eval_loader(motion["val"], larger))).video.shape[-2:] == (72, 72)
    with pytest.raises(UsageError, match="test_crop_size 80 does not fit into a short_side of 72"):
        override_config(larger, ["data.test_crop_size=80"])


def test_unreadable_files_are_replaced_and_reported(config, tmp_path):
    good = [Clip(str(write_numbered(tmp_path / f"{i}.mp4", 30)), 0) for i in range(4)]
    bad = [Clip(str(path), 1) for path in damaged_files(tmp_path).values()]
    manifest = Manifest(("a", "b"), (*good, *bad))
    config = load_config("r3d_softpool", ["data.num_workers=0", "train.batch_size=8", "data.short_side=64"])
    batch = next(iter(train_loader(manifest, config)))
    assert batch.video.shape[0] == 8 and batch.label.tolist() == [0] * 8
    assert {error.path for error in batch.bad} == {clip.path for clip in bad}

    batches = list(eval_loader(manifest, config))
    assert sorted(i for batch in batches for i in batch.index.tolist()) == [0, 1, 2, 3]
    assert {error.path for batch in batches for error in batch.bad} == {clip.path for clip in bad}


def test_part_of_a_video(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 100, rate=25)
    whole = DataConfig()
    with open_video(path) as video:
        for clip, expected in (
            (Clip(str(path), 0, 1.0, 3.0), (25, 50)),
            (Clip(str(path), 0), (0, 100)),
            (Clip(str(path), 0, 3.5, 4.05), (88, 12)),  # a frame more than there is: lists round
        ):
            first, timeline = timeline_of(clip, video, whole)
            assert (first, timeline.total) == expected
        for clip, message in (
            (Clip(str(path), 0, 90.0, 95.0), r"starts at 90.0 s, and the video is over after 4.00 s"),
            (Clip(str(path), 0, 4.0), r"starts at 4.0 s, and the video is over after 4.00 s"),
            (Clip(str(path), 0, 1.0, 4.2), r"ends at 4.2 s, and the video is over after 4.00 s"),
        ):
            with pytest.raises(DecodeError, match=message):
                timeline_of(clip, video, whole)

    data = load_config(
        "r3d_softpool", ["data.short_side=64", "data.crop_size=48", "data.train_short_side=[64,64]"]
    ).data
    data.short_side = 48
    data.num_frames, data.sampling_rate, data.test_spacing = 4, 2, "ends"
    views = read_views(Clip(str(path), 0, 1.0, 3.0), data, num_clips=2, num_crops=3).clips
    assert views.shape == (6, 3, 4, 48, 48)
    left, right = views[0], views[2]
    picture = torch.zeros(4, 3, 48, 64, dtype=torch.uint8)
    picture[..., :48] = left.transpose(0, 1)
    picture[..., 48:] = right.transpose(0, 1)[..., 32:]
    assert read_numbers(picture) == [25, 27, 29, 31]


def test_uniform_sampling_covers_the_video(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 80)
    data = load_config("r3d_softpool", ["data.sampling=uniform", "data.num_frames=4", "data.crop_size=48"]).data
    views = read_views(Clip(str(path), 0), data, num_clips=5, num_crops=1).clips
    assert views.shape[0] == 1


def test_workers_that_live_to_the_end_of_the_process_end_without_a_word():
    code = (
        "from softpool3d.datasets.loader import Loader, start_worker\n"
        "batches = iter(Loader(range(4), num_workers=1, persistent_workers=True, worker_init_fn=start_worker))\n"
        "print(next(batches))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "tensor([0])", "")


def test_a_worker_says_nothing_where_its_parent_ends_while_it_takes_a_tensor():
    """As killed commands sometimes did: the thread that hands out a worker's memory loses its connection."""
    code = (
        "import os, socket, sys, time\n"
        "from multiprocessing.reduction import DupFd\n"
        "from softpool3d.datasets.loader import Loader, start_worker\n"
        "class Shares:\n"
        "    def __len__(self):\n"
        "        return 2\n"
        "    def __getitem__(self, key):\n"
        "        return DupFd(1)._id[0]\n"
        "batches = iter(Loader(Shares(), batch_size=None, num_workers=1, worker_init_fn=start_worker))\n"
        "address = next(batches)\n"
        "with socket.socket(socket.AF_UNIX) as parent:\n"
        "    parent.connect(address)\n"
        "    time.sleep(0.5)\n"  # the worker has asked who it is; the question is never read
        "with socket.socket(socket.AF_UNIX) as parent:\n"
        "    parent.connect(address)\n"
        "    print(len(parent.recv(1)), flush=True)\n"  # the thread goes on
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "1\n", "")


def test_workers_that_are_stuck_end_with_the_process():
    """As where an error keeps a loader alive: without the kill, multiprocessing would wait for them for ever."""
    code = (
        "import os, signal, time\n"
        "from softpool3d.datasets.loader import Loader, start_worker\n"
        "reading, writing = os.pipe()\n"
        "class Stuck:\n"
        "    def __len__(self):\n"
        "        return 1\n"
        "    def __getitem__(self, key):\n"
        "        os.write(writing, b'x')\n"
        "        time.sleep(600)\n"
        "batches = iter(Loader(Stuck(), num_workers=1, worker_init_fn=start_worker))\n"
        "os.read(reading, 1)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_processes_that_are_not_ours_are_left_alone():
    """A worker process of whoever uses us: at the end it gets its SIGTERM from multiprocessing, and cleans up."""
    code = (
        "import multiprocessing, signal, sys, time\n"
        "from softpool3d.datasets.loader import Loader, start_worker\n"
        "def work(ready):\n"
        "    def end(*_):\n"
        "        print('cleaned up', flush=True)\n"
        "        sys.exit()\n"
        "    signal.signal(signal.SIGTERM, end)\n"
        "    ready.set()\n"
        "    while True:\n"
        "        time.sleep(0.1)\n"
        "fork = multiprocessing.get_context('fork')\n"
        "ready = fork.Event()\n"
        "fork.Process(target=work, args=(ready,), daemon=True).start()\n"
        "ready.wait()\n"
        "batches = iter(Loader(range(4), num_workers=1, persistent_workers=True, worker_init_fn=start_worker))\n"
        "next(batches)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, "cleaned up\n", "")
