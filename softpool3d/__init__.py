"""softpool3d: 3D SoftPool for PyTorch, and a video action-recognition toolkit around it.

This package exports the operator and `Classifier`, the shortest way from a video to its label. The rest is
reached as `softpool3d.models`, `softpool3d.datasets`, `softpool3d.config`; the command line is `softpool3d.cli`.

Names are resolved at first use (PEP 562), because `softpool3d --help` imports this package too and must not wait
for torch.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from softpool3d.inference.classifier import Classifier
    from softpool3d.ops.decomposition import decompositions
    from softpool3d.ops.functional import (
        adaptive_soft_pool1d,
        adaptive_soft_pool2d,
        adaptive_soft_pool3d,
        backend,
        soft_pool1d,
        soft_pool2d,
        soft_pool3d,
    )
    from softpool3d.ops.modules import (
        AdaptiveSoftPool1d,
        AdaptiveSoftPool2d,
        AdaptiveSoftPool3d,
        SoftPool1d,
        SoftPool2d,
        SoftPool3d,
    )
    from softpool3d.surgery import replace_pooling

__all__ = [
    "AdaptiveSoftPool1d",
    "AdaptiveSoftPool2d",
    "AdaptiveSoftPool3d",
    "Classifier",
    "SoftPool1d",
    "SoftPool2d",
    "SoftPool3d",
    "__version__",
    "adaptive_soft_pool1d",
    "adaptive_soft_pool2d",
    "adaptive_soft_pool3d",
    "backend",
    "decompositions",
    "replace_pooling",
    "soft_pool1d",
    "soft_pool2d",
    "soft_pool3d",
]

try:
    __version__ = version("softpool3d")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+uninstalled"

_SUBPACKAGES = {"config", "datasets", "models"}
# where the names are that the rule of __getattr__ does not find
_HOMES = {"Classifier": "inference.classifier", "decompositions": "ops.decomposition", "replace_pooling": "surgery"}


def __getattr__(name: str):
    if name in _SUBPACKAGES:
        return import_module(f"softpool3d.{name}")
    if name in __all__:
        home = _HOMES.get(name) or ("ops.modules" if name[0].isupper() else "ops.functional")
        globals()[name] = getattr(import_module(f"softpool3d.{home}"), name)  # found here from now on
        return globals()[name]
    raise AttributeError(f"module 'softpool3d' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBPACKAGES})
