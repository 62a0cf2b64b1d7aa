"""Labels, features and checks of many files on a Ray cluster of two raylets, which lose and gain one meanwhile."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from soak_ray import QUICK, label_in_spite_of_all, rows, two_raylets
from videos import write_numbered

ray = pytest.importorskip("ray", reason="no ray: pip install 'softpool3d[ray]'")

from softpool3d.cluster import connection, files  # noqa: E402 (they need ray)
from softpool3d.evaluation.features import open_features  # noqa: E402
from softpool3d.inference import parts  # noqa: E402
from softpool3d.tools import classify as classify_tool  # noqa: E402

os.environ |= QUICK


@pytest.fixture(scope="module")
def cluster():
    made = two_raylets()
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Twelve short videos, and two that are none."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(12):
        write_numbered(folder / f"{number}.mp4", 20 + number)
    (folder / "text.mp4").write_text("no video at all")
    return folder


def fails(done, code, *texts):
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for text in texts:
        assert text in done.stderr, done.stderr
    return True


def test_labels_are_those_of_one_machine_to_the_bit(cluster, videos, run, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "BLOCK", 5)
    with (tmp_path / "list.csv").open("w") as file:
        names = [*range(12), 3, 3, "text", 7, "gone"]  # some come again
        csv.writer(file).writerows([["path"], *([os.path.relpath(videos / f"{name}.mp4", tmp_path)] for name in names)])
    command = ["classify", "--manifest", tmp_path / "list.csv", "--weights", "motion", "--batch", 1, "--topk", 3]
    monkeypatch.chdir(tmp_path)
    done = run(*command, "--engine", "ray", "--address", cluster.address, "--out", "there/")
    assert fails(done, 1, "15 of 17 labelled; 2 could not be read (listed above), in there")
    assert run(*command, "--out", "here/", "--device", "cpu").returncode == 1
    assert rows(Path("there")) == rows(Path("here")) and len(rows(Path("here"))) == 17
    assert len(list(Path("there").glob("*.parquet"))) == 4
    assert fails(run(*command, "--out", "here/"), 2, "here/ holds results; --resume here/ goes on with them")
    assert fails(run(*command[:-1], 2, "--resume", "here/"), 2, "here holds results of another kind", "topk 3 and 2")
    lines = (tmp_path / "list.csv").read_text().splitlines()
    (tmp_path / "list.csv").write_text("\n".join([lines[0], *lines[:6:-1]]))
    other = run(*command, "--resume", "here/")
    assert fails(other, 2, "here was made from another list: its part 0 is not of the clips 1 to 5 of this one")


def test_nothing_is_lost_or_done_twice_whoever_is_killed(cluster, videos, tmp_path):
    """A raylet and its tasks are killed, another one comes, the command is killed, and is given again."""
    paths = [videos / f"{number % 12}.mp4" for number in range(96)]
    assert label_in_spite_of_all(cluster, paths, tmp_path, 8, 1) == ({"a raylet": 1, "the command": 1}, [])
    assert len(list((tmp_path / "labels").glob("*.parquet"))) == 12


def test_features_and_checks(cluster, videos, run, tmp_path):
    ray_, few = ["--engine", "ray", "--address", cluster.address], [videos / f"{number}.mp4" for number in range(3)]
    command = ["embed", *few, "--weights", "motion", "--batch", 1]
    assert run(*command, *ray_, "--out", f"{tmp_path}/there/").returncode == 0
    assert run(*command, "--out", tmp_path / "here.parquet", "--device", "cpu").returncode == 0
    kept = [open_features(tmp_path / name) for name in ("there", "here.parquet")]
    with kept[0] as (about, there), kept[1] as (same, here):
        assert about == same
        for one, other in zip(there, here, strict=True):
            assert one[:3] == other[:3] and (one.features == other.features).all()
    data = tmp_path / "data"
    for number in range(6):
        folder = data / ("train", "val", "test")[number // 2] / f"{number % 2}"
        folder.mkdir(parents=True)
        shutil.copy(videos / f"{number}.mp4", folder)
    shutil.copy(videos / "text.mp4", data / "train" / "0")
    done = run("prepare", "folder", "--root", data, "--reencode", "--short-side", 32, *ray_)
    assert done.returncode == 0 and "1 bad files left out" in done.stdout, done.stderr
    assert len(list((tmp_path / "data-32px").rglob("*.mp4"))) == 6
    assert run("prepare", "folder", "--root", data, "--verify", *ray_).returncode == 0
    assert len(next(data.rglob("checked.csv")).read_text().splitlines()) == 7


def test_videos_and_results_in_a_bucket(videos, run, tmp_path, monkeypatch):
    server = pytest.importorskip("moto.server", reason="no moto: pip install 'moto[server]'")
    from pyarrow import fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    running = server.ThreadedMotoServer(port=0)
    running.start()
    try:
        host, port = running.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        bucket, _ = fs.FileSystem.from_uri("s3://made?allow_bucket_creation=true")
        bucket.create_dir("made")
        for number in range(3):
            with bucket.open_output_stream(f"made/in/{number}.mp4") as file:
                file.write((videos / f"{number}.mp4").read_bytes())
        names = [f"s3://made/in/{number}.mp4" for number in range(4)]
        command = ["classify", *names, "--weights", "motion", "--batch", 1]
        # a process of its own: Ray in one process mixes up a cluster that it starts and one that it joined before
        code = [sys.executable, "-c", "from softpool3d.cli import run; run()"]
        command = [str(word) for word in command]
        ray_, out = ["--engine", "ray"], ["--out", "s3://made/labels/"]
        done = subprocess.run([*code, *command, *ray_, *out], capture_output=True, text=True, timeout=300)
        assert fails(done, 1, "3 of 4 labelled", "cannot read s3://made/in/3.mp4: it cannot be fetched")
        found = bucket.get_file_info(fs.FileSelector("made/labels"))
        assert sorted(info.base_name[:8] for info in found) == ["00000000", "_about.j"]
        assert run(*command, "--resume", "s3://made/labels").returncode == 0
        assert fails(run(*command, "--out", "s3://none/labels"), 1, "cannot write s3://none/labels")
    finally:
        running.stop()


def test_what_a_user_gets_wrong(cluster, videos, run, tmp_path, monkeypatch):
    there = ["--engine", "ray", "--address", cluster.address]
    command = ["classify", videos / "0.mp4", videos / "gone.mp4", "--weights", "motion", "--out", tmp_path / "a.csv"]
    assert fails(run(*command, "--address", "auto"), 2, "--address needs --engine ray")
    assert fails(run(*command, *there, "--jobs", 2), 2, "--engine ray does not go together with --jobs")
    assert fails(run(*command, "--engine", "ray", "--address", "ray://a:1"), 2, "run the command on a machine of the")
    assert fails(run(*command, "--engine", "ray", "--address", "127.0.0.1:9"), 2, "no cluster answers at 127.0.0.1:9")
    assert fails(run(*command, *there, "--device", "cuda"), 2, "cuda")
    seen = files.os.path.exists
    monkeypatch.setattr(files.os.path, "exists", lambda path: str(path).endswith("gone.mp4") or seen(path))
    done = run(*command, *there)
    assert fails(done, 1, f"do not see {videos / 'gone.mp4'}, which is there on this one; put the videos where all")
    monkeypatch.setattr(connection, "identity", lambda: "softpool3d 9")
    assert fails(run(*command, *there), 2, "has softpool3d 0.1.0 (code ", "and this one softpool3d 9; make them equal")


def test_without_ray(run, videos, monkeypatch):
    monkeypatch.setattr(classify_tool, "find_spec", lambda name: None)
    done = run("classify", videos / "0.mp4", "--engine", "ray")
    assert fails(done, 2, "--engine ray needs Ray; pip install 'softpool3d[ray]'")
