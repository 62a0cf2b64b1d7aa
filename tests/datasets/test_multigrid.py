"""Which clips multigrid training takes when, and that they show what whole clips show."""

import itertools

import numpy as np
import pytest
import torch

from softpool3d.config import MultigridConfig
from softpool3d.config_file import load_config
from softpool3d.datasets.batches import TrainBatches
from softpool3d.datasets.loader import to_device, train_loader
from softpool3d.datasets.multigrid import Grid, Multigrid
from softpool3d.datasets.sampling import FrameTimes, train_indices
from softpool3d.datasets.sources.motion import read_motion
from softpool3d.datasets.transforms import TrainTransform
from softpool3d.errors import UsageError

BOTH = Multigrid.of(MultigridConfig(short_cycle=True, long_cycles=[3]))


def test_shapes_of_the_paper():
    """Table 1 of arXiv 1912.00998: 8B x T/4, 4B x T/2, 2B x T/2 and B x T; short cycles of 4B, 2B and B at most."""
    shapes = [Grid(*shape) for shape in MultigridConfig().long_shapes]
    assert [shape.clips for shape in shapes] == [8, 4, 2, 1]
    assert [BOTH.grid(3.0, update)[0].clips for update in range(4)] == [4, 2, 1, 4]
    assert [BOTH.grid(0.0, update)[0] for update in range(3)] == [(0.25, 0.5), (0.25, 0.7071), (0.25, 0.7071)]
    assert {BOTH.grid(0.0, update)[1] for update in range(3)} == {8}  # the rate is that of the long cycle
    assert len(BOTH.grids(3)) == 8 and BOTH.grids(3) == BOTH.grids(4)
    assert Multigrid().grids(5) == {Grid()} and Multigrid().grid(1.5, 7) == (Grid(), 1)


def test_long_cycles_give_each_shape_as_many_updates():
    long = Multigrid.of(MultigridConfig(long_cycles=[15, 30]))
    assert [end for end, _ in long.spans] == pytest.approx([8, 12, 14, 15, 23, 27, 29, 30])
    batches = TrainBatches(4000, 10, 0, multigrid=long)
    counts = {}
    for epoch in range(15):
        batches.set_position(epoch)
        for keys in batches:
            counts[keys[0].grid] = counts.get(keys[0].grid, 0) + 1
    assert len(counts) == 4 and max(counts.values()) - min(counts.values()) <= 2


def test_the_published_schedule():
    """PySlowFast makes these epochs from its SLOWFAST_8x8_R50_stepwise_multigrid.yaml."""
    config = load_config("kinetics400/slowfast_r50_multigrid")
    multigrid = Multigrid.of(config.train.multigrid)
    published = [73, 110, 142, 158, 205, 228, 248, 259, 291, 308, 322, 329]
    assert [end for end, _ in multigrid.spans] == pytest.approx(published, abs=0.8)
    plain, cheap = TrainBatches(240_000, 64, 0), TrainBatches(240_000, 64, 0, multigrid=multigrid)
    saving = 239 * plain.steps_in(0) / sum(map(cheap.steps_in, range(config.train.epochs)))
    assert saving == pytest.approx(239 / 69.8, rel=0.01)  # 69.8 epochs' worth of plain updates, by its formulas


@pytest.mark.parametrize(("count", "size"), [(173, 2), (64, 4), (40, 2), (16, 1)])
def test_each_clip_comes_once_whatever_the_sizes(count, size):
    for epoch in range(4):
        alone = TrainBatches(count, size, 1, multigrid=BOTH)
        alone.set_position(epoch)
        updates = list(alone)
        assert len(updates) == alone.steps_in(epoch) == len(alone)
        assert sorted(key.index for keys in updates for key in keys) == list(range(count))
        for keys in updates:
            assert len({key.grid for key in keys}) == 1
            assert 1 <= len(keys) <= size * keys[0].grid.clips
        for world, accumulate in ((2, 1), (1, 2), (3, 2)):
            ranks = [TrainBatches(count, size, 1, rank, world, accumulate, BOTH) for rank in range(world)]
            for batches in ranks:
                batches.set_position(epoch)
            together = [list(batches) for batches in ranks]
            for number, keys in enumerate(updates):
                parts = range(number * accumulate, (number + 1) * accumulate)
                shares = [
                    (set(steps[part]), batches.weight(part))
                    for batches, steps in zip(ranks, together, strict=True)
                    for part in parts
                ]
                assert set().union(*(share for share, weight in shares if weight)) == set(keys)
                assert sum(weight for _, weight in shares) == pytest.approx(world)


def test_an_interrupted_epoch_goes_on_with_the_same_updates():
    batches = TrainBatches(173, 2, 1, multigrid=BOTH)
    for epoch in range(4):
        batches.set_position(epoch)
        whole, rates = list(batches), [batches.rate(step) for step in range(len(batches))]
        ends = [batches.done(step) for step in range(len(batches) + 1)]
        for step, done in enumerate(ends):
            batches.set_position(epoch, done)
            assert batches.first == step and list(batches) == whole[step:]
            assert [batches.rate(step + n) for n in range(len(batches))] == rates[step:]
            assert batches.done(step) == done
        other = next(done for done in range(173) if done not in ends)
        batches.set_position(epoch, other)
        assert 0 <= batches.first < batches.steps_in(epoch) and sum(map(len, batches)) == 173 - other


@pytest.fixture(scope="module")
def motion():
    return read_motion((64, 8, 8))["train"]


SMALL = ["data.num_workers=0", "train.batch_size=2", "train.multigrid.short_cycle=true", "train.epochs=4"]


def test_clips_of_each_grid(motion):
    """Frames and pixels of the batches, in workers and on the device alike."""
    config = load_config("r3d_softpool", [*SMALL, "train.multigrid.long_cycles=[3]"])
    loader = train_loader(motion, config)
    on_device = train_loader(motion, load_config("r3d_softpool", [*SMALL, "train.multigrid.long_cycles=[3]",
                                                                 "data.transforms_on_device=true"]))  # fmt: skip
    shapes = set()
    for epoch in (0, 2, 3):
        for batches in (loader, on_device):
            batches.batch_sampler.set_position(epoch)
        for batch, other in itertools.islice(zip(loader, on_device, strict=True), 3):
            video = to_device(other, config.data, torch.device("cpu"))
            torch.testing.assert_close(batch.video, video)
            shapes.add(tuple(batch.video.shape[2:]))
    assert shapes == {
        (2, 32, 32),
        (2, 45, 45),
        (4, 32, 32),
        (8, 32, 32),
        (8, 45, 45),
        (8, 64, 64),
        (4, 45, 45),
        (4, 64, 64),
    }


def test_a_coarse_clip_spans_the_same_time_and_picture():
    data = load_config("r3d_softpool", ["data.num_frames=8", "data.sampling_rate=4"]).data
    timeline = FrameTimes(np.arange(64) / 25, 25.0, False)
    steps = {
        share: {tuple(np.diff(train_indices(timeline, data, np.random.default_rng(seed), share))) for seed in range(9)}
        for share in (1.0, 0.5, 0.25)
    }
    assert steps == {1.0: {(4,) * 7}, 0.5: {(8,) * 3}, 0.25: {(16,)}}
    for seed in range(9):
        whole, half = (TrainTransform(data).recipe(0, np.random.default_rng(seed), share) for share in (1.0, 0.5))
        assert half.crop_size == 32 and half.short_side == pytest.approx(whole.short_side / 2, abs=0.5)
        assert half[2:] == whole[2:]


def test_long_cycles_have_to_rise_and_end_with_the_run():
    for value, message in (
        ("[3,2]", "rising order"),
        ("[2,5]", r"multigrid.long_cycles \[2, 5\] end after the run's 4 epochs"),
    ):
        with pytest.raises(UsageError, match=message):
            load_config("r3d_softpool", [*SMALL, f"train.multigrid.long_cycles={value}"])
