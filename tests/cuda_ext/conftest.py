"""The sweeps of this folder compile the kernels several times over or take the library apart, which takes minutes, and
depend on nothing else.

So they run where the sources are not those that swept.txt says they passed last. `pytest tests/cuda_ext --sweeps` runs
them anyway, and writes swept.txt.
"""

import hashlib
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RECORD = HERE / "swept.txt"
SWEEPS = {"test_compilers.py", "test_cpu_under_sanitizers.py", "test_kernels_on_host.py", "test_machine_code.py"}


def compiled() -> str:
    """A hash of what the sweeps compile and run, of how, and of the torch whose headers they take."""
    root = HERE.parents[1]
    found = hashlib.sha256()
    sources = [*(root / "cuda_ext").iterdir(), *HERE.glob("*.h"), *HERE.glob("*.cpp"), HERE / "cpu_sweep.py"]
    sources.append(root / "benchmarks" / "issue_slots.py")
    for path in sorted([*sources, *(HERE / name for name in SWEEPS), root / "setup.py"]):
        found.update(path.name.encode() + path.read_bytes())
    pins = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found.update("".join(line for line in pins if line.startswith("torch==")).encode())
    return found.hexdigest()


@pytest.fixture(autouse=True, scope="module")
def _swept(request):
    known = RECORD.read_text(encoding="utf-8").strip() if RECORD.is_file() else ""
    if request.path.name in SWEEPS and not request.config.getoption("--sweeps") and known == compiled():
        pytest.skip("these sources passed already (swept.txt): --sweeps runs it again")


def pytest_sessionfinish(session):
    if hasattr(session.config, "workerinput") or not session.config.getoption("--sweeps") or session.exitstatus:
        return
    stats = session.config.pluginmanager.get_plugin("terminalreporter").stats
    files = {outcome: {Path(r.nodeid.split("::")[0]).name for r in stats.get(outcome, ())} for outcome in stats}
    if files.get("passed", set()) >= SWEEPS and not files.get("skipped", set()) & SWEEPS:
        RECORD.write_text(compiled() + "\n", encoding="utf-8")
