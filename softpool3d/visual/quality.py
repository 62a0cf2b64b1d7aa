"""Measures what a pooling keeps of a clip: PSNR and SSIM of the clip restored from its pooled form.

The pooled clip is interpolated trilinearly to its old size, and compared with the part of the original that its windows
cover. PSNR = 10 log10(1 / MSE), with the MSE over all frames. SSIM (Wang et al., IEEE TIP 2004) is a mean over frames,
with the usual Gaussian window of 11x11 and reflected edges, as in torchmetrics.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from softpool3d.visual.pooled import Kernel, Pooled, unit
from softpool3d.visual.source import size_of

CHANNELS = ("r", "g", "b")
_WINDOW = 11  # of SSIM
_PORTION = 16  # frames compared at a time


@dataclass(frozen=True)
class Quality:
    """The likeness of a clip and its pooled form.

    mse, ssim: float64 (T, 3), of each frame and channel. ssim is NaN where frames are smaller than its window.
    """

    pooling: str
    level: int
    factor: str
    original: str
    pooled: str
    mse: Tensor
    ssim: Tensor

    @property
    def label(self) -> str:
        return f"{self.pooling}, {self.factor}"

    def scores(self) -> dict[str, float]:
        """Returns PSNR in dB and SSIM, of all channels and of each: psnr, psnr_r, psnr_g, psnr_b, ssim, ..."""
        psnr = [self.mse.mean(), *self.mse.mean(0)]
        psnr = [float(-10 * mse.log10()) for mse in psnr]
        ssim = [float(value) for value in (self.ssim.mean(), *self.ssim.mean(0))]
        names = ("", *(f"_{channel}" for channel in CHANNELS))
        return {
            f"{kind}{name}": value
            for kind, values in (("psnr", psnr), ("ssim", ssim))
            for name, value in zip(names, values, strict=True)
        }

    def psnr_of_frames(self) -> Tensor:
        """Returns the PSNR of each frame, float64 (T,), in dB."""
        return -10 * self.mse.mean(1).log10()


@torch.inference_mode()
def measure(frames: Tensor, pooled: Pooled, is_picture: bool = False) -> Quality:
    """Compares a clip, uint8 (T, 3, H, W), with its pooled form."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    mse, ssim = [], []
    for begin, back in restored(pooled.frames, pooled.factor):
        length, _, height, width = back.shape
        there = unit(frames[begin : begin + length, :, :height, :width])
        mse.append((back - there).square().double().mean((2, 3)))
        if min(height, width) < _WINDOW:
            ssim.append(torch.full_like(mse[-1], torch.nan))
            continue
        # all planes as channels of one picture: the convolution is five times as fast as on pictures of one channel
        planes = [x.reshape(1, length * 3, height, width) for x in (back, there)]
        _, image = structural_similarity_index_measure(
            *planes, data_range=1.0, reduction="none", return_full_image=True
        )
        ssim.append(image.double().mean((2, 3)).view(length, 3))
    sizes = size_of(frames, is_picture), size_of(pooled.frames, is_picture)
    return Quality(pooled.label, pooled.level, pooled.shrink, *sizes, torch.cat(mse), torch.cat(ssim))


def restored(pooled: Tensor, factor: Kernel) -> Iterator[tuple[int, Tensor]]:
    """Interpolates a pooled clip (T', 3, H', W') trilinearly to `factor` times its size, in portions.

    Yields:
        The number of a portion's first frame, and its frames (T, 3, H, W).
    """
    factor_t, factor_h, factor_w = factor
    step = max(1, _PORTION // factor_t)
    for begin in range(0, len(pooled), step):
        end = min(begin + step, len(pooled))
        first, last = max(begin - 1, 0), min(end + 1, len(pooled))  # neighbours that are interpolated with
        part = pooled[first:last].transpose(0, 1)[None]
        size = [(last - first) * factor_t, pooled.shape[2] * factor_h, pooled.shape[3] * factor_w]
        back = F.interpolate(part, size=size, mode="trilinear", align_corners=False)[0].transpose(0, 1)
        skip = (begin - first) * factor_t
        yield begin * factor_t, back[skip : skip + (end - begin) * factor_t]
