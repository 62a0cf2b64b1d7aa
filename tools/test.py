"""Test a network on the clips of a split, in several views of each.

python tools/test.py --weights runs/r3d_softpool/best.safetensors test.num_clips=10 test.num_crops=3
torchrun --nproc-per-node 8 tools/test.py --weights runs/x3d_m/best.safetensors data.root=/data/k400
python tools/test.py --cfg configs/kinetics400/x3d_m.yaml model.weights=X3D_M.pyth data.root=/data/k400
"""

from pathlib import Path

import typer

from softpool3d.errors import UsageError, WorkError


def main(
    overrides: list[str] | None = typer.Argument(
        None, metavar="[KEY.PATH=VALUE]...", help="Settings, as in test.num_clips=10 data.root=/data/k400."
    ),
    weights: str | None = typer.Option(
        None, help="A weights file from training, the run's folder, or a file that others published (or x3d_m:FILE)."
    ),
    cfg: str | None = typer.Option(None, help="For public weights: a YAML file, with model.weights=FILE."),
    split: str | None = typer.Option(None, help="train, val or test. [default: test, or val where there is no test]"),
    out: Path | None = typer.Option(
        None,
        "--out",
        "-o",
        help="Folder of the results. [default: test, or test-val, beside the weights]",
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Test anew and replace the results that are there."),
) -> None:
    """Test a network: top-1 and more, each class, confusion, scores of each video."""
    if (weights is None) == (cfg is None):
        raise UsageError("give either --weights FILE of a run, or --cfg FILE with public weights in model.weights")

    from softpool3d.config_file import load_config
    from softpool3d.naming import check_weights

    overrides = overrides or []
    check_weights(weights)
    if cfg is not None:
        load_config(cfg, overrides)
    _check_root(overrides)
    from softpool3d.evaluation.subject import subject_of_config, subject_of_weights
    from softpool3d.evaluation.tester import test

    subject = subject_of_weights(weights, overrides) if weights else subject_of_config(cfg, overrides)
    result = test(subject, split, out, overwrite)
    if result["unreadable"]:
        raise WorkError(
            f"{result['unreadable']} of {result['unreadable'] + result['videos']} videos could not be read, and are "
            "not in the numbers; bad_files.csv names them"
        )


def _check_root(overrides: list[str]) -> None:
    """Checks that the folder of the data set is there, before torch is loaded."""
    from softpool3d.datasets.video.find import data_root

    for root in (value for key, _, value in (override.partition("=") for override in overrides) if key == "data.root"):
        data_root(root, "that is tested")


if __name__ == "__main__":
    from softpool3d.command import run_tool

    run_tool(main)
