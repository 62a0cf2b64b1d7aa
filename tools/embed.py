"""Turn videos into features: a vector for each video, or for each window that slides over it.

python tools/embed.py videos/ --out features.npz
python tools/embed.py videos/ --weights best.safetensors --layer stage4 --pool soft --out features.parquet
python tools/embed.py videos/ --weights X3D_M.pyth --window 2s --hop 1s --out 'features/{name}.npz'
torchrun --nproc-per-node 4 tools/embed.py --manifest huge.csv --resume features.h5
python tools/embed.py --manifest huge.csv --engine ray --out s3://bucket/features/
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import typer

from softpool3d.command import Asked
from softpool3d.errors import UsageError
from softpool3d.naming import check_weights
from softpool3d.tools.classify import (
    ADDRESS,
    BATCH,
    COMPILE,
    CROPS,
    DEVICE,
    ENGINE,
    JOBS,
    MAX_MISSING,
    OVERWRITE,
    PRECISION,
    VIEWS,
    EngineName,
    Precision,
    check_shared,
    engine_of,
    options_of,
    trained_of,
)


def main(
    videos: list[str] | None = typer.Argument(
        None,
        help="Files, folders, globs in quotes, @list.txt, - for names on standard input, addresses (http, s3, gs).",
    ),
    weights: str | None = typer.Option(
        None, help="As for classify: a file, or kinetics400, ...; exported networks have no layers."
    ),
    out: str | None = typer.Option(
        None,
        "--out",
        "-o",
        help="Write to this .npz, .parquet or .h5 ({name}: the video's, for a file each); or to a folder, as in "
        "features/ or s3://bucket/features, in parts.",
    ),
    resume: str | None = typer.Option(None, help="As --out, and go on with what it holds already."),
    overwrite: bool = OVERWRITE,
    layer: str | None = typer.Option(
        None, help="stem, stage1 to stage4, or a module by its path; by default what the last layer takes."
    ),
    pool: str | None = typer.Option(None, help="avg, max or soft: how the layer's maps become one vector; avg."),
    window: str | None = typer.Option(None, help="A row for each window of this length, as in 2s; not for each video."),
    hop: str | None = typer.Option(None, help="Time from one window's start to the next; by default half a window."),
    manifest: Path | None = typer.Option(None, help="A CSV file with a column path (and start, end), or a list."),
    views: int | None = VIEWS,
    crops: int | None = CROPS,
    device: str = DEVICE,
    precision: Precision | None = PRECISION,
    compile: bool = COMPILE,
    batch: int | None = BATCH,
    jobs: int | None = JOBS,
    engine: EngineName = ENGINE,
    address: str | None = ADDRESS,
    max_missing: float | None = MAX_MISSING,
) -> None:
    """Turn videos into features: a vector for each, for retrieval, clustering or a classifier of your own."""
    asked = Asked(main, locals() | {"trust": False})
    check_shared(asked)
    target = resume or out
    if target is None:
        raise UsageError("say where the features go, as in --out features.npz (or .parquet, .h5)")
    asked.needs("--window", window is not None, "hop")
    if window is not None and jobs is not None:
        raise UsageError("--window does not go together with --jobs: a video's windows are decoded once, in a thread")
    if window is not None and engine == "ray":
        raise UsageError("--window does not go together with --engine ray")
    from softpool3d.datasets.inputs import Inputs

    inputs = Inputs(tuple(videos or ()), manifest)
    inputs.check("embed")
    check_weights(weights)

    from softpool3d.evaluation.features import check_format
    from softpool3d.inference.classify_timeline import seconds
    from softpool3d.inference.embed_files import Options, embed
    from softpool3d.inference.exported import is_exported
    from softpool3d.inference.parts import is_folder

    if not is_folder(target):
        check_format("--out", Path(target))
    elif window is not None:
        raise UsageError(f"--out {target}: windows go to a file, as in features.parquet or features/{{name}}.npz")
    if weights is not None and is_exported(weights):
        raise UsageError(f"--weights {weights}: an exported network has no layers; give the weights that it comes from")
    length = seconds("--window", window)
    distance = seconds("--hop", hop) if hop else length and length / 2
    options = Options(options_of(asked), layer, pool, length, distance, target, resume is not None, overwrite, jobs)
    embed(partial(trained_of, asked), inputs, options, engine_of(asked))


if __name__ == "__main__":
    from softpool3d.command import run_tool

    run_tool(main)
