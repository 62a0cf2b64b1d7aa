"""What gates a landing looks at beyond failures: how many tests of each marker ran, and that none skips without need.

`pytest --gate` fails where a test skipped though what it needs is here. Without it the same is only printed.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch
from soak_stream import lacking_for_rtsp

SLURM = Path(__file__).parents[1] / "cluster" / "slurm.sh"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_LONG = {"test_learning.py", "test_kernels_on_host.py", "test_export.py", "test_benchmark.py", "test_compose.py"}
_LONG |= {
    "test_resume.py",
    "test_packaging.py",
    "test_cpu_under_sanitizers.py",
    "test_compilers.py",
    "test_command_line.py",
    "test_page.py",
    "test_slurm.py",
    "test_elastic.py",
}
_NEEDS = "needs"  # of a report's properties: a marker
_LACKING = ("this processor has no", "this machine has no", "these sources passed already")


def browser() -> str | None:
    """Returns the path of a browser that tests can drive."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def clips_folder() -> Path | None:
    """Returns the folder of real clips, where $SOFTPOOL3D_CLIPS names one."""
    folder = os.environ.get("SOFTPOOL3D_CLIPS")
    return Path(folder) if folder else None


@functools.cache
def lacking_for_slurm() -> str:
    """Returns why no SLURM can be started here; "" where one can."""
    if shutil.which("unshare") is None:
        return "no SLURM can be started here: that needs namespaces"
    return subprocess.run([SLURM, ".", "check"], capture_output=True, text=True).stdout.strip()


# marker -> whether what its tests need is here
MARKERS = {
    "gpu": torch.cuda.is_available,
    "clips": lambda: clips_folder() is not None,
    "browser": lambda: browser() is not None,
    "slurm": lambda: not lacking_for_slurm(),
    "rtsp": lambda: not lacking_for_rtsp(),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gate", action="store_true", help="fail where a test skips though what it needs is here")
    parser.addoption("--sweeps", action="store_true", help="run the kernels' sweeps, whose sources passed already, too")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks whoever asks for the clips, the browser or the cluster. Files that take longest come first: a process that
    begins one last would keep the others waiting."""
    items.sort(key=lambda item: item.path.name not in _LONG)
    for item in items:
        for fixture, marker in (("real_clips", "clips"), ("browser", "browser"), ("slurm", "slurm"), ("rtsp", "rtsp")):
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)
        # a report's own keywords hold the names of folders too
        item.user_properties += [(_NEEDS, name) for name in MARKERS if item.get_closest_marker(name)]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--gate") and session.exitstatus == 0 and _found(session.config)[1]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    ran, needless = _found(config)
    terminalreporter.write_line("tests that ran: " + ", ".join(f"{ran[name]} {name}" for name in MARKERS))
    for line in needless:
        terminalreporter.write_line(line, red=True)


def _found(config: pytest.Config) -> tuple[Counter, list[str]]:
    """How many tests of each marker ran, and what should not have been skipped."""
    stats = config.pluginmanager.get_plugin("terminalreporter").stats
    ran = Counter(name for how in ("passed", "failed") for report in stats.get(how, ()) for name in _markers(report))
    needless = [f"skipped without need: {r.nodeid}: {_reason(r)}" for r in stats.get("skipped", ()) if not _excused(r)]
    if not config.getoption("--gate"):
        return ran, needless
    return ran, needless + [
        f"no {name} test ran, though what they need is here" for name in MARKERS if not ran[name] and MARKERS[name]()
    ]


def _markers(report) -> list[str]:
    return [value for name, value in getattr(report, "user_properties", ()) if name == _NEEDS]


def _excused(report) -> bool:
    return any(not MARKERS[name]() for name in _markers(report)) or any(text in _reason(report) for text in _LACKING)


def _reason(report) -> str:
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
