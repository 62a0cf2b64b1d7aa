"""decord's helper process: files are not mixed, and whatever becomes of it, the right frames come."""

import os
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from videos import read_numbers, write_numbered

from softpool3d.datasets.video import decord_reader
from softpool3d.datasets.video.decoder import DecodeError, open_video
from softpool3d.datasets.video.decord_reader import DecordFailed, DecordReader

pytestmark = pytest.mark.skipif(not decord_reader._decord_is_there(), reason="decord is not installed")


@pytest.fixture
def two(tmp_path):
    """Two files of the same size and length: the frames of the first are numbered from 0 on, of the other from 300."""
    return write_numbered(tmp_path / "a.mp4", 20, g="5"), write_numbered(tmp_path / "b.mp4", 20, g="5", first=300)


def test_two_open_videos_do_not_mix(two):
    with open_video(two[0], decoder="decord") as a, open_video(two[1], decoder="decord") as b:
        for _ in range(2):
            assert read_numbers(a.frames([3, 12])) == [3, 12]
            assert read_numbers(b.frames([3, 12])) == [303, 312]
        with open_video(two[0], short_side=40, decoder="decord") as small:
            assert small.frames([7]).shape == (1, 3, 40, 53)
            assert read_numbers(a.frames([7])) == [7] and a.frames([7]).shape == (1, 3, 48, 64)
        b.close()
        assert read_numbers(a.frames([4])) == [4]
        assert a.decoder == b.decoder == small.decoder == "decord"


def test_closing_a_file_twice_leaves_its_other_reader_alone(two):
    with open_video(two[0], decoder="decord") as again:
        video = open_video(two[0], decoder="decord")
        video.close()
        video.close()
        assert read_numbers(again.frames([9])) == [9] and again.decoder == "decord"


def test_more_videos_are_open_than_the_helper_keeps_open(two):
    videos = [open_video(two[n % 2], short_side=33 + n // 2 * 5, decoder="decord") for n in range(20)]
    for _ in range(2):
        for n, video in enumerate(videos):
            assert video.frames([11]).shape[2] == 33 + n // 2 * 5
            with open_video(two[n % 2], short_side=33 + n // 2 * 5) as same:
                assert (video.frames([11]).int() - same.frames([11]).int()).abs().float().mean() < 1
    assert len(_open_files(decord_reader._current)) <= decord_reader._OPEN
    for video in videos:
        assert video.decoder == "decord"
        video.close()
    assert not _open_files(decord_reader._current)


def _open_files(helper):
    descriptors = f"/proc/{helper._process.pid}/fd"
    return [n for n in os.listdir(descriptors) if os.readlink(f"{descriptors}/{n}").endswith(".mp4")]


def test_threads_of_one_process_take_turns(two):
    wrong = []

    def read(path, first):
        with open_video(path, decoder="decord") as video:
            for n in range(20):
                if read_numbers(video.frames([n])) != [first + n]:
                    wrong.append((path, n))

    threads = [threading.Thread(target=read, args=(two[k % 2], 300 * (k % 2))) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_open_video_is_read_on_both_sides_of_a_fork(two):
    with open_video(two[0], decoder="decord") as a, open_video(two[1], decoder="decord") as b:
        parents = decord_reader._current
        child = os.fork()
        if child == 0:
            code = 1
            try:
                fine = all(
                    read_numbers(a.frames([n])) == [n] and read_numbers(b.frames([n])) == [300 + n] for n in (4, 9)
                )
                a.close()
                code = 0 if fine and a.decoder == "decord" and decord_reader._current is not parents else 2
                decord_reader.stop_helper()
            finally:
                os._exit(code)
        for n in range(20):
            assert read_numbers(a.frames([n])) == [n] and read_numbers(b.frames([n])) == [300 + n]
        assert os.waitpid(child, 0)[1] == 0
        assert a.decoder == b.decoder == "decord" and decord_reader._current is parents


def test_a_relative_path_stays_that_file_when_the_folder_changes(two, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    two[1].rename(other / "a.mp4")
    monkeypatch.chdir(tmp_path)
    decord_reader.stop_helper()
    with open_video("a.mp4", decoder="decord") as a:  # the helper starts here
        monkeypatch.chdir(other)
        with open_video("a.mp4", decoder="decord") as b:
            assert read_numbers(a.frames([6])) == [6]
            assert read_numbers(b.frames([6])) == [306]


def test_a_file_that_took_the_place_of_another_is_not_read_for_it(two):
    with open_video(two[0], decoder="decord") as video:
        assert read_numbers(video.frames([6])) == [6]
        decord_reader.stop_helper()  # the next one has to open the file again
        os.replace(two[1], two[0])
        with pytest.raises(DecordFailed, match="another file"):
            DecordReader.read(video._reader, np.array([6]))


# --- a helper that is gone -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ended", [signal.SIGKILL, signal.SIGSEGV])
def test_a_helper_that_died_between_calls_is_replaced(two, ended):
    with open_video(two[0], decoder="decord") as video:
        assert read_numbers(video.frames([3])) == [3]
        os.kill(decord_reader._current._process.pid, ended)
        decord_reader._current._process.wait()
        assert read_numbers(video.frames([5, 1])) == [5, 1]
        os.kill(decord_reader._current._process.pid, ended)
        decord_reader._current._process.wait()


def test_closing_raises_nothing_whatever_became_of_the_helper(two):
    for harm in ("killed", "stopped", "socket", "gone"):
        with open_video(two[0], decoder="decord") as video:
            assert video.decoder == "decord"
            video._reader._timeout_s = 0.5
            helper = decord_reader._current
            if harm == "killed":
                os.kill(helper._process.pid, signal.SIGKILL)  # and not yet waited for
            elif harm == "stopped":
                os.kill(helper._process.pid, signal.SIGSTOP)
            elif harm == "socket":
                helper._socket.close()
            else:
                decord_reader.stop_helper()
                decord_reader._current = None
        video.close()
        assert not helper.running


def test_a_helper_that_stops_answering_leaves_the_file_to_pyav(two):
    with open_video(two[0], decoder="decord") as video:
        video._reader._timeout_s = 0.5
        os.kill(decord_reader._current._process.pid, signal.SIGSTOP)
        assert read_numbers(video.frames([5, 1])) == [5, 1]
        assert video.decoder == "pyav"


def test_an_answer_that_breaks_off_leaves_the_file_to_pyav(two, monkeypatch):
    with open_video(two[0], decoder="decord") as video:
        exactly = decord_reader._exactly

        def cut(connection, length):
            if length > 1000:
                os.kill(decord_reader._current._process.pid, signal.SIGKILL)
                raise EOFError
            return exactly(connection, length)

        monkeypatch.setattr(decord_reader, "_exactly", cut)
        assert read_numbers(video.frames([5, 1])) == [5, 1]
        assert video.decoder == "pyav"


def test_an_interrupted_call_leaves_no_answer_to_the_next_one(two, monkeypatch):
    with open_video(two[0], decoder="decord") as a, open_video(two[1], decoder="decord") as b:
        receive = decord_reader._receive

        def interrupted(_):
            raise KeyboardInterrupt

        monkeypatch.setattr(decord_reader, "_receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            a.frames([3])
        monkeypatch.setattr(decord_reader, "_receive", receive)
        assert read_numbers(b.frames([7])) == [307]
        assert b.decoder == "decord"


def test_where_no_process_can_be_started_pyav_reads(two, monkeypatch):
    decord_reader.stop_helper()

    def full(*_, **__):
        raise OSError("no more processes")

    monkeypatch.setattr(decord_reader.subprocess, "Popen", full)
    with open_video(two[0], decoder="decord") as video:
        assert video.decoder == "pyav"
        assert read_numbers(video.frames([5])) == [5]


def test_where_pyav_fails_too_it_is_that_files_error(two):
    with open_video(two[0], decoder="decord") as video:
        os.kill(decord_reader._current._process.pid, signal.SIGSTOP)
        video._timeout_s = video._reader._timeout_s = 0.5
        two[0].write_bytes(b"no video")
        with pytest.raises(DecodeError, match="a.mp4"):
            video.frames([5])


def test_a_process_ends_quietly_with_videos_open(two):
    """One of them in a helper that is gone."""
    code = f"""
        import os, signal
        from softpool3d.datasets.video import decord_reader
        from softpool3d.datasets.video.decoder import open_video
        videos = []
        for path in ({str(two[0])!r}, {str(two[1])!r}):
            videos.append(open_video(path, decoder="decord"))
            videos[-1].frames([1])
            if len(videos) == 1:
                os.kill(decord_reader._current._process.pid, signal.SIGKILL)
                decord_reader._current._process.wait()
        assert [video.decoder for video in videos] == ["decord", "decord"]
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
