"""The page in a browser: it plays, the slider moves all clips, it fits a phone, and the console stays empty."""

import re
from pathlib import Path

import pytest
from videos import write_numbered

from softpool3d.visual.pooled import pool_clip, poolings
from softpool3d.visual.quality import measure
from softpool3d.visual.report import write_report
from softpool3d.visual.sheet import original_panel, pooled_panel
from softpool3d.visual.source import read_source

FRAMES = 30


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    source = read_source(write_numbered(folder / "a <b> & $c.mp4", FRAMES))
    pooled = [pool_clip(source.frames, p, (2, 2, 2))[0] for p in poolings(["soft", "max"], [1.0], (2, 2, 2))]
    panels = [original_panel(source), *map(pooled_panel, pooled)]
    qualities = [measure(source.frames, p) for p in pooled]
    write_report(folder / "report.html", source, panels, qualities, {"pooled": "2x2x2 </dd>"}, "softpool3d '<x>'")
    return folder / "report.html"


@pytest.fixture
def page(browser, report):
    """The page, offline, at the width of a phone; what it says on the console fails the test."""
    page = browser.new_page(viewport={"width": 375, "height": 740}, offline=True)
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or said.append(request.url))
    page.goto(report.as_uri())
    page.wait_for_function("[...document.querySelectorAll('video')].every(v => v.readyState >= 3)")
    yield page
    page.close()
    assert said == []


def times(page) -> list[float]:
    return page.evaluate("[...document.querySelectorAll('video')].map(v => v.currentTime)")


def seeked(page, frame) -> None:
    ready = "[...document.querySelectorAll('video')].every(v => !v.seeking && Math.floor(v.currentTime * 25) === %d)"
    page.wait_for_function(ready % frame)


def split(page) -> list[int]:
    """The frame numbers that write_numbered drew into the left and the right of the split view, by four of its bits."""
    return page.evaluate(
        """() => {
          const copy = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
          copy.drawImage(document.getElementById('split'), 0, 0);
          const bit = column => copy.getImageData(16 * column + 8, 8, 1, 1).data[0] > 128 ? 1 : 0;
          return [[bit(0), bit(1)], [bit(2), bit(3)]]; }"""
    )


def test_the_file_is_whole_in_itself(report):
    text = report.read_text()
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", text)
    assert (
        "a &lt;b&gt; &amp; $c.mp4" in text
        and "2x2x2 &lt;/dd&gt;" in text
        and "softpool3d &#x27;&lt;x&gt;&#x27;" in text
    )
    assert text.count("data:video/mp4;base64,") == 3


def test_the_slider_moves_all_clips(page):
    for frame in (17, 3):
        page.evaluate(
            "f => { const t = document.getElementById('time'); t.value = f; t.dispatchEvent(new Event('input')); }",
            frame,
        )
        seeked(page, frame)
        bits = [[frame & 1, frame >> 1 & 1], [frame >> 2 & 1, frame >> 3 & 1]]
        page.evaluate("document.getElementById('right').selectedIndex = 0; draw()")  # the original at both sides
        assert split(page) == bits
        assert f"{frame} / {FRAMES - 1}" in page.inner_text("#now")


def test_it_plays_in_step(page):
    page.click("#play")
    page.wait_for_function("document.querySelector('video').currentTime > 0.4")
    at = times(page)
    assert max(at) - min(at) < 0.12, at
    page.click("#play")
    seeked(page, int(page.evaluate("frame")))
    assert page.evaluate("[...document.querySelectorAll('video')].every(v => v.paused)")


def test_by_keyboard(page):
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    seeked(page, 2)
    page.keyboard.press("ArrowLeft")
    seeked(page, 1)
    order = []
    for _ in range(12):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    for control in ("left", "right", "divider", "back", "play", "forth", "time", "speed"):
        assert control in order, order
    page.focus("#divider")
    page.keyboard.press("Home")
    assert page.input_value("#divider") == "0"
    page.focus("#play")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('video').currentTime > 0.2")


def test_it_fits_a_phone(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    boxes = page.evaluate("[...document.querySelectorAll('button, select')].map(e => e.getBoundingClientRect().height)")
    assert min(boxes) >= 40  # fingers
