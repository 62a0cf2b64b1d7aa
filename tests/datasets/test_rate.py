"""One rate of a stream for everybody who asks: from its timestamps where the container's word does not fit them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from videos import write_numbered

from softpool3d.datasets.video.decoder import open_video
from softpool3d.datasets.video.rate import Rate, rate_of
from softpool3d.datasets.video.stream import FrameStream

EVEN = np.arange(200) / 25


@pytest.mark.parametrize(
    ("times", "claims", "expected"),
    [
        (EVEN, [], Rate(25.0)),
        (EVEN, [25.0], Rate(25.0)),
        (EVEN, [1000.0], Rate(25.0)),  # a unit of the clock
        (EVEN, [60000.0], Rate(25.0)),
        ((np.arange(90) * 1001 / 30000).round(3), [30000 / 1001], Rate(30000 / 1001)),  # as exact as the claim
        (np.concatenate([EVEN, 38 + EVEN]), [400 / 46, 25.0], Rate(25.0)),  # an average over a pause of 30 seconds
        (np.delete(EVEN, range(20, 30)), [25.0], Rate(25.0)),  # a frame is missing here and there
        (np.arange(5) * 10.0, [0.1], Rate(0.1)),  # a slide show
        (EVEN[::-1], [25.0], Rate(25.0)),  # in the order of decoding
        ([], [25.0], Rate(25.0)),
        ([], [1000.0], Rate(25.0)),
        ([0.0], [1000.0, 30.0], Rate(30.0)),
    ],
)
def test_the_rate_is_that_of_the_timestamps(times, claims, expected):
    rate = rate_of(times, claims, tick=0.001)
    assert rate.fps == pytest.approx(expected.fps, rel=1e-9) and rate.is_even == expected.is_even
    assert not claims or min(abs(claim - expected.fps) for claim in claims) > 1e-9 or rate.fps in claims


def test_uneven_frames_have_a_mean_rate_and_are_told_apart():
    intervals = np.random.default_rng(0).uniform(0.02, 0.26, 150)
    rate = rate_of(np.cumsum(intervals), [1000.0])
    assert rate.fps == pytest.approx(1 / intervals[1:].mean()) and not rate.is_even


def test_every_reader_gives_a_file_the_same_rate(tmp_path, faults):
    with_pause = write_numbered(tmp_path / "pause.mp4", 60, times=[n + (n > 29) * 750 for n in range(60)])
    expected = {
        write_numbered(tmp_path / "a.mkv", 60, rate=Fraction(30000, 1001)): 30000 / 1001,
        write_numbered(tmp_path / "b.avi", 60, "mpeg4", rate=20, bf="2"): 20.0,
        with_pause: 25.0,
        faults / "mr_slow.webm": 149 / 21.03,
    }
    for path, fps in expected.items():
        with open_video(path) as video, FrameStream(path) as stream:
            assert video.fps == stream.fps == pytest.approx(fps, rel=1e-6)
            assert len(video.times) == video.num_frames
    with open_video(with_pause) as video:
        assert video.times[-1] == pytest.approx(59 / 25 + 30, abs=1e-3)
