"""Fixtures that several test files share."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from gate import browser as browser_path
from gate import (  # noqa: F401 (what begins with pytest_ are hooks)
    clips_folder,
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_sessionfinish,
    pytest_terminal_summary,
)
from videos import write_numbered

_CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


@pytest.fixture(autouse=True, scope="session")
def _home(tmp_path_factory):
    """Data sets are generated into a folder of the tests' own."""
    os.environ["SOFTPOOL3D_HOME"] = str(tmp_path_factory.mktemp("home"))
    os.environ["SOFTPOOL3D_OFFLINE"] = "1"  # no test asks a server of others


@pytest.fixture(autouse=True)
def _no_real_time():
    """A test that leaves the process in real time slows down all that come after it, and fails here in their place."""
    yield
    if hasattr(os, "sched_getscheduler"):
        assert os.sched_getscheduler(0) == os.SCHED_OTHER, "see kept_priority in tests/support/videos.py"


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """The folder of real video files; a test that needs them says so when it skips."""
    folder = clips_folder()
    if folder is None:
        pytest.skip("no real clips here: set SOFTPOOL3D_CLIPS to their folder")
    assert folder.is_dir(), f"SOFTPOOL3D_CLIPS: no folder {folder}"
    return folder


@pytest.fixture(scope="module")
def browser():
    """Chromium, with a camera that shows a test picture; whoever uses it is marked `browser`."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    path = browser_path()
    if path is None:
        pytest.skip("no browser here: install chromium")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=path, args=["--no-sandbox", *_CAMERA])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def faults() -> Path:
    """Small files that once went wrong and that a test cannot make."""
    return Path(__file__).parent / "data" / "faults"


@pytest.fixture
def run(monkeypatch, capsys):
    """`softpool3d ...`, in this process: torch is loaded once."""
    from softpool3d import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["softpool3d", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.run()
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=end.value.code or 0, stdout=out, stderr=err)

    return run


@pytest.fixture
def two_classes(tmp_path: Path) -> Path:
    """A folder data set: two classes of six short videos each, one name with spaces and letters beyond ASCII."""
    root = tmp_path / "videos"
    for name, codec in (("Grüße winken", "libx264"), ("jumping", "libx264")):
        (root / name).mkdir(parents=True)
        for index in range(6):
            write_numbered(root / name / f"clip {index}.mp4", 20 + index, codec)
    return root
