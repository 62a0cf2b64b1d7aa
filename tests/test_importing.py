"""Importing softpool3d, all of it, changes nothing in the process of whoever uses it."""

import subprocess
import sys
import textwrap

import pytest

_IMPORT_OURS = """
    import importlib, pkgutil

    def import_ours():
        for package in ("softpool3d", "softpool3d.datasets", "softpool3d.models", "softpool3d.tools"):
            place = importlib.import_module(package).__path__
            names = [module.name for module in pkgutil.walk_packages(place, f"{package}.")]
            assert len(names) > 5
            for name in names:
                if "._C" not in name:  # the operator, which torch loads
                    importlib.import_module(name)
"""

# What the libraries below us do when they are imported is theirs: a forked copy finds out which those are, and they are
# imported before the first look.
_LOOK = """
    import atexit, json, os, signal, sys, threading, warnings

    def host():
        import torch
        return {
            "signals": {s: str(signal.getsignal(s)) for s in signal.valid_signals()},
            "exit hooks": atexit._ncallbacks(),
            "environment": dict(os.environ),
            "filters": [str(f) for f in warnings.filters],
            "threads": [torch.get_num_threads(), torch.get_num_interop_threads(), threading.active_count()],
            "tf32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
            "precision": torch.get_float32_matmul_precision(),
            "cudnn": [torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.enabled],
            "defaults": [str(torch.get_default_dtype()), str(torch.get_default_device()), torch.is_grad_enabled()],
            "random": [hash(torch.get_rng_state().numpy().tobytes())],
            "sharing": torch.multiprocessing.get_sharing_strategy(),
            "start": torch.multiprocessing.get_start_method(allow_none=True),
            "streams": [str(type(sys.stdout)), str(type(sys.stderr)), str(sys.excepthook)],
            "folder": os.getcwd(),
        }

    reading, writing = os.pipe()
    if os.fork() == 0:
        import_ours()
        found = [name for name in sys.modules if name.split(".")[0] != "softpool3d"]
        with os.fdopen(writing, "w") as file:
            json.dump(found, file)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        for name in json.load(file):
            try:
                importlib.import_module(name)
            except Exception:
                pass  # what is no module by itself
    before = host()
    import_ours()
    after = host()
    changed = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
    assert not changed, changed
"""


@pytest.fixture
def works():
    def works(code: str) -> None:
        code = textwrap.dedent(_IMPORT_OURS) + textwrap.dedent(code)
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr

    return works


def test_importing_everything_changes_nothing_in_the_process(works):
    works(_LOOK)


def test_everything_is_imported_without_what_windows_lacks(works):
    works(
        """
        import signal, sys
        import accelerate, fvcore.nn, matplotlib.pyplot, torch.utils.tensorboard  # they ask for their own platform
        for name in ("SIGHUP", "SIGUSR1", "SIGCHLD"):
            delattr(signal, name)
        sys.modules["fcntl"] = sys.modules["resource"] = None
        import_ours()
        from softpool3d.datasets.loader import Loader, _end_workers, start_worker
        from softpool3d.runtime.interrupt import Interrupt
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGTERM)
        assert interrupt.requested == signal.SIGTERM
        """
    )
