"""`softpool3d embed`: features of files and of windows, what their files say, how they go on, what goes wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scores import write_data_set, write_weights
from videos import write_numbered

from softpool3d import Classifier
from softpool3d.evaluation import features as formats
from softpool3d.evaluation.features import Row, open_features, write_features
from softpool3d.inference import bulk, work
from softpool3d.runs.checkpoint import load_weights, save_weights

ROOT = Path(__file__).parents[2]
BAD = "invalid data found when processing input"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return write_weights(folder / "w.safetensors", write_data_set(folder / "data", 3, 2, 2))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Four videos, one of which is none."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(3):
        write_numbered(folder / f"{number}.mp4", 30 + 10 * number)
    (folder / "bad.mp4").write_text("no video")
    return folder


@pytest.fixture
def embed(run, weights):
    return lambda *arguments: run("embed", *arguments, "--weights", weights, "--device", "cpu")


def read(path):
    with open_features(path) as (about, rows):
        return about, list(rows)


@pytest.mark.parametrize("ending", ["npz", "parquet", "h5"])
def test_a_folder_becomes_a_file_and_goes_on(embed, videos, weights, tmp_path, ending):
    """One row a video, the mean of its views; a torn part is mended, and nothing is done twice."""
    pytest.importorskip({"npz": "numpy", "parquet": "pyarrow", "h5": "h5py"}[ending])
    out = tmp_path / "new" / f"features.{ending}"
    result = embed(videos / "0.mp4", videos / "bad.mp4", "--out", out, "--jobs", 0)
    assert result.returncode == 1 and not result.stdout
    assert f"error: cannot read {videos / 'bad.mp4'}: {BAD}\n" in result.stderr
    assert f"error: 1 of 2 embedded; 1 could not be read (listed above), in {out}" in result.stderr
    result = embed(videos, "--resume", out, "--jobs", 1)
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-1] == f"2 of 2 embedded, 2 were done before, in {out}"
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    about, rows = read(out)
    good = {row.file: row for row in rows if row.error is None}
    assert sorted(good) == [str(videos / f"{number}.mp4") for number in range(3)]
    assert [row for row in rows if row.error] == [Row(str(videos / "bad.mp4"), None, None, None, BAD)]
    expected = Classifier(weights, device="cpu").features(videos / "1.mp4")
    row = good[str(videos / "1.mp4")]
    assert (row.start, row.end, row.features.dtype) == (0, pytest.approx(1.6), np.float32)
    np.testing.assert_allclose(row.features, expected.numpy(), atol=1e-5)
    said = {"layer": "the input of fc", "network": "r3d_18", "clips": 2, "num_frames": 4, "window": None}
    assert said.items() <= about.items() and about["weights"] == str(weights) and len(about["sha256"]) == 64
    again = embed(videos, "--out", out)
    assert again.returncode == 2 and f"--out: {out} exists; --resume {out} goes on with it" in again.stderr
    assert embed(videos / "0.mp4", "--out", out, "--overwrite", "--layer", "stage1").returncode == 0
    assert read(out)[0]["layer"] == "stage1" and len(read(out)[1]) == 1


def test_numpy_alone_reads_them(embed, videos, tmp_path):
    out = tmp_path / "a.npz"
    assert embed(videos, "--out", out, "--layer", "stage2", "--pool", "soft", "--jobs", 0).returncode == 1
    with np.load(out, allow_pickle=False) as file:
        assert file["features"].shape == (3, 8) and file["start"].tolist() == [0, 0, 0]
        assert file["failed"].tolist() == [str(videos / "bad.mp4")] and file["error"].tolist() == [BAD]
        about = json.loads(str(file["about"]))
        assert (about["layer"], about["pool"]) == ("stage2", "soft")


def test_parts_of_files_are_named_with_their_times(embed, videos, tmp_path):
    (tmp_path / "list.csv").write_text(f"path,start,end\n{videos / '2.mp4'},0.4,1.2\n{videos / '2.mp4'},,\n")
    assert embed("--manifest", tmp_path / "list.csv", "--out", tmp_path / "a.npz").returncode == 0
    _, rows = read(tmp_path / "a.npz")
    assert [(row.file, row.start, round(row.end, 2)) for row in rows] == [
        (f"{videos / '2.mp4'}#t=0.4,1.2", 0.4, 1.2),
        (str(videos / "2.mp4"), 0.0, 2.0),
    ]


def test_windows_are_rows(embed, videos, tmp_path):
    """A row a window, of all videos in one file or each in its own; the same numbers in both."""
    out, each = tmp_path / "a.npz", tmp_path / "{name}-seen.npz"
    for target in (out, each):
        result = embed(videos, "--window", "1s", "--hop", "200ms", "--out", target)
        assert result.returncode == 1 and "3 of 4 embedded; 1 could not be read" in result.stderr, result.stderr
    about, rows = read(out)
    assert (about["window"], about["hop"], about["clips"]) == (1.0, 0.2, 1)
    of = [row for row in rows if row.file == str(videos / "1.mp4")]
    assert [(row.start, row.end) for row in of] == [
        (pytest.approx(0.2 * n, abs=0.021), pytest.approx(min(0.2 * n + 1, 1.6), abs=0.021)) for n in range(4)
    ]
    assert len(read(tmp_path / "1-seen.npz")[1]) == 4 and not (tmp_path / "bad-seen.npz").exists()
    for mine, theirs in zip(of, read(tmp_path / "1-seen.npz")[1], strict=True):
        np.testing.assert_allclose(mine.features, theirs.features, atol=1e-5)
    assert [row.error for row in rows if row.features is None] == [BAD]
    half = embed(videos / "1.mp4", "--window", "1s", "--out", tmp_path / "half.npz")
    assert half.returncode == 0 and read(tmp_path / "half.npz")[0]["hop"] == 0.5
    again = embed(videos, "--window", "1s", "--hop", "200ms", "--resume", each)
    assert "0 of 1 embedded; 1 could not be read (listed above), 3 were done before" in again.stderr
    other = embed(videos, "--window", "1s", "--hop", "400ms", "--resume", each)
    assert other.returncode == 2 and "of another kind than this run's: hop 0.2 and 0.4" in other.stderr


def test_a_video_that_was_torn_is_done_again(embed, videos, tmp_path):
    """A kill may leave some of a video's windows, and half a line."""
    out = tmp_path / "a.npz"
    assert embed(videos / "0.mp4", videos / "1.mp4", "--window", "1s", "--out", out).returncode == 0
    about, rows = read(out)
    out.unlink()
    embedded, part = _lines(rows, about), tmp_path / "a.npz.part0"
    cut = embedded.index(b'{"file": "' + str(videos / "1.mp4").encode())
    for torn in (embedded[: cut + 30], embedded[: embedded.rindex(b'{"done"') + 5]):
        part.write_bytes(torn)
        result = embed(videos / "0.mp4", videos / "1.mp4", "--window", "1s", "--resume", out)
        assert "1 of 1 embedded, 1 were done before" in result.stderr
        found = read(out)[1]
        assert [row[:3] for row in found] == [row[:3] for row in rows] and not part.exists()
        out.unlink()


def _lines(rows, about):
    """The lines of a part file."""
    import base64

    lines = [{"about": about}]
    for number, row in enumerate(rows):
        vector = base64.b64encode(row.features.tobytes()).decode()
        lines.append({"file": row.file, "start": row.start, "end": row.end, "features": vector})
        if number + 1 == len(rows) or rows[number + 1].file != row.file:
            lines.append({"done": row.file})
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def test_a_video_that_breaks_off_leaves_no_windows(embed, videos, tmp_path):
    """That too much of a video is missing is known at its end, when its first windows are written."""
    video = write_numbered(tmp_path / "long.mkv", 200)
    video.write_bytes(video.read_bytes()[: video.stat().st_size * 2 // 3])
    result = embed(video, videos / "0.mp4", "--window", "400ms", "--out", tmp_path / "a.npz")
    _, rows = read(tmp_path / "a.npz")
    of_long = [row for row in rows if row.file == str(video)]
    assert result.returncode == 1 and "error: cannot read" in result.stderr, result.stderr
    assert [row.features for row in of_long] == [None] and len(rows) > 3
    lenient = embed(video, "--window", "400ms", "--out", tmp_path / "b.npz", "--max-missing", 1, "--overwrite")
    assert lenient.returncode == 0 and len(read(tmp_path / "b.npz")[1]) > 10, lenient.stderr


def test_processes_share_the_work(videos, weights, tmp_path):
    out = tmp_path / "a.npz"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [ROOT / "tools" / "embed.py", videos, "--weights", weights, "--device", "cpu", "--jobs", "0"]
    result = subprocess.run([*map(str, command), "--out", out], capture_output=True, text=True, timeout=200)
    assert result.returncode == 1 and "3 of 4 embedded; 1 could not be read" in result.stderr, result.stderr
    assert len(read(out)[1]) == 4 and [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_features_of_others_are_refused(embed, run, videos, weights, tmp_path):
    """Other weights, another layer, other sampling; a copy of the weights elsewhere is the same network."""
    out = tmp_path / "a.npz"
    assert embed(videos / "0.mp4", "--out", out).returncode == 0
    loaded = load_weights(weights)
    loaded.state["fc.bias"] += 1
    other, copy = tmp_path / "other.safetensors", tmp_path / "copy.safetensors"
    save_weights(other, loaded.state, loaded.config, loaded.classes)
    shutil.copy(weights, copy)
    refused = run("embed", videos, "--weights", other, "--device", "cpu", "--resume", out)
    assert refused.returncode == 2
    told = f"error: --resume: {out} holds features of another kind than this run's: weights {weights} and {other}; name"
    assert told in refused.stderr
    refused = embed(videos, "--resume", out, "--layer", "stage3")
    assert refused.returncode == 2 and "layer the input of fc and stage3" in refused.stderr
    refused = embed(videos, "--resume", out, "--views", 3)
    assert refused.returncode == 2 and "clips 2 and 3" in refused.stderr
    result = run("embed", videos / "1.mp4", "--weights", copy, "--device", "cpu", "--resume", out)
    assert result.returncode == 0 and len(read(out)[1]) == 2
    assert embed(videos / "0.mp4", "--resume", tmp_path / "b.npz").returncode == 0  # resuming nothing begins


def test_requests_that_are_wrong(embed, run, videos, weights, tmp_path, monkeypatch):
    def refused(*arguments):
        result = embed(videos / "0.mp4", *arguments)
        assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
        return result.stderr

    out = ("--out", tmp_path / "a.npz")
    assert "say where the features go, as in --out features.npz (or .parquet, .h5)" in refused()
    assert "--out a.csv: unknown format '.csv' (known: .parquet, .npz, .h5)" in refused("--out", "a.csv")
    assert "--hop needs --window" in refused(*out, "--hop", "1s")
    assert "--window does not go together with --jobs" in refused(*out, "--window", "1s", "--jobs", 2)
    assert "--pool needs --layer" in refused(*out, "--pool", "max")
    assert "--window soon: write a time above 0" in refused(*out, "--window", "soon")
    assert "name two files" in refused(*out, "--resume", "b.npz")
    assert "--crops 2: there is the centre (1)" in refused(*out, "--crops", 2)
    assert "no list absent.csv" in refused(*out, "--manifest", "absent.csv")
    assert "would both be written to" in refused(videos / ".." / videos.name / "0.mp4", "--out", "{name}.npz")
    result = run("embed", *out)
    assert result.returncode == 2 and "name files to embed, or give --manifest" in result.stderr
    for name in ("a.pt2", "a.onnx"):
        (tmp_path / name).touch()
        result = run("embed", videos, *out, "--weights", tmp_path / name)
        assert result.returncode == 2 and f"{name}: an exported network has no layers" in result.stderr
    (tmp_path / "bad.safetensors").write_bytes(weights.read_bytes()[:5000])
    result = run("embed", videos, *out, "--weights", tmp_path / "bad.safetensors")
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    (tmp_path / "folder").mkdir()
    result = embed(tmp_path / "folder", *out)
    assert result.returncode == 1 and "folder: there are no videos in it" in result.stderr, result.stderr
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    assert "a.h5: .h5 needs h5py; pip install 'softpool3d[features]', or take .npz" in refused("--out", "a.h5")
    assert "a.parquet: .parquet needs pyarrow" in refused("--out", "a.parquet")


def test_features_that_are_no_numbers(run, weights, videos, tmp_path):
    loaded = load_weights(weights)
    loaded.state["layer4.1.conv2.1.bias"][0] = torch.nan
    save_weights(tmp_path / "nan.safetensors", loaded.state, loaded.config, loaded.classes)
    for options in ([], ["--window", "1s"]):
        found = run(
            *("embed", videos / "0.mp4", "--weights", tmp_path / "nan.safetensors", "--device", "cpu"),
            *("--out", tmp_path / "a.npz", "--overwrite", *options),
        )
        assert found.returncode == 1
        assert f"error: cannot embed {videos / '0.mp4'}: the network's answer is not finite" in found.stderr


def test_what_is_no_file_of_features(embed, videos, tmp_path):
    for name, content in (("a.npz", b"PK\x03\x04 no"), ("b.npz", None)):
        if content is None:
            np.savez(tmp_path / name, features=np.zeros((2, 3)))
        else:
            (tmp_path / name).write_bytes(content)
        result = embed(videos / "0.mp4", "--resume", tmp_path / name)
        assert result.returncode == 2 and f"{tmp_path / name} " in result.stderr, result.stderr
        assert "is no file of features" in result.stderr or "was not written by softpool3d embed" in result.stderr


@pytest.mark.parametrize("ending", [".npz", ".parquet", ".h5"])
def test_files_without_any_features(tmp_path, ending):
    pytest.importorskip({".npz": "numpy", ".parquet": "pyarrow", ".h5": "h5py"}[ending])
    rows = [Row("Grüße.mp4", None, None, None, "broken")]
    write_features(tmp_path / f"a{ending}", ending, {"sha256": "0"}, lambda: rows)
    assert read(tmp_path / f"a{ending}") == ({"sha256": "0"}, rows)


def test_embed_hands_on_how_to_run_the_network(run, videos, weights, monkeypatch, tmp_path):
    told = []

    class Enough(Exception):
        pass

    def noted(*arguments, **settings):
        told.append((arguments, settings))
        raise Enough

    monkeypatch.setattr(work, "Classifier", noted)
    options = ["--views", 4, "--crops", 3, "--device", "cpu", "--precision", "bf16", "--compile", "--max-missing", 0.4]
    with pytest.raises(Enough):
        run("embed", videos, "--weights", weights, "--out", tmp_path / "a.npz", "--batch", 7, *options)
    ((trained,), settings) = told[0]
    assert trained.origin == str(weights)
    assert settings == {
        **{"device": "cpu", "num_clips": 4, "num_crops": 3, "precision": "bf16", "compile": True, "max_missing": 0.4},
        "batch": 7,
    }


def test_embed_decodes_in_the_processes_asked_for(embed, videos, monkeypatch, tmp_path):
    told = []

    def noted(work, clips, jobs):
        told.append(jobs)
        return iter(())

    monkeypatch.setattr(bulk, "run_files", noted)
    assert embed(videos, "--out", tmp_path / "a.npz", "--jobs", 5).returncode == 0
    assert told == [5]
