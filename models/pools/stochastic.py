"""Stochastic pooling (Zeiler, Fergus, ICLR 2013, arXiv 1301.3557)."""

from __future__ import annotations

import torch
from torch import Tensor

from softpool3d.models.pools.geometry import Pool, maximum

_TINY = 1e-12  # makes the positions of a window without a positive value equally likely


class StochasticPool(Pool):
    """One position of each window, drawn with p_i = a_i / sum a (equation 2); in evaluation sum p_i a_i (equation 6).

    a is the input's positive part: in the paper the layer comes after a ReLU. The draw is the Gumbel-max
    trick, so that one max pooling draws for all windows.
    """

    def forward(self, x: Tensor) -> Tensor:
        weights = x.detach().clamp_min(0) + _TINY if self.training else x.clamp_min(0) + _TINY
        if not self.training:
            return self.mean(weights * x) / self.mean(weights)
        gumbel = -torch.empty_like(weights).exponential_().log()
        _, index = maximum(weights.log() + gumbel, self.geometry, return_indices=True)
        return x.flatten(2).gather(2, index.flatten(2)).view(index.shape)
