"""Networks, and where pooling goes in them.

registry.py   name -> network; `build_model`
pooling.py    the kinds of pooling by name, and the places in a network they can go
r3d.py        3D-ResNets on torchvision's blocks       x3d.py    X3D on pytorchvideo's
"""

from softpool3d.models.registry import build_model, names

__all__ = ["build_model", "names"]
