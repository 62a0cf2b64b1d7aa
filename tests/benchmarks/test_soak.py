"""The soak in seconds: nothing is at fault, and what is at fault is found."""

import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soak_files
import soak_memory
import soak_rows
import soak_stream
import soak_trainings
from soak_files import DAMAGES, damaged, whole_files

from softpool3d.runs.checkpoint import load_state, save_state

SHORT = ["train.epochs=1", "optim.warmup_epochs=0", "data.motion_clips=[8,8,8]"]


def never():
    return False


def test_damaged_files_are_used_or_named():
    said = []
    counts, faults = soak_files.soak_files(16, 3, never, said.append)
    assert not faults and not said, said
    assert counts["used"] and counts["named"] and counts["used"] + counts["named"] == 5 * 16


def test_what_ends_the_reader_is_a_fault_and_the_next_file_is_read(tmp_path, monkeypatch):
    script = tmp_path / "reader.py"
    script.write_text(
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    for way in range(5):\n"
        "        print(json.dumps({'file': line.strip(), 'way': str(way)}), flush=True)\n"
        "        if '00001-' in line and way == 2: sys.exit(7)\n"
        "        print(json.dumps({'outcome': 'used', 'open': 4, 'mib': 1.0, 'left': []}), flush=True)\n"
    )
    monkeypatch.setattr(soak_files, "__file__", str(script))
    said = []
    counts, faults = soak_files.soak_files(3, 3, never, said.append)
    assert counts["used"] == 5 + 2 + 5 and counts["crash"] == 1
    assert faults[0]["way"] == "2" and "00001-" in said[0] and "exit code 7" in said[0]


@pytest.mark.parametrize(("opened", "mib"), [(1, 0.0), (0, 0.1)])
def test_what_stays_open_or_in_memory_is_a_fault(opened, mib, monkeypatch):
    readings = [{"outcome": "used", "open": 4 + opened * n, "mib": 100 + mib * n, "left": []} for n in range(1000)]
    monkeypatch.setattr(soak_files, "findings", lambda *_: iter(readings))
    counts, faults = soak_files.soak_files(200, 3, never, print)
    assert counts["used"] == 1000 and [fault["outcome"] for fault in faults] == ["grown"]


def test_every_damage_changes_a_file(tmp_path):
    rng, contents = np.random.default_rng(0), [path.read_bytes() for path in whole_files(tmp_path)]
    for damage in DAMAGES:
        changed = [damaged(content, damage, contents, rng) for content in contents]
        assert sum(one != other for one, other in zip(changed, contents, strict=True)) >= len(contents) - 2, damage


def test_killed_commands_lose_nothing_and_what_is_lost_is_found(tmp_path, monkeypatch):
    files = [path for path in whole_files(tmp_path) if path.suffix in (".mp4", ".mkv", ".avi", ".mov")] * 2
    every = soak_rows.cases

    def one(videos, out):
        return {"classify, .csv": every(videos, out)["classify, .csv"]}

    monkeypatch.setattr(soak_rows, "cases", one)
    kills, faults = soak_rows.soak_rows(files, 1, 3, never, print)
    assert kills == {"classify, .csv": 1} and not faults

    class Lossy:
        def __init__(self, *arguments, **settings):
            self.returncode = 0

        wait = send_signal = lambda self, *_: None

        def communicate(self, timeout):
            return "", ""

    monkeypatch.setattr(subprocess, "Popen", Lossy)
    monkeypatch.setattr(soak_rows, "_of_csv", lambda path: [])
    _, faults = soak_rows.soak_rows(files, 0, 3, never, lambda text: None)
    assert faults and all(fault.startswith("classify, .csv: lost [") for fault in faults)
    assert Path(files[0]).exists() and signal.SIGKILL in soak_rows.SIGNALS


def test_memory_that_grows_is_found(tmp_path, monkeypatch):
    script = tmp_path / "grows.py"
    script.write_text(
        "import json, sys\n"
        "for clips in range(50, int(sys.argv[2]) + 1, 50):\n"
        "    print(json.dumps([clips, 100 + (clips / 100 if sys.argv[1] == 'loader' else 0)]))\n"
    )
    monkeypatch.setattr(soak_memory, "__file__", str(script))
    assert soak_memory.soak_memory("clips", 1000, never) == ("1,000 clips: 100 MiB, +0.0%", False)
    assert soak_memory.soak_memory("loader", 1000, never) == ("1,000 clips: 105 MiB, +4.8%", True)
    assert soak_memory.soak_memory("clips", 100, never) == ("ended after 100 clips", True)


def test_memory_is_measured_as_clips_go_by():
    for way in soak_memory.WAYS:
        samples = list(soak_memory._samples(way, 100, never))
        assert [clips for clips, _ in samples] == [50, 100] and all(50 < mib < 4000 for _, mib in samples)


def test_trainings_end_with_the_same_bits_and_what_differs_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(soak_trainings, "TRAININGS", {"usual": soak_trainings.Training([*SHORT])})
    monkeypatch.setattr(soak_trainings, "ACCIDENTS", {"read-only folder": soak_trainings.ACCIDENTS["read-only folder"]})
    done, faults = soak_trainings.soak_trainings(1, 3, never, print)
    assert done == {"usual": {"read-only folder": 1}} and not faults

    assert soak_trainings._run(soak_trainings.Training(SHORT), tmp_path).code == 0
    (run,) = tmp_path.iterdir()
    copy = shutil.copytree(run, tmp_path / "copy")
    assert soak_trainings.differences(run, copy) == []
    state = load_state(copy / "last" / "checkpoint.pt")
    name = next(iter(state["model"]))
    state["model"][name] += 1e-6
    save_state(copy / "last" / "checkpoint.pt", {**state, "parts": {**state["parts"], "more": 1}})
    metrics = (copy / "metrics.csv").read_text()
    (copy / "metrics.csv").write_text(metrics.replace("\n1,", "\n2,"))
    assert soak_trainings.differences(run, copy) == [
        f"['model']['{name}']",
        "['rows'][0]['epoch']",
        "['parts']['more']",
    ]


def test_what_a_training_says_of_its_end(tmp_path):
    one, two = soak_trainings.Training([]), soak_trainings.Training([], processes=2)
    trace = 'Traceback (most recent call last):\n  File "/usr/lib/torch/distributed/run.py", line 1\n'

    def wrong(training, code, told):
        return soak_trainings._wrong(training, soak_trainings._End(code, 1.0, told, struck=True))

    assert wrong(one, 1, "error: cannot write a: no space left on device\n") == []
    assert wrong(one, -9, "") == [] and wrong(one, 1, "") != []
    assert wrong(one, 1, trace) != []
    assert wrong(two, 1, trace + "error: stopped") == []
    ours = f'  File "{soak_trainings.ROOT}/softpool3d/cli.py", line 1\n'
    assert wrong(two, 1, trace + ours + "error: stopped") != []


@pytest.fixture
def rtsp():
    if soak_stream.lacking_for_rtsp():
        pytest.skip(f"no RTSP server can be started here: {soak_stream.lacking_for_rtsp()}")


def test_a_real_camera_s_connection_is_cut_and_comes_back(rtsp):
    assert soak_stream._cut(np.random.default_rng(0)) == ("cut connection", [])


def test_a_stream_goes_on_when_its_clock_is_set():
    assert soak_stream._clock_set(np.random.default_rng(0)) == ("clock set", [])


def test_what_is_wrong_with_a_stream_is_found():
    class Watcher:
        windows = ((0.0, 5.0), (1.0, 6.0), (2.0, 6.0), (3.0, 90.0))

    found = soak_stream._wrong(Watcher, "Traceback (most recent call last):", "is back")
    assert [text.split()[0] + " " + text.split()[-1] for text in found] == [
        "a last):",
        "it last):'",
        "its ascend",
        "its off",
    ]
    Watcher.windows = ((0.0, 5.0), (1.0, 6.0))
    assert soak_stream._wrong(Watcher, "is back", "is back") == []
