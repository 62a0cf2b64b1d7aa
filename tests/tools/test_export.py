"""`softpool3d export`: networks in other runtimes, with the logits that they have here."""

import json
import subprocess
import sys
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from videos import write_numbered

from softpool3d.config_file import load_config
from softpool3d.datasets.loader import crop_views
from softpool3d.errors import UsageError, WorkError
from softpool3d.inference import exporter
from softpool3d.inference.exported import load_exported
from softpool3d.inference.exporter import export_weights, preprocessing
from softpool3d.models import build_model
from softpool3d.runs.checkpoint import load_into, load_weights, save_weights

CPU = torch.device("cpu")
FORMATS = ("onnx", "torchexport", "aoti")
TINY = [
    "data.num_frames=4",
    "data.crop_size=24",
    "data.test_crop_size=32",  # labels, and so exported files, are of clips as testing sees them
    "data.short_side=32",
    "data.train_short_side=[32,32]",
    "model.width=8",
    "model.pool.where=[head]",
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights files by configuration, written once; norms have seen a batch, so that signals get through."""
    folder, written = tmp_path_factory.mktemp("weights"), {}

    def make(*overrides: str) -> Path:
        if overrides not in written:
            config = load_config("r3d_softpool", [*TINY, *overrides])
            torch.manual_seed(0)
            network = build_model(config, 5)
            with torch.no_grad():
                for _ in range(2):
                    network.train()(torch.randn(4, 3, config.data.num_frames, 32, 32))
                network.get_submodule(network.logits_layer()).weight.mul_(30)
                for name, parameter in network.named_parameters():
                    if name.endswith("beta"):
                        parameter.uniform_(-0.1, 0.1)
            path = folder / f"{len(written)}.safetensors"
            save_weights(path, network, config, ("run", "jump", "Grüße", "a", "b"))
            written[overrides] = path
        return written[overrides]

    return make


def fails(result, code, *texts):
    assert result.returncode == code, result.stderr
    for text in texts:
        assert text in result.stderr
    return True


def original(path: Path) -> torch.nn.Module:
    loaded = load_weights(path)
    network = build_model(loaded.config, len(loaded.classes))
    load_into(network, loaded.state, path)
    return network.eval()


def same_logits(path: Path, exported, shape) -> None:
    clips = torch.randn(shape)
    with torch.no_grad():
        wanted = original(path)(clips)
    assert wanted.abs().max() > 0.1  # or the comparison says nothing
    torch.testing.assert_close(exported(clips), wanted, rtol=1e-3, atol=1e-4)


LEARNABLE = ("model.pool.beta=learnable",)


def test_onnx(weights, tmp_path):
    pytest.importorskip("onnxscript")
    path, out = weights(*LEARNABLE), tmp_path / "new" / "model.onnx"
    written = export_weights(path, "onnx", out)
    assert written.frames == (1, None) and written.difference < 1e-5 and not written.own_operator
    assert set(written.compared) >= {(1, 4), (2, 4), (3, 4), (2, 8), (2, 1)}
    assert [p.name for p in out.parent.iterdir()] == ["model.onnx"]
    exported = load_exported(out, CPU)
    loaded = load_weights(path)
    assert (exported.config, exported.classes) == (loaded.config, loaded.classes)
    for batch, frames in ((1, 4), (5, 4), (2, 7)):
        same_logits(path, exported, (batch, 3, frames, 32, 32))

    import onnxruntime

    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (clips,) = session.get_inputs()
    assert (clips.name, clips.shape) == ("clips", ["batch", 3, "frames", 32, 32])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"])[2] == "Grüße"
    described = json.loads(metadata["preprocessing"])
    assert (described["mean"], described["frames"], described["layout"]) == ([0.45] * 3, 4, "NCTHW")


@pytest.mark.parametrize("plain", [False, True])
def test_program(weights, tmp_path, plain):
    path, out = weights(*LEARNABLE), tmp_path / "model.pt2"
    written = export_weights(path, "torchexport", out, plain=plain)
    assert written.own_operator != plain
    exported = load_exported(out, CPU, trust=True)
    assert exported.classes[0] == "run"
    for shape in ((1, 3, 4, 32, 32), (3, 3, 9, 32, 32)):
        same_logits(path, exported, shape)
    if plain:  # torch alone
        code = (
            "import sys, torch\n"
            "module = torch.export.load(sys.argv[1]).module()\n"
            "assert module(torch.randn(1, 3, 4, 32, 32)).shape == (1, 5) and 'softpool3d' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code, out], check=True)


def test_compiled_package(exports):
    path, out, written = exports("aoti")
    assert written.own_operator
    same_logits(path, load_exported(out, CPU, trust=True), (3, 3, 4, 32, 32))
    with pytest.raises(UsageError, match="was compiled for cpu"):
        load_exported(out, torch.device("cuda"), trust=True)


def test_wrong_values_leave_no_file(weights, tmp_path, monkeypatch):
    out = tmp_path / "model.pt2"
    out.write_text("what was there before")
    real = exporter.decompositions

    def wrong():
        return {op: lambda *a, f=f: f(*a) * 1.01 for op, f in real().items()}

    monkeypatch.setattr(exporter, "decompositions", wrong)
    with pytest.raises(WorkError, match="was not written: its logits differ .* by [0-9.]+e-0[12] of the largest"):
        export_weights(weights(), "torchexport", out, plain=True)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt2"] and out.read_text() == "what was there before"


@pytest.fixture(scope="module")
def exports(weights, tmp_path_factory):
    """A network of sigmoids in each format, written once: its weights file, the file, and what was said of it."""
    folder, written = tmp_path_factory.mktemp("exports"), {}

    def make(to: str) -> tuple[Path, Path, exporter.Export]:
        if to not in written:
            path, out = weights("optim.loss=binary"), folder / f"{to}{exporter.SUFFIX[to]}"
            written[to] = path, out, export_weights(path, to, out)
        return written[to]

    return make


def same_labels(run, clip: Path, weights: Path, exported: Path) -> list[dict]:
    labels = []
    for path in (weights, exported):
        trust = ["--trust"] if path.suffix == ".pt2" else []
        result = run("classify", clip, "--weights", path, "--json", "--topk", 5, *trust)
        assert result.returncode == 0, result.stderr
        labels.append(json.loads(result.stdout)["labels"])
    assert [x["label"] for x in labels[0]] == [x["label"] for x in labels[1]]
    for here, there in zip(*labels, strict=True):
        assert here["probability"] == pytest.approx(there["probability"], abs=1e-4)
    return labels[0]


@pytest.mark.parametrize("to", FORMATS)
def test_classify(run, exports, tmp_path, to):
    """The labels of the weights file, from the exported one."""
    weights, out, _ = exports(to)
    clip = write_numbered(tmp_path / "clip.mp4", 30)
    labels = same_labels(run, clip, weights, out)
    assert abs(sum(x["probability"] for x in labels) - 1) > 0.01  # sigmoids
    trust = [] if to == "onnx" else ["--trust"]
    for option in (["--compile"], ["--precision", "bf16"]):
        assert fails(run("classify", clip, "--weights", out, *trust, *option), 2, option[0], "as it was exported")


def test_a_network_whose_head_is_made_for_training_s_crop(run, weights, tmp_path, monkeypatch):
    """X3D; most of its recipes test on larger crops."""
    monkeypatch.setattr(exporter, "_ATTEMPTS", exporter._ATTEMPTS[-1:])  # frames are left as they are: the quickest way
    sizes = ["data.short_side=40", "data.train_short_side=[40,40]", "data.crop_size=32", "data.test_crop_size=40"]
    path, out = weights("model.name=x3d_xs", "model.pool.where=[existing]", *sizes), tmp_path / "model.onnx"
    assert export_weights(path, "onnx", out).side == 40
    same_labels(run, write_numbered(tmp_path / "clip.mp4", 12), path, out)


CONFIGS = Path(str(files("softpool3d.configs")))


@pytest.mark.parametrize("folder", ["kinetics400", "hmdb51", "ucf101", "."])
def test_what_is_said_of_preprocessing_is_what_testing_does(folder):
    """For every recipe: the crops that videos are cut into, and that the network is traced with."""
    for path in sorted((CONFIGS / folder).glob("*.yaml")):
        config = load_config(path)
        said = preprocessing(config)
        crops = crop_views(torch.zeros(1, 1, 3, said["short_side"], 2 * said["short_side"]), config.data, 1)
        assert crops.shape[-2:] == exporter._clips(config.data, 1, 1).shape[-2:] == (said["crop"], said["crop"])
        assert (said["frames"], said["mean"]) == (config.data.num_frames, config.data.mean)
        assert said["probabilities"] == "softmax"
    assert preprocessing(load_config("kinetics400/x3d_m"))["crop"] == 256
    assert preprocessing(load_config("kinetics400/x3d_m", ["optim.loss=binary"]))["probabilities"] == "sigmoid"


@pytest.mark.parametrize("to", FORMATS)
def test_clips_of_another_size_are_refused(exports, to):
    exported = load_exported(exports(to)[1], CPU, trust=True)
    assert exported(torch.randn(2, 3, 4, 32, 32)).shape == (2, 5)
    for shape in ((1, 3, 4, 24, 24), (1, 2, 4, 32, 32), (1, 3, 0, 32, 32)):
        given = " x ".join(map(str, shape[1:]))
        with pytest.raises(UsageError, match=f"takes clips of 3 x 1 or more x 32 x 32, not {given}$"):
            exported(torch.randn(shape))


def with_description(path: Path, out: Path, old: str, new: str) -> Path:
    """An ONNX file that says something else of itself."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(path)
    for entry in model.metadata_props:
        entry.value = entry.value.replace(old, new)
    onnx.save(model, out)
    return out


def test_a_file_for_crops_that_testing_does_not_make(exports, tmp_path):
    """As they were written before."""
    old = with_description(exports("onnx")[1], tmp_path / "old.onnx", '"crop": 32', '"crop": 24')
    with pytest.raises(UsageError, match="old.onnx is for crops of 24 pixels.*tested on crops of 32; export it again"):
        load_exported(old, CPU)
    none = with_description(exports("onnx")[1], tmp_path / "none.onnx", '"crop": 32', '"crops": 32')
    with pytest.raises(UsageError, match="none.onnx: its description does not say how large its clips are"):
        load_exported(none, CPU)


def test_what_a_runtime_says_while_it_runs_is_a_sentence(exports, run, tmp_path):
    """A description that fits together, and not to the network."""
    half = with_description(exports("onnx")[1], tmp_path / "half.onnx", '"crop": 32', '"crop": 24')
    wrong = with_description(half, tmp_path / "wrong.onnx", '"test_crop_size":32', '"test_crop_size":24')
    result = run("classify", write_numbered(tmp_path / "clip.mp4", 12), "--weights", wrong)
    assert fails(result, 2, "wrong.onnx cannot run clips of 3 x 4 x 24 x 24", "Got: 24 Expected: 32")
    assert "Traceback" not in result.stderr


def test_command(run, weights, tmp_path):
    out = tmp_path / "model.pt2"
    result = run("export", "--weights", weights(), "--out", out)
    assert result.returncode == 0, result.stderr
    assert "any number of clips of 1 or more frames" in result.stdout and "1e-04 is allowed" in result.stdout
    assert "of 1 or more frames of 32x32 pixels" in result.stdout and "import softpool3d" in result.stdout
    assert fails(run("export", "--weights", weights(), "--out", out), 2, "exists", "--overwrite")


def test_requests_that_are_wrong(run, weights, tmp_path, monkeypatch):
    arguments = ["export", "--weights", weights()]
    assert fails(run(*arguments, "--out", tmp_path / "m.bin"), 2, "has to end in .onnx or .pt2")
    assert fails(run(*arguments, "--to", "aoti", "--out", tmp_path / "m.onnx"), 2, "has to end in .pt2")
    (tmp_path / "text.safetensors").write_text("weights")
    result = run("export", "--weights", tmp_path / "text.safetensors", "--out", tmp_path / "m.onnx")
    assert fails(result, 2, "is not a safetensors file")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    result = run(*arguments, "--out", tmp_path / "m.onnx")
    assert fails(result, 2, "onnxscript, which is not installed", "pip install 'softpool3d[export]'")
    assert [p.name for p in tmp_path.iterdir()] == ["text.safetensors"]


def test_files_that_are_no_exported_networks(weights, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    for name, text in (("text.onnx", "is not an ONNX file"), ("text.pt2", "is not a .pt2 file")):
        (tmp_path / name).write_text("text")
        with pytest.raises(UsageError, match=text):
            load_exported(tmp_path / name, CPU, trust=True)
    with zipfile.ZipFile(tmp_path / "foreign.pt2", "w") as archive:
        archive.writestr("archive/models/model.json", "{}")
    with pytest.raises(UsageError, match="was not written by softpool3d"):
        load_exported(tmp_path / "foreign.pt2", CPU, trust=True)
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        with pytest.raises(UsageError, match="onnxruntime-gpu"):
            load_exported(tmp_path / "text.onnx", torch.device("cuda"))
