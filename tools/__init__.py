"""What the command line does: each file is a verb of `softpool3d`, and a script (`python tools/train.py`)."""
