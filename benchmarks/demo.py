"""Runs the demo of `make demo`, once the environment is installed: train on `motion`, classify test clips, sum up.

python benchmarks/demo.py
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Train the small R3D-18 with SoftPool on `motion`, classify a few of its test clips, print a summary."""
    started = float(os.environ.get("DEMO_STARTED", time.time()))  # `make demo` counts the installation, too
    os.chdir(ROOT)
    command("tools/train.py", "--cfg", "configs/r3d_softpool.yaml", "train.epochs=8")
    newest = max(Path("runs").glob("r3d_softpool*/summary.json"), key=lambda path: path.stat().st_mtime)
    summary = json.loads(newest.read_text())

    from softpool3d.datasets import read_manifests
    from softpool3d.runs.checkpoint import load_weights

    weights = load_weights(summary["weights"])
    clips = read_manifests(weights.config.data)["test"].clips
    some = [clip.path for clip in random.Random(0).sample(clips, 4)]
    command("tools/classify.py", *some, "--weights", summary["weights"])

    minutes, seconds = divmod(round(time.time() - started), 60)
    val, test, chance = summary["val_top1"], summary["test_top1"], 1 / len(weights.classes)
    memory = summary["peak_memory_bytes"] / 2**30
    best = summary["weights"]
    print(
        f"""
validation top-1 {val:.1%}, test top-1 {test:.1%} (chance is {chance:.1%})
{minutes} min {seconds} s in all, {summary["seconds"]:.0f} s of it training; peak memory {memory:.2f} GiB
run      {summary["folder"]}  (tensorboard --logdir runs)
weights  {best}

what to type next:
  .venv/bin/softpool3d classify YOUR_VIDEO.mp4 --weights {best}
  .venv/bin/softpool3d train YOUR_FOLDER"""
    )


def command(*arguments: str) -> None:
    print("\n$ python", *arguments, flush=True)
    result = subprocess.run([sys.executable, *arguments])
    if result.returncode:
        sys.exit(result.returncode)


if __name__ == "__main__":
    main()
