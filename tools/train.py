"""Train a network on video clips.

python tools/train.py --cfg configs/r3d_softpool.yaml
python tools/train.py --cfg configs/r3d_softpool.yaml data.dataset=folder data.root=videos optim.lr=0.05
torchrun --nproc-per-node 8 tools/train.py --cfg configs/kinetics400/x3d_m.yaml data.root=/data/k400
python tools/train.py --resume runs/r3d_softpool
python tools/train.py --cfg configs/r3d_softpool.yaml --resume auto
"""

import typer

from softpool3d.errors import UsageError


def main(
    overrides: list[str] | None = typer.Argument(
        None, metavar="[KEY.PATH=VALUE]...", help="Settings that replace the file's, as in optim.lr=0.05."
    ),
    cfg: str | None = typer.Option(None, help="The YAML file, or the name of one that is shipped."),
    resume: str | None = typer.Option(
        None, help="The folder of a run to go on with; auto: the run of --cfg's name if there is one, else a new one."
    ),
    force_resume: bool = typer.Option(
        False, "--force-resume", help="Go on even if changed settings change what is learned."
    ),
    print_config: bool = typer.Option(False, "--print-config", help="Print the merged configuration and stop."),
) -> None:
    """Train a network: --cfg FILE starts a run, --resume FOLDER goes on with one."""
    from softpool3d.config_file import load_config

    auto = resume == "auto"
    if cfg is None and (resume is None or auto):
        raise UsageError("give --cfg FILE, to start a run, or --resume FOLDER, to go on with one")
    if force_resume and resume is None:
        raise UsageError("--force-resume belongs to --resume FOLDER")

    if resume is None or auto:
        config, run = load_config(cfg, overrides or []), None
    else:
        from softpool3d.runs.run import Run

        run, config = Run.open(resume, overrides or [], cfg)
    if print_config:
        print(config.to_yaml(), end="")
        return

    from softpool3d.training.trainer import train

    train(config, run, auto_resume=auto, force_resume=force_resume)


if __name__ == "__main__":
    from softpool3d.command import run_tool

    run_tool(main)
