"""A small data set of short videos, and weights that were not trained: what tests of testing need."""

from __future__ import annotations

from pathlib import Path

from videos import write_numbered

CLASSES = ("clapping", "jumping, high", "waving")


def write_data_set(root: Path, train: int = 3, val: int = 7, test: int = 13) -> Path:
    """Lists of clips, each a part of one of three videos; label and length go round."""
    root.mkdir(parents=True)
    for number in range(3):
        write_numbered(root / f"video {number}.mp4", 40)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for split, count in (("train", train), ("val", val), ("test", test)):
        rows = [f"video {n % 3}.mp4,{n * 2 % 3},{n * 0.05:g},{n * 0.05 + 0.5:g}" for n in range(count)]
        (root / f"{split}.csv").write_text("\n".join(["path,label,start,end", *rows]) + "\n")
    return root


def write_weights(path: Path, root: Path, *overrides: str, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> Path:
    import torch

    from softpool3d.config_file import load_config
    from softpool3d.models import build_model
    from softpool3d.runs.checkpoint import save_weights

    small = ["model.width=4", "data.num_frames=4", "data.sampling_rate=1", "data.num_workers=0"]
    sizes = ["data.short_side=32", "data.train_short_side=[32,32]", "data.crop_size=32", "test.batch_size=4"]
    where = ["data.dataset=folder", f"data.root={root}", "device=cpu"]
    config = load_config("r3d_softpool", [*small, *sizes, *where, *overrides])
    torch.manual_seed(seed)
    save_weights(path, build_model(config, len(classes)), config, classes)
    return path
