"""Local importance-based pooling (Gao, Wang, Wu, ICCV 2019, arXiv 1908.04156)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from softpool3d.models.pools.geometry import Geometry, Pool

_GATE = 12.0  # the paper's upper bound of a logit (section 3.3)


class LipPool(Pool):
    """sum exp(G(x)_i) x_i / sum exp(G(x)_i) over the window (equation 4), with a learned logit G for each position.

    G is the paper's projection: a 1x1 convolution, instance normalisation, 12 sigmoid. Its convolution starts at zero,
    so the layer starts as average pooling.
    """

    def __init__(self, geometry: Geometry, channels: int) -> None:
        super().__init__(geometry)
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[geometry.dims - 1]
        self.logit = conv(channels, channels, 1, bias=False)
        nn.init.zeros_(self.logit.weight)
        self.norm = nn.GroupNorm(channels, channels)  # one group per channel: instance normalisation

    def forward(self, x: Tensor) -> Tensor:
        # less the middle of its range: it cancels in the quotient, and without it exp overflows in half precision
        weights = (_GATE * self._normalized(self.logit(x)).sigmoid() - _GATE / 2).exp()
        return self.mean(weights * x) / self.mean(weights)

    def _normalized(self, x: Tensor) -> Tensor:
        # not F.group_norm, which refuses a single position; here that is its own mean
        return torch.group_norm(x, self.norm.num_groups, self.norm.weight, self.norm.bias, self.norm.eps)
