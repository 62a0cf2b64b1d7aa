"""Changes the code in a copy, one mutation at a time, and runs the tests beside it: whatever survives, no test sees.

    make mutants                                 # all of tests/mutations.py, in the background of a day
    python tests/mutants.py ema schedule         # those whose file, old or new text holds one of these words
    python tests/mutants.py --list               # where the list is stale, that is, its old text is not there once

The copy is of the last commit; nothing in the working tree is touched. What was tried is kept in build/mutants.jsonl:
a run that was stopped goes on, and a mutation is tried again only when its file or its tests have changed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "build" / "mutants.jsonl"
LONGEST_S = 300
# imported once, here; each mutation is tried in a fork
_LIBRARIES = ("torch", "torchvision.transforms.v2", "torchvision.models", "accelerate", "av", "matplotlib.pyplot")
_LIBRARIES += ("torch.utils.tensorboard", "torchmetrics.functional.classification", "pydantic", "typer", "rich.table")
_LIBRARIES += ("pytest", "hypothesis", "safetensors.torch", "PIL.Image", "timm.optim")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    os.nice(19)
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_of_the_last_commit(Path(folder) / "tree")
        chosen = [m for m in MUTATIONS if not options.words or any(word in str(m) for word in options.words)]
        stale = [m for m in chosen if (tree / m.file).read_text(encoding="utf-8").count(m.old) != 1]
        for mutation in stale:
            print(f"stale: {mutation.file}: {mutation.old!r} is not there once")
        if not options.list:
            try_all(tree, [m for m in chosen if m not in stale])


def copy_of_the_last_commit(tree: Path) -> Path:
    """The tree, with what setup.py maps into one package linked into that; the compiled libraries are ours."""
    tree.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", tree], input=archive, check=True)
    for name in ("datasets", "models", "tools", "configs"):
        (tree / "softpool3d" / name).symlink_to(f"../{name}")
    for library in (ROOT / "softpool3d").glob("*.so"):
        (tree / "softpool3d" / library.name).symlink_to(library)
    (tree / "path").mkdir()  # the tree itself on sys.path would make `datasets` a top-level package
    (tree / "path" / "softpool3d").symlink_to("../softpool3d")
    return tree


def try_all(tree: Path, mutations: list[Mutation]) -> None:
    os.environ.update(
        PYTHONPATH=str(tree / "path"),
        OMP_NUM_THREADS="1",
        PYTHONDONTWRITEBYTECODE="1",
        SOFTPOOL3D_HOME=str(tree / "home"),
    )
    for library in _LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(library)
    results = map(json.loads, RESULTS.read_text().splitlines()) if RESULTS.exists() else ()
    known = {line["key"]: line for line in results if line["outcome"] in ("killed", "survived")}
    RESULTS.parent.mkdir(exist_ok=True)
    sound: dict[str, tuple[str, str]] = {}  # tests -> how they end without a mutation
    for number, mutation in enumerate(mutations, 1):
        key = key_of(tree, mutation)
        if key not in known:
            began = time.monotonic()
            if mutation.tests not in sound:
                sound[mutation.tests] = run_tests(tree, mutation.tests.split())
            outcome, words = sound[mutation.tests]
            if outcome != "survived":
                outcome, words = "not tried: its tests fail without it", words
            else:
                with mutated(tree, mutation):
                    outcome, words = run_tests(tree, mutation.tests.split())
            known[key] = {"key": key, "outcome": outcome, "seconds": round(time.monotonic() - began), "last": words}
            with RESULTS.open("a") as file:
                file.write(json.dumps(known[key]) + "\n")
        outcome = known[key]["outcome"]
        print(f"{number}/{len(mutations)} {outcome}: {mutation.file}: {short(mutation.old)} -> {short(mutation.new)}")
        if outcome not in ("killed", "survived"):
            print(f"    {known[key]['last']}")
        sys.stdout.flush()
    outcomes = [known[key_of(tree, mutation)]["outcome"] for mutation in mutations]
    print(f"{outcomes.count('killed')} of {len(outcomes)} killed, {outcomes.count('survived')} survived")


def key_of(tree: Path, mutation: Mutation) -> str:
    digest = hashlib.sha256(repr(mutation).encode())
    for name in {mutation.file, *(test.partition("::")[0] for test in mutation.tests.split())}:
        digest.update((tree / name).read_bytes())
    return digest.hexdigest()[:16]


def short(text: str) -> str:
    return " ".join(text.split())[:60]


@contextmanager
def mutated(tree: Path, mutation: Mutation):
    path = tree / mutation.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


def run_tests(tree: Path, tests: list[str]) -> tuple[str, str]:
    """Killed by a test that failed, or that took too long; and the last words of pytest."""
    log = tree / "log"
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(tree)
        sys.path[:0] = [str(tree / "path")]
        sys.path.append(str(tree))  # processes that tests spawn look for tests.softpool3d.test_norms
        sys.dont_write_bytecode = True
        code = 70
        with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
            import pytest

            code = int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]))
        os._exit(code)
    code = waited(child)
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    words = next((line for line in reversed(lines) if line.startswith(("FAILED", "ERROR"))), lines[-1] if lines else "")
    outcomes = {0: "survived", 1: "killed", None: "killed"}
    return outcomes.get(code, f"not run (pytest ended with {code})"), words[:300] if code is not None else "too slow"


def waited(child: int) -> int | None:
    end = time.monotonic() + LONGEST_S
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


if __name__ == "__main__":
    main()
