"""A window slid over a video: which frames each one sees, how labels become segments, what is written."""

import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from videos import read_numbers, write_numbered

from softpool3d import Classifier
from softpool3d.config import DataConfig
from softpool3d.datasets.sources.motion import CLASSES, render
from softpool3d.datasets.video.decoder import open_video
from softpool3d.datasets.video.encoder import write_video
from softpool3d.datasets.video.stream import FrameStream, ahead, steady
from softpool3d.inference import windows as module
from softpool3d.inference.timeline import Windows, _segments, _smoothed, watch
from softpool3d.inference.timeline_files import annotated_frames, draw_plot, rendered
from softpool3d.inference.windows import Sliding, clips_of_windows

DATA = DataConfig(num_frames=4, sampling_rate=3, crop_size=48, short_side=48, train_short_side=[48, 48])


@pytest.fixture(scope="module")
def match(tmp_path_factory):
    """Four seconds to the left, then four to the right."""
    path = tmp_path_factory.mktemp("match") / "match.mp4"
    pieces = [np.concatenate([render(label, np.random.default_rng((3, label)))] * 3) for label in (0, 1)]
    write_video(path, np.concatenate(pieces), 25, crf=14)
    return path


def test_windows_see_the_frames_of_testing(tmp_path):
    """Each window's clip is the one that testing takes from a video as long as the window, and of its size."""
    path = write_numbered(tmp_path / "a.mp4", 103)
    data = DATA.model_copy(update={"short_side": 48})
    sliding = Sliding(data, 25.0, 1.0, 0.4)
    with FrameStream(path) as stream:
        found = list(clips_of_windows(stream, sliding, data, 3, lambda *_: None))
    assert len(found) == 9 and sliding.exists(8, 103) and not sliding.exists(9, 103)
    for number, (start, end, views) in enumerate(found):
        assert (start, end) == (pytest.approx(0.4 * number), pytest.approx(min(0.4 * number + 1, 103 / 25)))
        assert views.shape == (3, 3, 4, 48, 48)
        picture = torch.zeros(4, 3, 48, 64, dtype=torch.uint8)
        picture[..., :48], picture[..., 48:] = views[0].transpose(0, 1), views[2].transpose(0, 1)[..., 32:]
        # of 25 frames the clip's 10 lie in the middle: from the 8th on
        assert read_numbers(picture) == [min(10 * number + 7 + 3 * i, 102) for i in range(4)]


def test_a_video_shorter_than_a_window(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 5)
    with FrameStream(path) as stream:
        ((start, end, views),) = clips_of_windows(stream, Sliding(DATA, 25.0, 2.0, 1.0), DATA, 1, lambda *_: None)
    assert (start, end) == (0, 0.2) and views.shape == (1, 3, 4, 48, 48)


def test_memory_does_not_grow_with_the_video(tmp_path, monkeypatch):
    """However long the video, no more pictures are alive than two windows have frames."""
    path, alive, most = write_numbered(tmp_path / "a.mp4", 500), weakref.WeakSet(), 0

    class Holder(np.ndarray):
        pass

    class Counting(module.Scaler):
        def __call__(self, frame):
            nonlocal most
            picture = np.array(super().__call__(frame)).view(Holder)
            alive.add(picture)
            most = max(most, len(alive))
            return picture

    Holder.__hash__ = lambda self: id(self)
    Holder.__eq__ = lambda self, other: self is other
    monkeypatch.setattr(module, "Scaler", Counting)
    with FrameStream(path) as stream:
        count = sum(1 for _ in clips_of_windows(stream, Sliding(DATA, 25.0, 2.0, 0.5), DATA, 1, lambda *_: None))
    assert count == 37 and 4 <= most <= 100


def test_a_varying_rate_is_followed_in_time(tmp_path):
    """Frames that stay longer are seen in more of the steady frames; none is due before it is shown."""
    times = [n if n < 20 else 20 + 3 * (n - 20) for n in range(30)]
    path = write_numbered(tmp_path / "a.mkv", 30, times=times)
    with FrameStream(path) as stream:
        stream.fps = 25.0
        shown = [frame.pts for _, frame in steady(stream)]
        seconds = {pts: shown.count(pts) for pts in shown}
    assert list(seconds.values())[:20] == [1] * 20 and list(seconds.values())[20:-1] == [3] * 9


def test_segments():
    windows = Windows()
    for number, (label, score) in enumerate([(0, 0.9), (0, 0.7), (1, 0.6), (1, 0.4), (1, 0.8), (2, 0.9)]):
        probabilities = torch.full((3,), (1 - score) / 2)
        probabilities[label] = score
        windows.add(number, number + 2, probabilities)
    found = [(s.start, s.end, s.label, s.score) for s in _segments(windows, ("a", "b", "c"), 0.5)]
    assert found == [
        (0.0, 2.5, "a", pytest.approx(0.8)),
        (2.5, 3.5, "b", pytest.approx(0.6)),
        (4.5, 5.5, "b", pytest.approx(0.8)),
        (5.5, 7.0, "c", pytest.approx(0.9)),
    ]


@pytest.mark.parametrize("width", [1, 3, 5])
def test_smoothing(width):
    values = [1.0, 4.0, 7.0, 1.0, 0.0, 2.0, 5.0]
    windows = [(float(n), n + 1.0, torch.tensor([value])) for n, value in enumerate(values)]
    half = width // 2
    expected = [np.mean(values[max(n - half, 0) : n + half + 1]) for n in range(len(values))]
    found = list(_smoothed(windows, width))
    assert [start for start, _, _ in found] == list(range(len(values)))
    assert [float(p) for _, _, p in found] == pytest.approx(expected)
    assert len(list(_smoothed(windows[:1], width))) == 1


def test_ahead_passes_errors_on_and_may_drop():
    def broken():
        yield 1
        raise ValueError("broken")

    found = ahead(broken(), 2)
    assert next(found) == 1
    with pytest.raises(ValueError, match="broken"):
        next(found)
    assert list(ahead(range(50), 3)) == list(range(50))
    late = list(ahead(range(50), 1, drop=True))
    assert late == sorted(late) and late[-1] == 49


def test_what_is_seen_when(match, tmp_path):
    found = watch(Classifier(), match, 1.4, 0.5)
    labels = [segment.label for segment in found.segments]
    assert labels[0] == "moving left" and labels[-1] == "moving right"
    assert found.duration == pytest.approx(192 / 25) and not found.damage
    assert all(0.5 <= segment.score <= 1 for segment in found.segments)
    assert 2 <= len(found.thumbnails) <= 10

    record = json.loads(rendered(found, ".json"))
    assert len(record["windows"]) == len(found.windows) and record["segments"][0]["label"] == "moving left"
    lines = rendered(found, ".csv").decode().splitlines()
    assert lines[0] == "file,start,end,label,score" and len(lines) == 1 + len(labels)
    vtt, srt = rendered(found, ".vtt").decode(), rendered(found, ".srt").decode()
    assert vtt.startswith("WEBVTT\n\n1\n00:00:00.000 --> 00:00:0") and "moving left (" in vtt
    assert srt.startswith("1\n00:00:00,000 --> 00:00:0") and srt.count(" --> ") == len(labels)

    draw_plot(tmp_path / "plot.png", found, 0.5)
    draw_plot(tmp_path / "bare.png", replace(found, thumbnails=[]), 0.5)
    sizes = [Image.open(tmp_path / name).size for name in ("plot.png", "bare.png")]
    assert sizes[0][0] == sizes[1][0] and sizes[0][1] - sizes[1][1] == pytest.approx(1.3 * 110, abs=2)
    assert np.asarray(Image.open(tmp_path / "plot.png").convert("L")).std() > 20
    frames = np.stack(list(annotated_frames(found)))
    with open_video(match) as video:
        plain = video.frames(range(video.num_frames)).permute(0, 2, 3, 1).numpy()
    assert frames.shape == plain.shape == (192, 112, 112, 3)
    assert (frames[10, :80] == plain[10, :80]).all() and (frames[10, -14:] != plain[10, -14:]).any()
    assert set(CLASSES) == set(found.classes)


def test_windows_are_averaged_and_segments_chosen_as_asked_for(match):
    classifier = Classifier()
    plain, smooth = (watch(classifier, match, 1.4, 0.5, smooth=width, min_score=0.4) for width in (1, 5))
    scores = [dict(plain.windows.tops(number)) for number in range(len(plain.windows))]
    compared = 0
    for number in range(2, len(scores) - 2):
        for label, score in smooth.windows.tops(number):
            around = [scores[at].get(label) for at in range(number - 2, number + 3)]
            if None not in around:  # five labels of a window are kept
                assert score == pytest.approx(sum(around) / 5, abs=1e-5)
                compared += max(around) - min(around) > 0.01
    assert compared > 4
    strict = watch(classifier, match, 1.4, 0.5, smooth=1, min_score=0.9)
    assert all(segment.score >= 0.9 for segment in strict.segments)
    assert min(segment.score for segment in plain.segments) < 0.9
