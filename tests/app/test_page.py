"""The page in Chromium, as somebody with a phone and a clip meets it."""

import csv
import io
import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from videos import write_numbered

from softpool3d import Classifier
from softpool3d.app import server
from softpool3d.config_file import load_config
from softpool3d.evaluation.scores import Scores, VideoScores
from softpool3d.inference.trained import SHIPPED
from softpool3d.runs.run import Run

WAIT_MS = 120_000  # of two cores that others use too
PHONE = {"width": 390, "height": 844}
CLASSES = ("clapping", "jumping <b>high</b>", "waving")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with one run, of which one epoch is done."""
    folder = tmp_path_factory.mktemp("runs")
    run = Run.create(load_config("r3d_softpool", [f"output={folder}", "name=waving", "train.epochs=9"]))
    run.log({"epoch": 1, "step": 10, "train_loss": 2.0, "val_top1": 0.25})
    shutil.copy(SHIPPED, run.best)
    return folder


@pytest.fixture(scope="module")
def address(runs):
    """A page whose network ships with the package, and that takes uploads up to 1 MB."""
    pytest.importorskip("gradio", reason="no gradio: pip install 'softpool3d[app]'")
    from softpool3d.app import page

    with pytest.MonkeyPatch.context() as patch, socket.socket() as free:
        patch.setattr(page, "_EVERY_S", 0.5)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        with server.served(None, runs, "127.0.0.1", port, None, limit="1mb") as found:
            yield found


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_numbered(tmp_path_factory.mktemp("clip") / "a & b.mp4", 75)


@pytest.fixture
def page(browser, address):
    """The page at the width of a phone; a request to anybody else, or an error on the console, fails the test."""
    made = browser.new_page(viewport=PHONE, permissions=["camera"])
    made.set_default_timeout(WAIT_MS)
    said = []
    made.on("console", lambda message: message.type == "error" and said.append(message.text))
    made.on("pageerror", lambda error: said.append(str(error)))
    made.on("request", lambda request: request.url.startswith((address, "data:", "blob:")) or said.append(request.url))
    made.goto(address)
    made.wait_for_selector("#video input[type=file]", state="attached")
    yield made
    made.close()
    left = ("AbortError", "Connection errored out")  # what gradio says of requests that a page was left in
    assert [text for text in said if not any(part in text for part in left)] == []


def send(page, file: Path, awaited: str = "#timeline [data-seek]") -> None:
    page.set_input_files("#video input[type=file]", file)
    page.wait_for_selector(awaited)


def shown(page) -> float:
    """Where the player is, in seconds."""
    return page.evaluate("document.querySelector('#video video').currentTime")


def test_labels_timeline_and_files_of_a_clip(page, clip):
    send(page, clip)
    result = Classifier("motion")(clip)
    rows = page.locator("#labels dt").all_inner_texts()
    assert rows == [label.name for label in result]
    assert page.locator("#labels dd").first.inner_text() == f"{result.score:.0%}"
    assert "which knows eight synthetic motions alone" in page.inner_text("#note")
    with page.expect_download() as kept:
        page.get_by_role("button", name="JSON").click()
    whole = json.loads(Path(kept.value.path()).read_text())
    assert whole["file"] == clip.name and whole["label"] == result.label and len(whole["windows"]) > 1
    assert whole["labels"][0]["probability"] == pytest.approx(result.score, abs=1e-5)
    with page.expect_download() as kept:
        page.get_by_role("button", name="CSV").click()
    rows = list(csv.DictReader(io.StringIO(Path(kept.value.path()).read_text("utf-8-sig"))))
    assert [float(row["start"]) for row in rows] == [part["start"] for part in whole["segments"]]
    assert page.locator(".parts [data-seek]").count() == len(rows)


def test_thumbnails_take_the_player_to_their_time_by_finger_and_by_key(page, clip):
    send(page, clip)
    thumbs = page.locator(".thumbs [data-seek]")
    assert thumbs.count() == 10 and shown(page) == 0
    for number, act in ((7, "click"), (3, "press")):
        wanted = float(thumbs.nth(number).get_attribute("data-seek"))
        getattr(thumbs.nth(number), act)(*["Enter"] * (act == "press"))
        page.wait_for_function(
            "t => Math.abs(document.querySelector('#video video').currentTime - t) < 0.01", arg=wanted
        )
        assert wanted > 0.5


def test_it_fits_a_phone_and_is_reached_by_keys(page, clip):
    order = []
    for _ in range(14):
        page.keyboard.press("Tab")
        order.append(page.evaluate("(e => e.ariaLabel || e.innerText)(document.activeElement)").split("\n")[0])
    for control in ("Video", "Training", "Drop a video file here to upload", "Capture from camera", "Weights", "JSON"):
        assert control in order, order
    upload = page.locator("[aria-label='Drop a video file here to upload']")
    choosers = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    for _ in range(WAIT_MS // 500):  # a page that is still coming to life does not hear the first key
        upload.press("Enter")
        page.wait_for_timeout(500)
        if choosers:
            break
    choosers[0].set_files(clip)
    page.wait_for_selector("#timeline [data-seek]")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert min(page.locator("[data-seek]").evaluate_all("all => all.map(e => e.offsetHeight)")) >= 44  # fingers
    assert page.locator("#timeline .broad").evaluate("e => e.offsetWidth") >= 640  # scrolled, not shrunk


def test_a_recording_is_labelled(page):
    page.get_by_role("button", name="Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.get_by_role("button", name="start recording").click()
    page.wait_for_timeout(2500)
    page.get_by_text("Stop", exact=True).click()
    page.wait_for_selector("#timeline [data-seek]")
    assert page.locator("#labels dt").count() == 5


def test_files_that_are_no_videos_get_a_sentence(page, tmp_path, address):
    text = tmp_path / "text.mp4"
    text.write_text("no video\n")
    send(page, text, "#note .refusal")
    assert page.inner_text("#note") == "cannot read text.mp4: invalid data found when processing input"
    assert page.locator("#labels dt").count() == 0 and page.inner_text("#timeline") == ""
    page.goto(address)
    page.wait_for_selector("#video input[type=file]", state="attached")
    notes = tmp_path / "notes.txt"
    notes.write_text("no video\n")
    send(page, notes, ".toast-body")
    assert "Invalid file type: notes.txt" in page.inner_text(".toast-body")


def test_a_file_above_the_limit_gets_a_sentence(page, tmp_path):
    large = tmp_path / "large.mp4"
    large.write_bytes(bytes(1_100_000))
    send(page, large, ".toast-body")
    assert "exceed" in page.inner_text(".toast-body")
    page.wait_for_timeout(300)
    assert page.locator("#labels dt").count() == 0


def send_after_a_refusal(page, clip, tab, button, note):
    """Presses a tab's button without a video, which is refused; then sends one, and comes back to the tab."""
    page.get_by_role("tab", name=tab).click()
    page.click(button)
    page.wait_for_selector(".refusal")
    assert page.inner_text(note) == "drop a video first"
    page.get_by_role("tab", name="Timeline").click()
    send(page, clip)
    page.get_by_role("tab", name=tab).click()


def test_what_speaks_for_a_class(page, clip):
    send_after_a_refusal(page, clip, "Grad-CAM", "#explain", "#unexplained")
    page.get_by_label("What speaks for").click()
    page.get_by_role("option", name="moving up").click()
    page.click("#explain")
    page.wait_for_function("document.querySelector('#heat video')?.readyState >= 2")
    assert page.evaluate("document.querySelector('#heat video').duration") == pytest.approx(3, abs=0.05)
    assert page.inner_text("#unexplained") == ""


def test_pooled_clips_in_split_view(page, clip):
    send_after_a_refusal(page, clip, "Pooling", "#pool", "#unpooled")
    page.get_by_label("number input for SoftPool's beta, for pixels in [0, 1]").fill("4")
    page.get_by_label("Kernel: frames x rows x columns").click()
    page.get_by_role("option", name="1x2x2").click()
    page.click("#pool")
    inside = page.frame_locator("iframe.page")
    sides = inside.locator("#right option")
    sides.nth(2).wait_for(state="attached")
    assert sides.all_inner_texts() == [
        "original, 75x48x64",
        "soft, beta 4, 75x24x32, 1x2x2 smaller",
        "max, 75x24x32, 1x2x2 smaller",
    ]
    assert "--pools soft,max --kernel 1,2,2 --beta 4" in inside.locator("pre").inner_text()
    assert inside.locator(":root").evaluate("e => e.scrollWidth <= innerWidth")
    box = "e => [...e.children].every(c => c.getBoundingClientRect().right <= innerWidth)"
    assert inside.locator(".controls > div").evaluate(box)


def test_a_run_is_watched_while_it_trains(page, runs):
    page.get_by_role("tab", name="Training").click()
    run, _ = Run.open(runs / "waving")
    run.keep_rows(9)
    page.get_by_text("r3d_18: 1 of 9 epochs, top-1 25.0% best in validation, not finished").wait_for()
    curves = page.locator("img[alt^='Training loss']")
    before = curves.get_attribute("src")
    run.log({"epoch": 2, "step": 20, "train_loss": 1.5, "val_top1": 0.5})
    page.get_by_text("2 of 9 epochs, top-1 50.0% best in validation").wait_for()
    assert curves.get_attribute("src") != before
    given = torch.tensor([[0.7, 0.2, 0.1], [0.8, 0.15, 0.05], [0.3, 0.3, 0.4]])
    scores = Scores(given, torch.tensor([0, 1, 2]), torch.arange(3))
    names, about = ("a.mp4", "<i>b.mp4", "c.mp4"), {"split": "val"}
    VideoScores(scores, names, CLASSES, about).save(run.folder / "scores.npz")
    page.get_by_text("What is taken for what, in validation").wait_for()
    assert page.locator(".clips td").count() == 3
    VideoScores(scores, names, CLASSES, {"split": "test"}).save(run.folder / "scores.npz")
    page.get_by_text("What is taken for what, in the test").wait_for()
    cells = page.locator(".clips td").all_inner_texts()
    assert cells == ["<i>b.mp4", "jumping <b>high</b>, 15.0%", "clapping, 80.0%"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_weights_of_a_run_are_picked(page, runs, clip):
    send(page, clip)
    page.get_by_label("Weights").click()
    page.get_by_role("option", name=str(runs / "waving" / "best.safetensors")).click()
    page.wait_for_function("!document.querySelector('#note').innerText.includes('no --weights')")
    page.wait_for_selector("#timeline [data-seek]")
    assert page.locator("#labels dt").count() == 5


def test_a_real_clip(page, real_clips):
    """The classes are synthetic motions, so what is asked is that they come, and the timeline of all ten seconds."""
    send(page, real_clips / "mmaction2" / "demo.mp4")
    assert page.locator("#labels dt").all_inner_texts() == [
        label.name for label in Classifier("motion")(real_clips / "mmaction2" / "demo.mp4")
    ]
    last = page.locator(".thumbs [data-seek]").last
    assert float(last.get_attribute("data-seek")) > 9
    last.click()
    page.wait_for_function("document.querySelector('#video video').currentTime > 9")
