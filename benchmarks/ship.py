"""Makes the weights file that ships with the package: a run's weights in half precision.

python tools/train.py --cfg configs/x3d_shipped.yaml
python benchmarks/ship.py runs/x3d_shipped/best.safetensors

It prints the network's accuracy on the run's test split before and after, and refuses to write a less accurate file.
"""

from pathlib import Path

import typer

from softpool3d.errors import UsageError, WorkError

OUT = Path(__file__).resolve().parents[1] / "softpool3d" / "weights" / "x3d_xs_motion.safetensors"


def main(
    weights: Path = typer.Argument(help="A run's best.safetensors."),
    out: Path = typer.Option(OUT, help="The file to write."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace a file that exists."),
) -> None:
    """Write a weights file in half precision: half the size, read back as float32."""
    import torch

    from softpool3d.config_file import override_config
    from softpool3d.inference.trained import load_trained
    from softpool3d.runs.checkpoint import save_weights

    if out.exists() and not overwrite:
        raise UsageError(f"--out {out} exists; --overwrite replaces it")
    trained = load_trained(weights)
    before = _accuracy(weights)
    network = trained.network.half()
    for name, tensor in network.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise WorkError(f"{name} has values beyond 65504, which half precision does not hold")
    # the file does not tell where the run lay
    config = override_config(trained.config, ["output=runs", "data.root=null"])
    draft = out.with_name(f".{out.name}")
    try:
        save_weights(draft, network, config, trained.classes)
        after = _accuracy(draft)
        print(f"test top-1: {before:.2%}, in half precision {after:.2%}")
        if after < before:
            raise WorkError("half precision costs accuracy; nothing was written")
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB")


def _accuracy(weights: Path) -> float:
    """Returns top-1, 0 to 1, as by `classify`, on the test split of the data set that the weights were trained on."""
    from softpool3d.datasets import read_manifests
    from softpool3d.inference.bulk import run_files
    from softpool3d.inference.trained import load_trained
    from softpool3d.inference.work import Failure, Labelling

    trained = load_trained(weights)
    manifest = read_manifests(trained.config.data)["test"]
    results = run_files(Labelling({}, 1).work(trained), manifest.clips, jobs=0)
    right = 0
    for clip, result in zip(manifest.clips, results, strict=True):
        right += not isinstance(result, Failure) and result.label == manifest.classes[clip.label]
    return right / len(manifest)


if __name__ == "__main__":
    from softpool3d.command import run_tool

    run_tool(main)
