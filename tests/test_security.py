"""What strangers can send, attacked: each promise of docs/security.md.

An attack that runs code makes a file, the canary. Where an attack could fail for another reason than our defence, the
test shows that it works where it is let in.
"""

import ast
import http.server
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from attacks import Payload, description, evil_program, external, playlist, safetensors, tar
from videos import write_numbered

from softpool3d.config_file import load_config
from softpool3d.datasets import archives
from softpool3d.datasets.manifest import Clip, Manifest
from softpool3d.datasets.reencode import Encoding, reencode
from softpool3d.datasets.sources.hmdb51 import ARCHIVES, read_hmdb51
from softpool3d.datasets.sources.ssv2 import read_ssv2
from softpool3d.datasets.video.containers import open_address
from softpool3d.datasets.video.decoder import open_video
from softpool3d.datasets.video.frame_index import DecodeError
from softpool3d.datasets.video.remote import fetched
from softpool3d.datasets.video.stream import FrameStream
from softpool3d.errors import UsageError, WorkError
from softpool3d.evaluation.scores import VideoScores
from softpool3d.foreign import Shielded
from softpool3d.inference import one_each, timeline_files
from softpool3d.inference.classifier import Classifier
from softpool3d.inference.exported import load_exported
from softpool3d.inference.timeline import watch
from softpool3d.inference.trained import SHIPPED
from softpool3d.runs.checkpoint import load_last_state, load_weights, previous_state, save_weights

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


@pytest.fixture
def clip(tmp_path):
    return write_numbered(tmp_path / "clip.mp4", 20)


# --- weights ----------------------------------------------------------------------------------------------------------


def test_a_pt2_file_runs_its_code_only_with_trust(run, tmp_path, clip, canary):
    path = evil_program(tmp_path / "model.PT2", canary)
    for verb in (["classify", clip], ["explain", clip, "--out", tmp_path / "cam.png"]):
        result = run(*verb, "--weights", path)
        assert result.returncode == 2 and "Traceback" not in result.stderr and not canary.exists()
        assert ("--trust" in result.stderr) == (verb[0] == "classify")
    for load in (lambda: Classifier(path), lambda: load_exported(path, CPU)):
        with pytest.raises(UsageError, match="can run code .* add --trust"):
            load()
    assert not canary.exists()
    run("classify", clip, "--weights", path, "--trust")
    assert canary.exists()  # the attack is one


def test_a_pt2_file_is_refused_before_it_is_read(tmp_path):
    for content in (b"", b"no archive"):
        (tmp_path / "model.pt2").write_bytes(content)
        with pytest.raises(UsageError, match="--trust"):
            load_exported(tmp_path / "model.pt2", CPU)
    with zipfile.ZipFile(tmp_path / "model.pt2", "w") as archive:
        archive.writestr("model/data/aotinductor/model/x.wrapper.so", b"machine code")
    with pytest.raises(UsageError, match="--trust"):
        load_exported(tmp_path / "model.pt2", CPU)


def test_trust_is_for_pt2_files_alone(run, clip):
    result = run("classify", clip, "--trust")
    assert result.returncode == 2 and "--trust is for --weights FILE.pt2" in result.stderr


@pytest.mark.parametrize(
    "kind", ["torch.save", "before its zip files", "a pickle", "an exported program", "TorchScript"]
)
def test_no_pickle_in_weights_is_run(run, tmp_path, clip, canary, kind):
    path = tmp_path / "weights.pth"
    if kind == "a pickle":
        path.write_bytes(pickle.dumps({"state_dict": Payload(canary)}))
    elif kind == "an exported program":
        evil_program(path, canary)
    elif kind == "TorchScript":
        torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    else:
        torch.save({"state_dict": Payload(canary)}, path, _use_new_zipfile_serialization=kind == "torch.save")
    for command in (
        ["classify", clip, "--weights", path],
        ["test", "--weights", path],
        ["export", "--weights", path, "--out", tmp_path / "model.onnx"],
        ["explain", clip, "--weights", path, "--out", tmp_path / "cam.png"],
        ["train", "--cfg", "r3d_softpool", f"model.weights={path}", f"output={tmp_path}", "data.motion_clips=[8,8,8]"],
    ):
        result = run(*command)
        assert result.returncode == 2 and "Traceback" not in result.stderr, command
        assert not canary.exists(), command
    if kind in ("torch.save", "before its zip files"):
        torch.load(path, weights_only=False)
        assert canary.exists()


def test_no_pickle_in_a_run_or_in_scores_is_run(tmp_path, canary):
    state = tmp_path / "checkpoint.pt"
    for path in (state, previous_state(state)):
        torch.save({"softpool3d": 2, "model": Payload(canary)}, path)
    with pytest.raises(UsageError, match="is damaged"):
        load_last_state(state)
    fields = {"labels": np.zeros(1, np.int64), "videos": np.array(["v"]), "classes": np.array(["c"])}
    evil = np.array([Payload(canary)], dtype=object)
    np.savez(tmp_path / "scores.npz", probabilities=evil, about=np.array("{}"), **fields)
    with pytest.raises(UsageError, match="no file of scores"):
        VideoScores.load(tmp_path / "scores.npz")
    assert not canary.exists()
    with np.load(tmp_path / "scores.npz", allow_pickle=True) as file:
        file["probabilities"]
    assert canary.exists()


def test_safetensors_that_claim_too_much_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    for length in (2**63, 2**40, 99_000_000):
        with pytest.raises(UsageError, match="damaged|broken off|not a safetensors"):
            load_weights(safetensors(path, description(), length))
    for changes in ({"config": "[" * 100_000}, {"classes": '{"a": 1}'}, {"classes": "[[1]]"}, {"classes": "[" * 9999}):
        with pytest.raises(UsageError, match="description cannot be read"):
            load_weights(safetensors(path, description(**changes)))


def test_an_onnx_file_reads_no_other_file(tmp_path, monkeypatch):
    ort = pytest.importorskip("onnxruntime")
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    for secret in (tmp_path / "secret.bin", inside / "weights.bin"):
        secret.write_bytes(np.arange(6, dtype=np.float32).tobytes())
    for location in ("weights.bin", "../secret.bin", str(tmp_path / "secret.bin"), "/etc/passwd"):
        (inside / "model.onnx").write_bytes(external(location))
        with pytest.raises(UsageError, match="keeps weights in another file, which is not read"):
            load_exported("model.onnx", CPU)
    (inside / "model.onnx").write_bytes(external("weights.bin"))
    session = ort.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])  # by its path it would be read
    assert session.run(None, {"x": np.zeros(6, np.float32)})[0].tolist() == [0, 1, 2, 3, 4, 5]


# --- configurations, lists, labels ------------------------------------------------------------------------------------


def test_a_configuration_runs_nothing_and_does_not_explode(tmp_path, canary):
    path = tmp_path / "config.yaml"
    laughs = "a: &a [x, x]\n" + "".join(
        f"{c}: &{c} [{','.join([f'*{b}'] * 9)}]\n" for b, c in zip("abcdefgh", "bcdefghi", strict=True)
    )
    for text in (
        f'name: !!python/object/apply:os.system ["touch {canary}"]\n',
        f'? !!python/object/apply:os.system ["touch {canary}"]\n: x\n',
        laughs,
        "name: " + "[" * 5000,
        "\n".join(f"{' ' * i}a:" for i in range(2000)),
        "seed: " + "9" * 5000,
        "base: config.yaml\n",
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match="config.yaml"):
            load_config(path)
        assert not canary.exists()
    with pytest.raises(UsageError):
        load_config("r3d_softpool", [f"name=!!python/object/apply:os.system ['touch {canary}']"])
    assert not canary.exists()


def test_a_configuration_names_no_folder_outside_of_its_output(tmp_path):
    for name in ("../up", "/tmp/elsewhere", "..", "a/b"):
        with pytest.raises(UsageError, match="name"):
            load_config("r3d_softpool", [f"output={tmp_path}", f"name={name}"])


def test_labels_nested_beyond_measure_are_a_sentence(tmp_path):
    (tmp_path / "labels.json").write_text('{"a":' * 100_000)
    with pytest.raises(UsageError, match="labels.json"):
        read_ssv2(tmp_path)


def test_lists_with_monstrous_lines_are_a_sentence(run, tmp_path, clip):
    listed = tmp_path / "list.csv"
    for text in (
        b"path,label\n" + b"x" * 200_000 + b",a\n",
        b"path,label\n\0clip.mp4,a\n",
        b'path,label\n"clip.mp4,a\n',
    ):
        listed.write_bytes(text)
        result = run("classify", "--manifest", listed)
        assert result.returncode in (1, 2) and "Traceback" not in result.stderr


# --- videos -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    """(address, the paths that were asked for): what is not below tmp_path/served is redirected by `redirect`."""
    asked, served = [], tmp_path / "served"
    served.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        redirect = None

        def __init__(self, *arguments):
            super().__init__(*arguments, directory=served)

        def do_GET(self):
            asked.append(self.path)
            if self.path == "/moved.mp4":
                self.send_response(302)
                self.send_header("Location", Handler.redirect)
                self.end_headers()
            else:
                super().do_GET()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        running.address, running.asked = f"http://127.0.0.1:{running.server_port}", asked
        running.handler, running.served = Handler, served
        yield running
        running.shutdown()


def test_a_video_file_opens_no_network_and_no_other_file(tmp_path, server):
    secret, folder = write_numbered(tmp_path / "secret.mp4", 20), tmp_path / "sent"
    folder.mkdir()
    write_numbered(folder / "another.mp4", 20)
    key = f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{server.address}/key"\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n'
    mpd = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" minBufferTime="PT1S" '
        f'mediaPresentationDuration="PT5S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
        f'bandwidth="1"><BaseURL>{server.address}/dash.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>'
    )
    sdp = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    texts = {
        "net": playlist(f"{server.address}/segment.ts"),
        "file": playlist(f"file:{secret}"),
        "path": playlist(secret),
        "key": key,
        "beside": "ffconcat version 1.0\nfile another.mp4\n",
        "itself": "ffconcat version 1.0\nfile itself.mp4\n",
        "concat": f"ffconcat version 1.0\nfile '{secret}'\n",
        "concat_net": f"ffconcat version 1.0\nfile '{server.address}/concat.mp4'\n",
        "dash": mpd,
        "sdp": f"{sdp}a=rtpmap:96 H264/90000\n",
        "svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{server.address}/a.png"/></svg>',
        "reference": f"[Reference]\nRef1={server.address}/asx\n",
    }
    for name, text in texts.items():
        own = {"concat": ".ffconcat", "dash": ".mpd", "sdp": ".sdp"}.get(name, ".m3u8")
        for ending in (".mp4", own):
            path = folder / f"{name}{ending}"
            path.write_text(text)
            for read in (lambda path=path: open_video(path).frames([0]), lambda path=path: list(FrameStream(path))):
                with pytest.raises(DecodeError):
                    read()
    assert server.asked == []


def test_a_file_is_a_file_whatever_its_name_looks_like(tmp_path, server, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = server.address.removeprefix("http://")
    names = ["12:30.mp4", "http:x.mp4", "concat:a|b.mp4", "subfile,,start,9,end,10,,:a.mp4", "file:q.mp4", "pipe:0.mp4"]
    for name in (*names, f"tcp:{address}.mp4"):
        os.replace(write_numbered(tmp_path / "made.mp4", 20), name)
        with open_video(name) as video:
            assert video.num_frames == 20
        with FrameStream(name) as stream:
            assert sum(1 for _ in stream) == 20
    Path("http:", address).mkdir(parents=True)
    os.replace(write_numbered(tmp_path / "made.mp4", 20), f"http:/{address}/there.mp4")
    with open_video(f"http://{address}/there.mp4") as video:  # a file of that path, and not the address
        assert video.num_frames == 20
    assert server.asked == []


def test_an_address_opens_no_file(tmp_path, server):
    secret = write_numbered(tmp_path / "secret.mp4", 20)
    os.replace(write_numbered(tmp_path / "made.mp4", 20), server.served / "fine.mp4")
    (server.served / "fine.m3u8").write_text(playlist("fine.mp4"))
    (server.served / "evil.m3u8").write_text(playlist(f"file:{secret}"))
    with FrameStream(f"{server.address}/fine.m3u8") as stream:
        assert sum(1 for _ in stream) == 20
    (server.served / "itself.mp4").write_text("ffconcat version 1.0\nfile itself.mp4\n")
    for address in (
        f"{server.address}/evil.m3u8",
        f"{server.address}/itself.mp4",
        f"file://{secret}",
        f"concat://{secret}",
        "pipe://0",
        "fd://0",
    ):
        with pytest.raises(DecodeError):
            FrameStream(address)
        with pytest.raises((ValueError, OSError)):
            open_address(address)


def test_what_is_fetched_comes_by_http_and_fits(tmp_path, server, monkeypatch):
    secret = write_numbered(tmp_path / "secret.mp4", 20)
    (server.served / "large.mp4").write_bytes(bytes(3 << 20))
    for redirect in (f"file://{secret}", "ftp://127.0.0.1:1/x.mp4", "data:text/plain,x", f"{server.address}/moved.mp4"):
        server.handler.redirect = redirect
        with (
            pytest.raises(DecodeError, match="the server says 302|cannot be fetched"),
            fetched(f"{server.address}/moved.mp4"),
        ):
            pass
    with pytest.raises(DecodeError, match="by its path, without file://"), fetched(f"file://{secret}"):
        pass
    server.handler.redirect = f"{server.address}/large.mp4"
    with fetched(f"{server.address}/moved.mp4") as name:
        assert os.path.getsize(name) == 3 << 20
    with fetched(f"{server.address}/large.mp4?.{'x' * 300}") as name, pytest.raises(DecodeError):
        open_video(name)
    monkeypatch.setattr("shutil.disk_usage", lambda _: os.terminal_size((0, 0)) and type("Disk", (), {"free": 4 << 20}))
    with pytest.raises(DecodeError, match="half of what is free"), fetched(f"{server.address}/large.mp4"):
        pass


def test_a_picture_larger_than_memory_is_refused(tmp_path):
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", b""), (b"IEND", b""))
    png = b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)
    with pytest.raises(DecodeError, match="decompression bomb"), open_video(tmp_path / "frames") as video:
        video.frames([0])


def test_results_are_written_where_they_are_asked_for():
    for video in ("../../etc/x.mp4", "/etc/x.mp4", "http://h/../../etc/x.mp4?a=/../x.mp4", "a/{name}/x.mp4"):
        assert one_each.named(Path("out/{name}.csv"), video) == Path("out/x.csv")


def test_copies_are_written_below_their_folder(tmp_path):
    root, out = tmp_path / "deep" / "root", tmp_path / "out" / "copies"
    root.mkdir(parents=True)
    paths = [write_numbered(folder / "clip.mp4", 12) for folder in (root, tmp_path, tmp_path / "deep")]
    paths.append(f"{root}/../../clip.mp4")
    before = {path: Path(path).read_bytes() for path in paths}
    manifest = Manifest(("a",), [Clip(str(path), 0) for path in paths], (), str(root))
    copies, _ = reencode({"train": manifest}, root, out, Encoding(32, 4), workers=1)
    assert len(copies["train"].clips) == 4
    for copy in copies["train"].clips:
        assert Path(copy.path).resolve().is_relative_to(out.resolve()) and Path(copy.path).is_file()
    assert {path: Path(path).read_bytes() for path in paths} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4", "deep", "out"]


# --- archives ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def bsdtar(tmp_path, monkeypatch):
    """A program that unpacks tar files and holds nothing back, in bsdtar's place; `before` is run by it first."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(before: str = "") -> None:
        code = f"import os, sys, tarfile, time\n{before}\nfile = tarfile.open(sys.argv[3])\n"
        code += "file.extraction_filter = tarfile.fully_trusted_filter\nfile.extractall(sys.argv[5])\n"
        (folder / "bsdtar").write_text(f"#!{sys.executable}\n{code}")
        (folder / "bsdtar").chmod(0o755)

    make()
    monkeypatch.setenv("PATH", str(folder))
    return make


def test_archives_with_links_and_devices_are_refused(tmp_path, bsdtar):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    members = {
        "a link": {"type": tarfile.SYMTYPE, "linkname": str(secret)},
        "a link ": {"type": tarfile.SYMTYPE, "linkname": ".."},
        " a link": {"type": tarfile.LNKTYPE, "linkname": str(secret)},
        "a device or a pipe": {"type": tarfile.FIFOTYPE},
    }
    out = tmp_path / "out"
    for kind, values in members.items():
        archive = tar(tmp_path / "data.rar", ("fine/clip.avi", {}), ("fine/odd.avi", values))
        with pytest.raises(WorkError, match=f"'fine/odd.avi' in it is {kind.strip()}|cannot unpack"):
            archives.unpack(archive, out)
        assert list(out.iterdir()) == []
    archives.unpack(tar(tmp_path / "data.rar", ("fine/clip.avi", {})), out)
    assert (out / "fine" / "clip.avi").is_file()


def test_zip_members_that_lead_outside_are_refused(tmp_path):
    for name in ("../canary", "a/../../canary", str(tmp_path / "canary"), "..\\canary"):
        with zipfile.ZipFile(tmp_path / "data.zip", "w") as file:
            file.writestr(name, "x")
        with pytest.raises(WorkError, match="leads outside"):
            archives.unpack(tmp_path / "data.zip", tmp_path / "out")
    assert not list(tmp_path.rglob("*canary"))


def test_archives_larger_than_the_disk_are_refused(tmp_path, bsdtar, monkeypatch):
    free = 40 << 20
    monkeypatch.setattr(archives, "_LEFT_FREE", 10 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(31 << 20))
    assert (tmp_path / "bomb.zip").stat().st_size < 100_000

    def usage(folder):
        used = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        return type("Disk", (), {"free": free - used})

    monkeypatch.setattr(archives.shutil, "disk_usage", usage)
    with pytest.raises(WorkError, match="do not fit on the disk"):
        archives.unpack(tmp_path / "bomb.zip", tmp_path / "out")
    bsdtar("open(sys.argv[5] + '/zeros', 'wb').truncate(31 << 20); time.sleep(600)")
    with pytest.raises(WorkError, match="does not fit on the disk"):
        archives.unpack(tar(tmp_path / "bomb.rar"), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_unpacking_never_asks(tmp_path, bsdtar):
    """It has nobody to ask: no standard input, no terminal."""
    bsdtar(
        "assert sys.stdin.read() == '' and os.getsid(0) == os.getpid() and '--passphrase' in sys.argv\n"
        "try: os.open('/dev/tty', os.O_RDWR)\nexcept OSError: pass\nelse: raise SystemExit('a terminal')"
    )
    archives.unpack(tar(tmp_path / "data.rar", ("clip.avi", {})), tmp_path / "out")
    assert "-p-" in archives._COMMANDS["unrar"]("a.rar", "b")


def test_an_unpacking_that_was_killed_begins_again(tmp_path, bsdtar):
    root = tmp_path / "hmdb"
    root.mkdir()
    tar(root / "hmdb51_org.rar", ("wave.rar", {}), ("run.rar", {}))
    tar(root / "test_train_splits.rar", *((f"splits/{name}_test_split1.txt", {}) for name in ("run", "wave")))
    # killed while it unpacked, and while it moved what it had unpacked
    left = (root / "hmdb51_org" / ".hmdb51_org.rar.partial", root / ".test_train_splits.rar.partial")
    for folder in left:
        (folder / "splits").mkdir(parents=True)
    (left[0] / "wave.rar").touch()
    (left[1] / "splits" / "run_test_split1.txt").touch()
    (root / "splits").mkdir()
    (root / "splits" / "wave_test_split1.txt").touch()
    with pytest.raises(UsageError, match="was not unpacked to the end; `softpool3d prepare hmdb51"):
        read_hmdb51(root)
    known = [ARCHIVES[0], ARCHIVES[2]]
    assert {path.name for path in archives.unpack_missing(root, known)} == {"hmdb51_org.rar", "test_train_splits.rar"}
    assert {path.name for path in (root / "hmdb51_org").iterdir()} == {"wave.rar", "run.rar"}
    assert len(list((root / "splits").iterdir())) == 2 and not any(folder.exists() for folder in left)
    assert archives.unpack_missing(root, known) == []


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_are_text_in_the_report(run, tmp_path):
    clip = write_numbered(tmp_path / "clip.mp4", 20)
    os.replace(clip, odd := tmp_path / "<img src=x onerror=alert(1)> & \"'<b>.mp4")
    result = run("visualize", odd, "--report", tmp_path / "report.html", "--short-side", 32)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "&lt;img src=x" in page and "<img" not in page and "<b>" not in page
    assert page.count("<script") == page.count("</script")


def test_names_are_text_in_subtitles_plots_and_bars(tmp_path):
    odd = ("$\\frac{a$", "<b>x</b>", "a\n\n00:00:00.000 --> 00:09:00.000\nb", *"cdefg")
    shipped = load_weights(SHIPPED)
    save_weights(tmp_path / "odd.safetensors", shipped.state, shipped.config, odd)
    clip = write_numbered(tmp_path / "$\\frac{x$ {task.id} {0} [red].mp4", 60)
    classifier = Classifier(tmp_path / "odd.safetensors", "cpu")
    found = watch(classifier, str(clip), None, None, 1, 0.0)
    found.segments[:] = [replace(found.segments[0], label=label) for label in odd]
    for ending in timeline_files.PLOTS:
        timeline_files.draw_plot(tmp_path / f"plot{ending}", found, 0.0)
    assert "<b>x" not in (tmp_path / "plot.svg").read_text()
    for ending in (".vtt", ".srt"):
        text = timeline_files.rendered(found, ending).decode()
        assert text.count("\n00:0") == len(odd)
        assert ("<b>" in text) == (ending == ".srt")  # SRT has no escapes
    with one_each.bar_of(clip.name, 1.0) as bar:
        bar.add_task("", total=1.0)
        assert "{task.id} {0} [red].mp4" in bar.columns[0].render(bar.tasks[0]).plain


def test_names_do_not_act_on_a_terminal(tmp_path):
    """A title that is set, a clipboard that is filled, a question that the terminal answers as if it were typed."""
    said = io.StringIO()
    shielded = Shielded(said)
    attacks = (
        "\x1b]0;title\x07",
        "\x1b]52;c;cm0gLXJm\x07",
        "\x1b[6n",
        "\x1b[c",
        "\x1bP+q\x1b\\",
        "\x9b6n",
        "\x1b[2J",
        "\x08",
    )
    for attack in attacks:
        shielded.write(attack)
    assert not {"\x1b", "\x07", "\x08", "\x9b"} & set(said.getvalue()) and "\\x1b]0;title\\x07" in said.getvalue()
    fine = "Grüße\t\n\r\x1b[1;31mred\x1b[0m\x1b[2K\x1b[1A\x1b[?25l"
    shielded.writelines([fine])
    assert said.getvalue().endswith(fine) and shielded.encoding == said.encoding
    ours, theirs = os.openpty()
    name = tmp_path / "none\x1b]0;title\x07.mp4"
    command = [sys.executable, "-c", "from softpool3d.cli import run; run()", "export", "--weights=w", "--out", name]
    subprocess.run(command, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL, cwd=tmp_path)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # how a terminal ends
        while block := os.read(ours, 65536):
            shown += block
    os.close(ours)
    assert b"none\\x1b]0;title\\x07.mp4" in shown and b"\x1b]" not in shown


# --- the code itself --------------------------------------------------------------------------------------------------

FORBIDDEN = {
    "eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "yaml.unsafe_load", "yaml.full_load",
    "torch.jit.load", "shutil.unpack_archive", "marshal.loads", "urllib.request.urlopen",
}  # fmt: skip
HELD = {  # call -> (keyword, what it has to be)
    "torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False),
    "yaml.load": ("Loader", "_Loader"), "yaml.compose": ("Loader", "_Loader"),
}  # fmt: skip


def test_every_place_that_reads_is_held():
    """A new torch.load, av.open or subprocess with a shell is found here, whoever writes it."""
    seen = set()
    for folder in ("softpool3d", "datasets", "models", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
                name, where = ast.unparse(call.func), f"{path.relative_to(ROOT)}:{call.lineno}"
                keywords = {k.arg: getattr(k.value, "value", ast.unparse(k.value)) for k in call.keywords}
                # what decord's helper process, ours, answers through a pipe of its own; what Ray, which unpickles
                # whatever it is sent, brings from our own tasks
                ours = name == "pickle.loads" and (path.name == "decord_reader.py" or path.parent.name == "cluster")
                assert name not in FORBIDDEN or ours, f"{where}: {name}"
                assert keywords.get("shell") is not True, f"{where}: a shell"
                if name in HELD:
                    keyword, wanted = HELD[name]
                    assert keywords.get(keyword) == wanted, f"{where}: {name}({keyword}=...)"
                    seen.add(name)
                if name == "av.open" and "'w'" not in map(ast.unparse, call.args):
                    allowed = path.name == "containers.py" or path.name.startswith("_bench")
                    assert allowed, f"{where}: files are opened by containers.py"
                    seen.add(name)
                if name in ("torch.export.load", "torch._inductor.aoti_load_package"):
                    assert path.name == "exported.py", f"{where}: {name}"
                    seen.add(name)
    assert seen >= {"torch.load", "np.load", "yaml.compose", "av.open", "torch.export.load"}
