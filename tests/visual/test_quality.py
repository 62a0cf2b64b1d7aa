"""PSNR and SSIM of what pooling leaves, against torchmetrics and the whole clip in one piece."""

import csv
import io
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from softpool3d.files import csv_text
from softpool3d.visual.pooled import pool_clip, poolings, unit
from softpool3d.visual.quality import measure, restored
from softpool3d.visual.quality_table import averages, csv_rows, figure, table


def smooth(frames=41, height=24, width=30, seed=0):
    """uint8 (T, 3, H, W) with something to lose and something to keep."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, frames // 3, height // 3, width // 3, generator=generator)
    clip = F.interpolate(coarse, size=(frames, height, width), mode="trilinear")[0]
    noise = 0.05 * torch.rand(3, frames, height, width, generator=generator)
    return ((clip + noise).clamp(0, 1) * 255).byte().transpose(0, 1).contiguous()


@pytest.mark.parametrize("factor", [(2, 2, 2), (4, 4, 4), (1, 3, 2), (20, 2, 2)])
def test_portions_restore_what_the_whole_does(factor):
    pooled = torch.rand(19, 3, 5, 6)
    size = [n * f for n, f in zip((19, 5, 6), factor, strict=True)]
    whole = F.interpolate(pooled.transpose(0, 1)[None], size=size, mode="trilinear")[0].transpose(0, 1)
    portions = list(restored(pooled, factor))
    assert [begin for begin, _ in portions] == [sum(len(x) for _, x in portions[:i]) for i in range(len(portions))]
    torch.testing.assert_close(torch.cat([x for _, x in portions]), whole)


def test_scores_are_those_of_torchmetrics():
    frames = smooth()
    for pooled in pool_clip(frames, poolings(["avg"], [1.0], (2, 2, 2))[0], (2, 2, 2), repeat=2):
        factor_t, factor_h, factor_w = pooled.factor
        time, height, width = 41 // factor_t * factor_t, 24 // factor_h * factor_h, 30 // factor_w * factor_w
        there = unit(frames[:time, :, :height, :width])
        back = F.interpolate(pooled.frames.transpose(0, 1)[None], size=(time, height, width), mode="trilinear")
        back = back[0].transpose(0, 1)
        scores = measure(frames, pooled).scores()
        assert scores["psnr"] == pytest.approx(float(peak_signal_noise_ratio(back, there, data_range=1.0)), abs=1e-3)
        ssim = structural_similarity_index_measure(back, there, data_range=1.0)
        assert scores["ssim"] == pytest.approx(float(ssim), abs=1e-4)
        for number, channel in enumerate("rgb"):
            part = slice(number, number + 1)
            psnr = peak_signal_noise_ratio(back[:, part], there[:, part], data_range=1.0)
            assert scores[f"psnr_{channel}"] == pytest.approx(float(psnr), abs=1e-3)
            ssim = structural_similarity_index_measure(back[:, part], there[:, part], data_range=1.0)
            assert scores[f"ssim_{channel}"] == pytest.approx(float(ssim), abs=1e-4)


def test_beta_says_where_between_average_and_maximum():
    """On [0, 1] beta 1 is close to average pooling, and beta 255 to max pooling."""
    frames = smooth()
    layers = poolings(["avg", "max", "soft"], [1.0, 255.0], (2, 2, 2))
    psnr = {p.label: measure(frames, pool_clip(frames, p, (2, 2, 2))[0]).scores()["psnr"] for p in layers}
    assert abs(psnr["soft, beta 1"] - psnr["avg"]) < 0.2 < abs(psnr["avg"] - psnr["max"])
    assert abs(psnr["soft, beta 255"] - psnr["max"]) < 0.2


def test_frames_smaller_than_the_window_have_no_ssim():
    frames = smooth(6, 10, 12)
    quality = measure(frames, pool_clip(frames, poolings(["avg"], [1.0], (2, 2, 2))[0], (2, 2, 2))[0])
    assert quality.ssim.isnan().all() and quality.scores()["psnr"] > 10


def test_table_csv_and_plot():
    measured = {}
    for seed, name in enumerate(("a$b.mp4", "c.mp4")):
        frames = smooth(8, seed=seed)
        layers = poolings(["soft", "stride"], [1.0], (2, 2, 2))
        measured[name] = [measure(frames, p) for layer in layers for p in pool_clip(frames, layer, (2, 2, 2), 2)]
    rows = list(csv.DictReader(io.StringIO(csv_text(csv_rows(measured)))))
    assert [(r["clip"], r["pooling"], r["times"]) for r in rows][:2] == [
        ("a$b.mp4", "soft, beta 1", "1"),
        ("a$b.mp4", "soft, beta 1", "2"),
    ]
    for row, quality in zip(rows, (q for qualities in measured.values() for q in qualities), strict=True):
        assert float(row["psnr_g"]) == pytest.approx(quality.scores()["psnr_g"], rel=1e-5)
    black = torch.zeros(4, 3, 24, 30, dtype=torch.uint8)
    measured["black.mp4"] = [measure(black, pool_clip(black, layer, (2, 2, 2))[0]) for layer in layers]
    count, means = averages(measured)  # what is kept exactly has no place in a mean
    label, mean = means[0]
    assert count == 2 and label == "soft, beta 1, 2x"
    assert mean["psnr"] == pytest.approx((float(rows[0]["psnr"]) + float(rows[4]["psnr"])) / 2, rel=1e-5)
    assert table(measured).row_count == 8 + 2 + 4
    plot = io.BytesIO()
    figure(measured).savefig(plot, format="png")
    assert plot.tell() > 5000


@pytest.mark.clips
def test_real_clips_keep_what_the_design_measured(real_clips: Path):
    """As measured once: average 26.1 dB, soft on [0, 1] 26.0, on [0, 255] 22.1, max 22.1 for one of the clips."""
    from softpool3d.visual.source import read_source

    frames = read_source(real_clips / "mmaction2" / "demo.mp4", seconds=1.0).frames
    layers = poolings(["avg", "soft", "max"], [1.0, 255.0], (2, 2, 2))
    psnr = [measure(frames, pool_clip(frames, p, (2, 2, 2))[0]).scores()["psnr"] for p in layers]
    assert psnr[0] > psnr[1] > psnr[2] > psnr[3] - 0.2 and psnr[0] - psnr[1] < 0.3 and psnr[1] - psnr[3] > 3
