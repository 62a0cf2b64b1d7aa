"""What the command line does: each file is a verb of `softpool3d`, and a script of its own (`python tools/train.py`)."""
