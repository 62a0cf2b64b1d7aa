"""Networks, and where pooling goes in them.

registry.py   name -> network; `create`, `build_model`
network.py    what all networks share: stages, features_only, gradient checkpointing
r3d.py        3D-ResNets on torchvision's blocks           s3d.py, mvit.py   torchvision's S3D and MViTv2
blocknet.py   X3D, Slow, SlowFast, ... of pytorchvideo     image.py          ResNets, DenseNets for images
inflate.py    an image network becomes a video network     weights.py        public weights; layouts.py: their formats
checkpoints.py files of weights as others left them        recognise.py      which network weights belong to
pooling.py    the places in a network where pooling goes   pools/            the kinds of pooling
flops.py      counting multiply-adds
"""

from softpool3d.models.inflate import inflate
from softpool3d.models.registry import build_model, check_clip, create, load_pretrained, names

__all__ = ["build_model", "check_clip", "create", "inflate", "load_pretrained", "names"]
