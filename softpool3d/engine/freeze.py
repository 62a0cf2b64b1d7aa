"""Parts of a network that training leaves as they are."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from softpool3d.errors import UsageError


def freeze(model: nn.Module, patterns: list[str]) -> int:
    """Parameters whose name, or whose module's, fits a pattern (as in `stem*`, `layer1.*`) get no gradient; how many.

    Raises:
        UsageError: for a pattern that no parameter fits, or if all are frozen.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")}
        if not found:
            parts = dict.fromkeys(name.partition(".")[0] for name in names)
            raise UsageError(f"optim.freeze: no parameter's name fits {pattern!r}; they begin with {', '.join(parts)}")
        frozen |= found
    if len(frozen) == len(names):
        raise UsageError(f"optim.freeze: {' '.join(patterns)} leaves nothing to train")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return len(frozen)


def train_mode(model: nn.Module) -> None:
    """`model.train()`, but norms that are frozen keep their running statistics too."""
    model.train()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.modules.batchnorm._NormBase) and own and not any(p.requires_grad for p in own):
            module.eval()
