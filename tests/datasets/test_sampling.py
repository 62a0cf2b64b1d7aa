import numpy as np
import pytest

from softpool3d.datasets.sampling import clip_span, frames_from, random_clip, segment_frames, spaced_clips


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


def test_spaced_clips_go_from_the_first_to_the_last():
    clips = spaced_clips(100, 4, 8, 3)
    assert [int(clip[0]) for clip in clips] == [0, 38, 75]
    assert clips[-1][-1] == 99
    assert spaced_clips(100, 4, 8, 1)[0][0] == 37
    assert [c.tolist() for c in spaced_clips(3, 2, 4, 2)] == [[0, 1], [0, 1]]


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
