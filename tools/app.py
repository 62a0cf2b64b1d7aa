"""Open a page in the browser: drop a video, see labels, timeline, Grad-CAM and pooled forms; watch a run.

python tools/app.py                                    # http://127.0.0.1:7860, for this machine alone
python tools/app.py --weights best.safetensors --runs runs --open
SOFTPOOL3D_PASSWORD=... python tools/app.py --host 0.0.0.0
"""

from importlib.util import find_spec
from pathlib import Path

import typer

from softpool3d.errors import UsageError
from softpool3d.naming import RUNS, check_weights


def main(
    weights: str | None = typer.Option(
        None, help="Weights to begin with, as for classify; the page also offers those of --runs."
    ),
    runs: Path = typer.Option(RUNS, help="A folder of runs: their weights, and what they show."),
    port: int = typer.Option(7860, min=1, max=65535, help="The page's port."),
    host: str = typer.Option("127.0.0.1", help="The page's address; another than this machine's own needs a password."),
    password: str | None = typer.Option(
        None, envvar="SOFTPOOL3D_PASSWORD", help="What visitors have to know; better set in the environment."
    ),
    open: bool = typer.Option(False, "--open", help="Open the page in a browser."),
) -> None:
    """Show a page: labels, timeline, Grad-CAM and pooled forms of a video; a run while it trains."""
    if find_spec("gradio") is None:
        raise UsageError("app needs gradio; install it with: pip install 'softpool3d[app]'")
    check_weights(weights)
    from softpool3d.app.server import serve

    serve(weights, runs, host, port, password, open)


if __name__ == "__main__":
    from softpool3d.command import run_tool

    run_tool(main)
