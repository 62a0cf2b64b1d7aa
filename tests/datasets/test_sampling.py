import numpy as np
import pytest

from softpool3d.config import DataConfig
from softpool3d.datasets.sampling import (
    FrameTimes,
    clip_span,
    frames_from,
    random_clip,
    segment_frames,
    spaced_clips,
    train_indices,
    view_indices,
)


def test_a_clip_keeps_its_rate():
    assert frames_from(3, 100, 4, 8).tolist() == [3, 11, 19, 27]
    assert clip_span(4, 8) == 25


def test_short_videos_loop_or_hold():
    assert frames_from(0, 5, 4, 2, "loop").tolist() == [0, 2, 4, 1]
    assert frames_from(0, 5, 4, 2, "hold").tolist() == [0, 2, 4, 4]
    assert frames_from(0, 1, 3, 4, "loop").tolist() == [0, 0, 0]


def test_random_clips_reach_every_start_and_no_further():
    rng = np.random.default_rng(0)
    starts = {int(random_clip(20, 4, 5, rng)[0]) for _ in range(200)}
    assert starts == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("spacing", "starts"),
    [("centres", [12, 37, 62]), ("ends", [0, 38, 75]), ("starts", [0, 25, 50])],  # 75 is the last that fits
)
def test_spaced_clips_lie_where_they_are_asked_for(spacing, starts):
    clips = spaced_clips(100, 4, 8, 3, spacing=spacing)
    assert [int(clip[0]) for clip in clips] == starts and clips[-1][-1] == starts[-1] + 24
    assert spaced_clips(100, 4, 8, 1, spacing=spacing)[0][0] == 37
    assert [c.tolist() for c in spaced_clips(3, 2, 4, 2, spacing=spacing)] == [[0, 1], [0, 1]]
    timeline = FrameTimes(np.arange(100) / 25, 25.0, by_time=False)
    data = DataConfig(num_frames=4, sampling_rate=8, test_spacing=spacing)
    assert [int(clip[0]) for clip in view_indices(timeline, data, 3)] == starts
    assert [int(clip[0]) for clip in view_indices(timeline, data, 3, "ends")] == [0, 38, 75]


def test_no_view_lies_at_an_end_unless_it_is_asked_to():
    """People stand still there: of two views at the very ends a network knew little."""
    assert [int(clip[0]) for clip in spaced_clips(100, 8, 4, 2)] == [17, 53]  # of 0 to 71


def test_segments_cover_the_video():
    assert segment_frames(10, 5).tolist() == [1, 3, 5, 7, 9]
    assert segment_frames(2, 4).tolist() == [0, 0, 1, 1]
    rng = np.random.default_rng(0)
    for _ in range(50):
        frames = segment_frames(40, 4, rng)
        assert [int(f) // 10 for f in frames] == [0, 1, 2, 3]


def test_a_video_without_frames_is_an_error():
    for call in (lambda: frames_from(0, 0, 4, 1), lambda: segment_frames(0, 4)):
        with pytest.raises(ValueError, match="0 frames"):
            call()


def test_rates_that_are_not_whole():
    assert frames_from(0, 100, 5, 2.5).tolist() == [0, 2, 5, 7, 10]
    assert clip_span(5, 2.5) == 11


def test_jitter_moves_each_frame_by_less_than_half_its_distance():
    rng = np.random.default_rng(0)
    moved = set()
    for _ in range(200):
        clip = random_clip(33, 8, 4, rng, jitter=1.0)
        assert (np.diff(clip) >= 0).all() and clip[0] >= 0 and clip[-1] <= 32
        moved |= set(np.diff(clip).tolist())
    assert len(moved) > 4
    assert np.ptp(np.diff(random_clip(33, 8, 4, rng))) == 0


CONSTANT = FrameTimes(np.arange(100) / 50, 50, by_time=False)


def test_a_target_rate_counts_in_its_own_frames():
    """25 frames a second of a video of 50 are every second one."""
    data = DataConfig(num_frames=4, sampling_rate=3, target_fps=25, sampling="centred")
    rng = np.random.default_rng(0)
    assert np.diff(train_indices(CONSTANT, data, rng)).tolist() == [6, 6, 6]
    slow = FrameTimes(np.arange(100) / 10, 10, by_time=False)
    assert np.diff(train_indices(slow, data, rng)).tolist() == [1, 1, 1]  # 1.2 frames, rounded down


@pytest.mark.parametrize("sampling", ["dense", "centred", "uniform"])
@pytest.mark.parametrize("short_clip", ["loop", "hold"])
@pytest.mark.parametrize("sample_by", ["index", "time"])
def test_every_kind_stays_within_the_video(sampling, short_clip, sample_by):
    data = DataConfig(
        sampling=sampling, short_clip=short_clip, sample_by=sample_by, num_frames=8, sampling_rate=3, jitter=0.5
    )
    rng = np.random.default_rng(0)
    for total in (1, 2, 5, 22, 200):
        times = np.cumsum(rng.uniform(0.01, 0.1, total))
        timeline = FrameTimes(times, (total - 1) / (times[-1] - times[0]) if total > 1 else 25.0, sample_by == "time")
        for indices in [train_indices(timeline, data, rng) for _ in range(20)] + view_indices(timeline, data, 3):
            assert indices.shape == (8,) and indices.dtype == np.int64
            assert indices.min() >= 0 and indices.max() < total
            if short_clip == "hold" or total >= 27:
                assert (np.diff(indices) >= 0).all()


def test_by_time_frames_are_what_is_shown_then():
    """One second of a slide show at 1, then one second at 10 frames a second."""
    times = np.concatenate([[0.0], 1 + np.arange(10) / 10])
    fps = 10 / 1.9
    by_index = FrameTimes(times, fps, by_time=False)
    by_time = FrameTimes(times, fps, by_time=True)
    data = DataConfig(num_frames=4, sampling_rate=1, target_fps=2, sampling="centred")
    assert view_indices(by_time, data, 1)[0].tolist() == [0, 0, 3, 7]  # due at 0.29, 0.67, 1.24 and 1.62 s
    assert view_indices(by_index, data, 1)[0].tolist() == [1, 3, 6, 8]
    constant = FrameTimes(np.arange(100) / 50 + 1e-5, 50, by_time=True)
    assert train_indices(constant, data, np.random.default_rng(0)).tolist() == [12, 37, 62, 87]


def test_rounded_timestamps_change_nothing():
    """Times in milliseconds, as Matroska has them."""
    times = np.round(np.arange(300) / 29.97, 3)
    data = DataConfig(num_frames=16, sampling_rate=4)
    by_time, by_index = (view_indices(FrameTimes(times, 29.97, by_time=flag), data, 5) for flag in (True, False))
    assert np.array_equal(by_time, by_index)
