"""A video read once from its beginning: its clock, and closing it while a thread reads."""

from __future__ import annotations

import threading
import time

import pytest
from videos import copy_packets, write_numbered

from softpool3d.config import DataConfig
from softpool3d.datasets.video.decoder import DecodeError
from softpool3d.datasets.video.stream import FrameStream, _Clock, ahead, steady
from softpool3d.inference.windows import steady_fps


def seconds(clock: _Clock, stamps: list[float | None]) -> list[float | None]:
    return [None if (s := clock.read(stamp)) is None else round(s, 3) for stamp in stamps]


def test_a_file_keeps_its_pauses_and_a_live_stream_goes_on():
    stamps = [5.0, 5.04, 35.08, 35.12]
    assert seconds(_Clock(25.0, False, 50.0), stamps) == [0.0, 0.04, 30.08, 30.12]
    assert seconds(_Clock(25.0, False, None), stamps) == [0.0, 0.04, 30.08, 30.12]
    assert seconds(_Clock(25.0, True, None), stamps) == [0.0, 0.04, 0.08, 0.12]


def test_a_clock_that_is_set_back_or_leads_out_of_the_file_goes_on():
    for live in (False, True):
        assert seconds(_Clock(25.0, live, 10.0), [8.0, 8.04, 0.0, 0.04]) == [0.0, 0.04, 0.08, 0.12]
    assert seconds(_Clock(25.0, False, 10.0), [0.0, 0.04, 95443.7, 95443.74]) == [0.0, 0.04, 0.08, 0.12]


def test_a_frame_that_comes_late_is_not_shown_and_one_without_a_time_is_counted():
    assert seconds(_Clock(25.0, False, 10.0), [0.0, 0.04, 0.52, 0.08, 0.56]) == [0.0, 0.04, 0.52, None, 0.56]
    assert seconds(_Clock(25.0, False, 10.0), [None, None, None]) == [0.0, 0.04, 0.08]


def test_a_pause_of_a_file_is_as_long_as_it_is(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 50, times=[n + (n > 24) * 500 for n in range(50)])
    with FrameStream(path) as stream:
        times = [t for t, _ in stream]
        assert stream.fps == 25 and stream.rate.is_even and not stream.is_live
        assert times[24:26] == [pytest.approx(0.96), pytest.approx(21.0)]
    with FrameStream(path) as stream:
        shown = [number for number, _ in steady(stream)]
    assert shown == list(range(550))


def test_joined_files_go_on_where_the_first_ends(tmp_path):
    parts = [copy_packets(write_numbered(tmp_path / f"{n}.mp4", 50), tmp_path / f"{n}.ts", delay=5.0) for n in (1, 2)]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    with FrameStream(joined) as stream:
        times = [t for t, _ in stream]
    assert len(times) == 100 and times[-1] == pytest.approx(99 / 25, abs=0.01)


def test_windows_of_a_varying_rate_are_cut_at_the_rate_that_the_network_was_trained_at(faults, tmp_path):
    with FrameStream(faults / "mr_slow.webm") as stream:
        assert steady_fps(stream, DataConfig()) == stream.fps == pytest.approx(7.085, abs=1e-3)
        assert steady_fps(stream, DataConfig(target_fps=15.0)) == 15.0
    with FrameStream(write_numbered(tmp_path / "a.mp4", 30)) as stream:
        assert steady_fps(stream, DataConfig(target_fps=30.0)) == 25.0


def test_a_reader_that_fails_is_that_files_failure(faults):
    with pytest.raises(DecodeError, match="reading it fails with IndexError"), FrameStream(faults / "damaged.ts") as s:
        list(s)


def test_a_stream_is_not_closed_under_the_thread_that_reads_it(tmp_path):
    """It was, at Ctrl-C, and the interpreter crashed. Here a read is held up: closing neither waits for it for long nor
    closes under it; the reading thread does, when it wakes up."""
    stream = FrameStream(write_numbered(tmp_path / "a.mp4", 50))
    reading, go_on = threading.Event(), threading.Event()
    decoded = stream._packets.decoded

    def held_up():
        for frame in decoded():
            reading.set()
            go_on.wait(20)
            yield frame

    stream._packets.decoded = held_up
    taken = []
    thread = threading.Thread(target=lambda: taken.extend(stream))
    thread.start()
    assert reading.wait(20)
    stream.close()
    assert thread.is_alive() and _is_open(stream)
    go_on.set()
    thread.join(20)
    assert not thread.is_alive() and len(taken) == 1 and not _is_open(stream)


def test_closing_ends_what_reads_ahead(tmp_path):
    path, before = write_numbered(tmp_path / "a.mp4", 200), threading.active_count()  # other tests may have left some
    for _ in range(20):
        stream = FrameStream(path)
        frames = ahead(stream, 2)
        next(frames)
        frames.close()
        stream.close()
        assert not _is_open(stream)
    for _ in range(100):
        if threading.active_count() <= before:
            return
        time.sleep(0.05)
    raise AssertionError("threads are left")


def _is_open(stream: FrameStream) -> bool:
    try:
        stream._container.start_time  # noqa: B018 (asks the container)
    except (AssertionError, ValueError):
        return False
    return True
