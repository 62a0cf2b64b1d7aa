"""`python -m softpool3d`: the command, where the script `softpool3d` is not on the path."""

from softpool3d.cli import run

if __name__ == "__main__":  # not in the workers that are spawned
    run()
