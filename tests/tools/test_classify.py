"""`softpool3d classify` with the network that ships with the package: what goes in, what comes out, what goes wrong."""

import csv
import json
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from videos import damaged_files, write_numbered

from softpool3d import Classifier, cli
from softpool3d.datasets.manifest import Clip
from softpool3d.datasets.sources.motion import CLASSES, render
from softpool3d.datasets.video.decoder import open_video
from softpool3d.datasets.video.encoder import write_video
from softpool3d.inference.labels_file import ResultsFile, columns
from softpool3d.inference.predictor import BatchSize

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """A folder with a clip of each class in a folder of its own, named after it."""
    folder = tmp_path_factory.mktemp("clips")
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir()
        write_video(folder / name / "clip.mp4", render(label, np.random.default_rng((7, label))), 25, crf=12)
    return folder


@pytest.fixture
def classify(monkeypatch, capsys):
    """Runs the command in this process, with the weights that ship with us: (exit code, output, errors)."""

    def run(*arguments, stdin=""):
        import io

        weights = () if "--weights" in arguments else ("--weights", "motion")
        monkeypatch.setattr(sys, "argv", ["softpool3d", "classify", *weights, *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(os.fsencode(stdin)))))
        monkeypatch.setattr(sys.stdout, "reconfigure", lambda **_: None, raising=False)
        with pytest.raises(SystemExit) as ended:
            cli.run()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err + printed.out
        return ended.value.code or 0, printed.out, printed.err

    return run


def table(path: Path) -> list[dict]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def test_it_works_right_after_install(clips, classify):
    code, out, _ = classify(clips / "moving left" / "clip.mp4")
    assert code == 0
    assert out.splitlines()[0] == str(clips / "moving left" / "clip.mp4")
    assert "moving left" in out.splitlines()[1] and len(out.splitlines()) == 6


def test_a_folder_and_the_shipped_network_is_right(clips, classify, tmp_path):
    out = tmp_path / "new" / "results.csv"
    code, printed, err = classify(clips, "--topk", 3, "--out", out, "--jobs", 1)
    assert (code, printed) == (0, "") and err.splitlines()[-1] == f"8 of 8 labelled, in {out}"
    assert out.read_bytes().startswith(b"\xef\xbb\xbffile,label") and out.read_bytes().count(b"\xef\xbb\xbf") == 1
    rows = table(out)
    assert (
        list(rows[0])
        == columns(3)
        == [
            *("file", "label", "score", "label_2", "score_2", "label_3", "score_3"),
            *("views", "duration", "seconds", "error"),
        ]
    )
    assert [row["label"] for row in rows] == [Path(row["file"]).parent.name for row in rows] == sorted(CLASSES)
    for row in rows:
        assert float(row["score"]) > float(row["score_2"]) > float(row["score_3"])
        assert (row["views"], float(row["duration"]), row["error"]) == ("2", 1.28, "")


def test_inputs(clips, classify, tmp_path):
    """Globs, lists, standard input, a manifest with times: the same files, each named once."""
    left, up = clips / "moving left" / "clip.mp4", clips / "moving up" / "clip.mp4"
    code, out, _ = classify(clips / "moving *" / "*.mp4", left, left.parent, "--json", "--jobs", 0)
    assert code == 0 and len(out.splitlines()) == 4
    (tmp_path / "list.txt").write_text(f"{left}\n\n{up} 3\n")
    code, out, _ = classify(f"@{tmp_path / 'list.txt'}", "--json", "--jobs", 0)
    assert [json.loads(line)["file"] for line in out.splitlines()] == [str(left), str(up)]
    code, out, err = classify("-", "--json", "--jobs", 0, stdin=f"{up}\n{left}\n")
    assert [json.loads(line)["file"] for line in out.splitlines()] == [str(up), str(left)]
    assert err.splitlines()[-1] == "2 of 2 labelled"
    (tmp_path / "manifest.csv").write_text(f"path,label,start,end\n{os.path.relpath(up, tmp_path)},up,0.2,1\n")
    code, out, _ = classify("--manifest", tmp_path / "manifest.csv", "--json")
    (line,) = out.splitlines()
    result = json.loads(line)
    assert (result["label"], result["duration"]) == ("moving up", pytest.approx(0.8))
    assert result["file"].endswith("clip.mp4#t=0.2,1")


def test_names_that_begin_with_a_dash(clips, classify, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(clips / "moving left" / "clip.mp4", "-clip.mp4")
    code, _, err = classify("-clip.mp4")
    assert code == 2 and err.splitlines()[-1] == (
        "a file whose name begins with - goes after --, as in: softpool3d classify -- -clip.mp4"
    )
    code, out, _ = classify("--json", "--", "-clip.mp4")
    assert code == 0 and json.loads(out)["label"] == "moving left"
    code, _, err = classify("--clip", "--", "-clip.mp4")
    assert code == 2 and "begins with -" not in err


def test_the_timeline_of_a_part_is_refused(clips, classify, tmp_path):
    (tmp_path / "list.csv").write_text(f"path,start\n{clips / 'moving left' / 'clip.mp4'},0.5\n")
    code, _, err = classify("--manifest", tmp_path / "list.csv", "--timeline")
    assert code == 2 and "--timeline is of whole files, and the list names a part: " in err and "#t=0.5" in err


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_an_address(clips, classify):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(clips))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        code, out, err = classify(f"{base}/moving%20down/clip.mp4", f"{base}/absent.mp4", "--json", "--jobs", 0)
        server.shutdown()
    assert code == 1 and json.loads(out.splitlines()[0])["label"] == "moving down"
    assert f"{base}/absent.mp4: the server says 404" in err


def test_bad_files_get_a_sentence_each(clips, classify, tmp_path):
    bad = damaged_files(tmp_path)
    one = write_numbered(tmp_path / "one.mp4", 1)
    good = clips / "zooming in" / "clip.mp4"
    (tmp_path / "videos.txt").write_text(f"{good}\n")
    files = [*bad.values(), tmp_path / "videos.txt", tmp_path / "absent.mp4", tmp_path / "empty_folder", good, one]
    (tmp_path / "empty_folder").mkdir()
    code, out, err = classify(*files, "--jobs", 1, "--weights", "motion")
    assert code == 1
    lines = err.splitlines()
    assert len(lines) == 8 and all(line.startswith("error: cannot read") for line in lines[:-1])
    assert lines[-1] == "error: 2 of 9 labelled; 7 could not be read (listed above)"
    assert f"(a list of videos is given as @{tmp_path / 'videos.txt'})" in err
    assert [line.split("  ")[-1] for line in out.splitlines()] == [str(good), str(one)]


def test_going_on_after_a_kill(clips, classify, tmp_path):
    """A torn last line is mended, nothing is done twice, and failures count as done."""
    out = tmp_path / "results.csv"
    (tmp_path / "bad.mp4").write_text("no video")
    files = [tmp_path / "bad.mp4", *sorted(clips.rglob("*.mp4"))]
    code, _, err = classify(*files[:4], "--resume", out, "--jobs", 0)
    assert code == 1 and "3 of 4 labelled; 1 could not be read" in err
    before = out.read_bytes()
    out.write_bytes(before[:-20])
    code, _, err = classify(*files, "--resume", out, "--jobs", 0)
    assert code == 0 and err.splitlines()[-1] == f"6 of 6 labelled, 3 were done before, in {out}"
    assert [row["file"] for row in table(out)] == list(map(str, files))
    assert out.read_bytes().startswith(before[:-60])
    code, _, err = classify(*files, "--out", out)
    assert code == 2 and f"{out} exists; --resume" in err
    code, _, err = classify(*files, "--resume", out, "--topk", 2)
    assert code == 2 and "give the --topk that it was written with" in err
    code, _, _ = classify(files[1], "--out", out, "--overwrite", "--topk", 1)
    assert code == 0 and len(table(out)) == 1


def test_a_full_disk(clips, tmp_path):
    """Files may not grow beyond a kilobyte here: what was written stays, and the last line is whole after resuming."""
    out = tmp_path / "results.jsonl"
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))\n"
        "from softpool3d.cli import run; run()"
    )
    command = [sys.executable, "-c", code, "classify", str(clips), "--out", str(out), "--topk", "5", "--jobs", "0"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"cannot write {out}: file too large" in result.stderr and "labelled)" in result.stderr
    assert out.stat().st_size == 1500
    results = ResultsFile(out, 5, resume=True)
    results.close()
    names = [json.loads(line)["file"] for line in out.read_text().splitlines()]
    assert 1 <= len(names) < 8 and not list(results.left(Clip(name, 0) for name in names))


def test_parquet(clips, classify, tmp_path):
    import pyarrow.parquet as pq

    out, (first, *rest) = tmp_path / "results.parquet", sorted(clips.rglob("*.mp4"))
    code, _, err = classify(first, tmp_path / "absent.mp4", "--out", out, "--topk", 2, "--jobs", 0)
    assert code == 1 and "1 of 2 labelled; 1 could not be read" in err
    code, _, err = classify(first, *rest, "--resume", out, "--topk", 2, "--jobs", 0)
    assert code == 0 and "7 of 7 labelled, 2 were done before" in err
    rows = pq.read_table(out).to_pylist()
    assert list(rows[0]) == columns(2) and len(rows) == 9
    assert rows[0]["label"] == first.parent.name and rows[0]["score"] > rows[0]["score_2"]
    assert rows[1]["error"] == "no such file or directory" and rows[1]["label"] is None
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_processes_share_the_work(clips, tmp_path):
    """Two processes of torchrun: each file once, one file of results, exit code 1 of both for the one that is bad."""
    (tmp_path / "bad.mp4").write_text("no video")
    files = [*sorted(clips.rglob("*.mp4")), tmp_path / "bad.mp4"]
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"{file}\n" for file in files))
    out = tmp_path / "results.csv"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(ROOT / "tools" / "classify.py"), "--manifest", str(tmp_path / "list.csv"), "--jobs", "0"]
    result = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and "8 of 9 labelled; 1 could not be read" in result.stderr, result.stderr
    assert sorted(row["file"] for row in table(out)) == sorted(map(str, files))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.mp4", "list.csv", "results.csv"]


def test_requests_that_are_wrong(clips, classify, tmp_path):
    clip = clips / "moving left" / "clip.mp4"

    def refused(*arguments, code=2):
        got, _, err = classify(clip, *arguments)
        assert got == code, err
        return err

    assert "--out a.xls: unknown format '.xls' (known: .csv, .jsonl, .parquet)" in refused("--out", "a.xls")
    assert "--crops 2" in refused("--crops", 2)
    assert "no weights file absent" in refused("--weights", "absent")
    assert "r3d_18:kinetics400" in refused("--weights", "r3d_19:kinetics400")
    (tmp_path / "other.safetensors").write_bytes(b"no weights")
    assert "is not a safetensors file" in refused("--weights", tmp_path / "other.safetensors")
    assert "two files" in refused("--out", "a.csv", "--resume", "b.csv")
    assert "--precision fp16 needs a GPU" in refused("--precision", "fp16", "--device", "cpu")
    assert "no list" in refused("--manifest", "absent.csv")
    (tmp_path / "list.csv").write_text("path,start\na.mp4,soon\n")
    assert "list.csv:2: start = 'soon' is not a number of seconds" in refused("--manifest", tmp_path / "list.csv")
    code, _, err = classify("--topk", "3")
    assert code == 2 and "name files to classify" in err


def test_timeline(clips, classify, tmp_path):
    video = clips / "moving left" / "clip.mp4"
    out, plot, drawn = tmp_path / "a.srt", tmp_path / "a.png", tmp_path / "a.mp4"
    options = ["--timeline", "--window", "1s", "--hop", "200ms", "--min-score", 0.3]
    code, printed, _ = classify(video, *options, "--out", out, "--plot", plot, "--annotate", drawn)
    assert code == 0 and "3 windows" in printed and "moving left" in printed
    assert "moving left (" in out.read_text() and plot.stat().st_size > 5000 and drawn.stat().st_size > 1000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "a.png", "a.srt"]
    code, _, err = classify(video, *options, "--out", out)
    assert code == 2 and f"{out} exists" in err

    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    code, printed, err = classify(bad, video, "--timeline", "--out", tmp_path / "{name}.csv", "--json")
    assert code == 1 and "1 of 2 done; 1 could not be (listed above)" in err.splitlines()[-1]
    assert json.loads(printed)["file"] == str(video) and table(tmp_path / "clip.csv")[0]["label"] == "moving left"

    def refused(*arguments):
        code, _, err = classify(video, *arguments)
        assert code == 2
        return err

    assert "unknown format '.xls'" in refused("--timeline", "--out", "a.xls")
    assert "--window soon: write a time above 0" in refused("--timeline", "--window", "soon")
    assert "--smooth 2" in refused("--timeline", "--smooth", 2)
    assert "--plot needs --timeline" in refused("--plot", "a.png")
    assert "is the video itself" in refused("--timeline", "--annotate", video, "--overwrite")
    assert "need a file each" in refused(clips, "--timeline", "--plot", "a.png")


def test_streams_and_cameras(clips, classify):
    """A stream is watched until it ends, and that is said; a camera that is not there gets one sentence."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(clips))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/moving%20right/clip.mp4"
        code, out, err = classify("--stream", address, "--hop", "100ms", "--json")
        server.shutdown()
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and f"{address} ended after 1.3 s; {len(lines)} windows classified" in err
    assert len(lines) >= 2 and lines[-1]["labels"][0]["label"] == "moving right" and len(lines[0]["labels"]) == 3
    code, _, err = classify("--camera", 97, "--weights", "motion")
    assert code == 1 and err.startswith("error: cannot read camera 97: no such file or directory")
    code, _, err = classify("--stream", address, "--live")
    assert code == 1 and f"cannot read {address}: connection refused" in err
    code, _, err = classify("--camera", 0, "--views", 2)
    assert code == 2 and "do not go together with --views" in err


def test_in_python(clips):
    """Files, tensors, lists of images; frames of another shape get one sentence."""
    from PIL import Image

    classifier = Classifier()
    path = clips / "rotating clockwise" / "clip.mp4"
    with open_video(path) as video:
        frames = video.frames(range(video.num_frames))
    arrays = list(frames.permute(0, 2, 3, 1).numpy())
    results = [classifier(x) for x in (path, frames, arrays, [Image.fromarray(a) for a in arrays], list(frames))]
    assert [result.label for result in results] == ["rotating clockwise"] * 5
    assert [result.score for result in results] == pytest.approx([results[0].score] * 5, abs=0.02)
    whole = results[0]
    assert (whole.file, whole.views, whole.duration, len(whole)) == (str(path), 2, pytest.approx(1.28), 5)
    assert whole[0].name == whole.label and [x.probability for x in whole] == sorted(
        (x.probability for x in whole), reverse=True
    )
    for wrong, sentence in (
        (frames.float(), "not floats"),
        (frames[:, :1], r"not uint8 \(32, 1, 112, 112\)"),
        (frames[:0], r"not uint8 \(0, 3, 112, 112\)"),
        ([], "no images"),
        ([arrays[0], arrays[1][:50]], "image 1 is 112x50 pixels and the first one 112x112"),
        (["a.png"], "image 0 is str"),
        (3, "a video is a path"),
    ):
        with pytest.raises(ValueError, match=sentence):
            classifier(wrong)


def test_batches_of_the_measured_size():
    """Sizes are tried until one is slower, the first batch of all does not count, and the best one stays."""
    size = BatchSize((1, 2, 4, 8))
    taken = []
    for seconds in (9.0, 1.0, 1.5, 4.0):
        taken.append(size.next)
        size.add(size.next, seconds)
    assert taken == [1, 1, 2, 4] and size.next == 2
    size = BatchSize((1, 2))
    size.add(1, 1.0)
    size.add(1, 1.0)
    size.add(1, 0.1)  # the rest of a video: no batch of two
    assert size.next == 2
