"""What two commands, or one command for two videos, would write to one place: refused before the work begins."""

import shutil

import pytest
from locks import held
from scores import CLASSES
from videos import write_numbered

from softpool3d.errors import WorkError
from softpool3d.inference import labels_file
from softpool3d.inference.work import Failure
from softpool3d.runs.lock import Taken, claim, claim_files


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_numbered(tmp_path_factory.mktemp("clip") / "clip.mp4", 20)


def test_a_claim_is_given_up_with_its_process_and_leaves_no_file(tmp_path):
    for is_folder in (True, False):
        path = tmp_path / f"results{is_folder}"
        with held(path, is_folder=is_folder) as pid:
            with pytest.raises(Taken, match=f"{path} is being written by process {pid} on ") as taken:
                claim(path, is_folder=is_folder).__enter__()
            assert taken.value.owner["pid"] == pid
        with claim(path, is_folder=is_folder):
            assert [found.name for found in tmp_path.rglob("*lock")]
        assert not list(tmp_path.rglob("*lock"))
    assert [path.name for path in tmp_path.iterdir()] == ["resultsTrue"]


def test_a_file_that_another_command_wrote_meanwhile_is_not_overwritten(tmp_path):
    (tmp_path / "a.csv").touch()
    with (
        pytest.raises(Taken, match="a.csv exists; give another name, or --overwrite"),
        claim_files([None, tmp_path / "b.csv", tmp_path / "a.csv"], overwrite=False),
    ):
        pass
    with claim_files([tmp_path / "a.csv"], overwrite=True):
        pass
    results = labels_file.ResultsFile(tmp_path / "c.jsonl", 1)
    (tmp_path / "c.jsonl").write_text("another command's\n")
    with pytest.raises(WorkError, match="c.jsonl: file exists"):
        results.write(Failure("a.mp4", "broken"))
    assert (tmp_path / "c.jsonl").read_text() == "another command's\n"


@pytest.mark.parametrize(
    ("command", "taken"),
    [
        ("classify CLIP --jobs 0 --out out.csv", "out.csv"),
        ("classify CLIP --jobs 0 --resume out.jsonl", "out.jsonl"),
        ("classify CLIP --timeline --out out.vtt", "out.vtt"),
        ("classify CLIP --timeline --plot out.png --overwrite", "out.png"),
        ("classify CLIP --timeline --annotate out.mp4", "out.mp4"),
        ("embed CLIP --jobs 0 --out out.npz", "out.npz"),
        ("visualize CLIP --out out.mp4", "out.mp4"),
        ("visualize CLIP --csv out.csv", "out.csv"),
        ("visualize CLIP --report out.html", "out.html"),
        ("explain CLIP --out out.gif", "out.gif"),
        ("export --weights x.safetensors --out out.onnx", "out.onnx"),
        ("prepare folder --root data", "data/manifest/"),
        ("prepare folder --root data --reencode --out copies", "copies/"),
        ("study --cfg study/motion output=out", "out/"),
    ],
)
def test_a_command_whose_place_is_taken_does_nothing(command, taken, clip, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        for label in CLASSES:
            (tmp_path / "data" / split / label).mkdir(parents=True)
            shutil.copy(clip, tmp_path / "data" / split / label / f"{split}.mp4")
    (tmp_path / "x.safetensors").touch()
    path = tmp_path / taken
    with held(path, is_folder=taken.endswith("/")) as pid:
        before = sorted(tmp_path.rglob("*"))
        result = run(*(clip if word == "CLIP" else word for word in command.split()))
        assert result.returncode in (1, 2) and not result.stdout
        assert f"error: {path} is being written by process {pid} on " in result.stderr
        assert sorted(tmp_path.rglob("*")) == before


def test_two_videos_of_one_name_do_not_share_a_file(clip, run, tmp_path):
    videos = [tmp_path / folder / "clip.mp4" for folder in "ab"]
    for video in videos:
        video.parent.mkdir()
        shutil.copy(clip, video)
    for option, ending in (("--out", "csv"), ("--plot", "png"), ("--annotate", "mp4")):
        path = tmp_path / f"{{name}}-seen.{ending}"
        result = run("classify", *videos, "--timeline", option, path, "--overwrite")
        assert result.returncode == 2
        both = f"{videos[0]} and {videos[1]} would both be written to {tmp_path / f'clip-seen.{ending}'}; rename"
        assert result.stderr == f"error: {option} {path}: {both} one of them, or give each a command of its own\n"
    other = shutil.copy(clip, tmp_path / "other.mp4")
    result = run("classify", videos[0], other, "--timeline", "--annotate", tmp_path / "a" / "{name}.mp4", "--overwrite")
    assert result.returncode == 2 and f"--annotate {videos[0]} is the video itself" in result.stderr
    assert videos[0].read_bytes() == clip.read_bytes()
