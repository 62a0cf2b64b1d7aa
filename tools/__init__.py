"""The commands of `softpool3d`. Each file is one command, and also a script (`python tools/train.py`)."""
