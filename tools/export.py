"""Write a trained network as ONNX, as a program of torch.export, or compiled ahead of time by AOTInductor.

python tools/export.py --weights runs/r3d_softpool/best.safetensors --out model.onnx
python tools/export.py --weights best.safetensors --to torchexport --out model.pt2
python tools/export.py --weights best.safetensors --to aoti --plain --out model.pt2
"""

import sys
from enum import StrEnum
from pathlib import Path

import typer

from softpool3d.command import Asked
from softpool3d.errors import UsageError


class Format(StrEnum):
    onnx = "onnx"
    torchexport = "torchexport"
    aoti = "aoti"


def main(
    weights: str = typer.Option(
        help="A weights file from training (best.safetensors), its run's folder, or one that others published."
    ),
    out: Path = typer.Option(..., "--out", "-o", help="What to write: .onnx, or .pt2 for torchexport and aoti."),
    to: Format | None = typer.Option(None, help="The format; without it onnx or torchexport, as --out ends."),
    plain: bool = typer.Option(
        False, "--plain", help="SoftPool in standard operators in a .pt2 file too, so that torch alone loads it."
    ),
    tolerance: float = typer.Option(
        1e-4, min=0, help="Largest difference from the network's logits, as a part of the largest."
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace a file that exists."),
) -> None:
    """Write a trained network for other runtimes, checked against the original."""
    asked = Asked(main, locals())
    wanted = {Format.onnx: ".onnx", Format.torchexport: ".pt2", Format.aoti: ".pt2"}
    if to is None:
        to = next((known for known, suffix in wanted.items() if suffix == out.suffix.lower()), None)
    if to is None or out.suffix.lower() != wanted[to]:
        named = wanted[to] if to else ".onnx or .pt2"
        raise UsageError(f"--out {out}: the name has to end in {named}")
    asked.needs("a .pt2 file; in ONNX SoftPool is in standard operators always", to is not Format.onnx, "plain")
    if out.exists() and not overwrite:
        raise UsageError(f"--out {out} exists; name another file, or replace it with --overwrite")
    from softpool3d.naming import check_weights

    check_weights(weights)
    from softpool3d.inference.exporter import export_weights
    from softpool3d.runs.lock import claim_files

    with claim_files([out], overwrite):
        written = export_weights(weights, to.value, out, plain=plain, tolerance=tolerance)
    if written.note:
        print(written.note, file=sys.stderr)
    least, most = written.frames
    frames = str(least) if least == most else f"{least} or more" if most is None else f"{least} to {most}"
    print(
        f"{out}: {to.value}, {out.stat().st_size / 2**20:.1f} MB; any number of clips of {frames} frames of "
        f"{written.side}x{written.side} pixels"
    )
    compared = ", ".join(f"{batch}x{length}" for batch, length in written.compared)
    print(
        f"logits differ from the network's by at most {written.difference:.1e} of the largest ({tolerance:.0e} is "
        f"allowed), over batches of {compared} frames"
    )
    if written.own_operator:
        print("it holds SoftPool's compiled operator: `import softpool3d` before you load it, or export with --plain")


if __name__ == "__main__":
    from softpool3d.command import run_tool

    run_tool(main)
