"""Clips pooled for the eye: values, sizes, and what is too small."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from videos import write_numbered

from softpool3d import soft_pool3d
from softpool3d.datasets.video.decoder import DecodeError
from softpool3d.errors import UsageError
from softpool3d.models.pools import KINDS
from softpool3d.visual.pooled import STRIDE, check_size, pool_clip, poolings, unit
from softpool3d.visual.sheet import Sheet, original_panel, pooled_panel
from softpool3d.visual.source import Source, read_source


def clip(frames=37, height=10, width=13, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("kernel", [(2, 2, 2), (1, 2, 3), (5, 2, 2)])
def test_every_kind_pools_as_in_one_piece(kernel):
    """37 frames come in portions of 32: as long as windows are whole, nobody can tell."""
    frames = clip()
    whole = unit(frames).transpose(0, 1)[None]
    expected = {
        "soft, beta 16": soft_pool3d(whole, kernel, beta=16.0),
        "soft, beta 1": soft_pool3d(whole, kernel),
        "avg": F.avg_pool3d(whole, kernel),
        "max": F.max_pool3d(whole, kernel),
    }
    for pooling in poolings([*KINDS, STRIDE], [16.0, 1.0], kernel):
        pooled = pool_clip(frames, pooling, kernel)[0]
        assert pooled.frames.shape == (37 // kernel[0], 3, 10 // kernel[1], 13 // kernel[2]), pooling.label
        direct = expected.get(pooling.label)
        if direct is None:
            direct = pooling.layer(whole)
        torch.testing.assert_close(pooled.frames, direct[0].transpose(0, 1), rtol=1e-5, atol=1e-6)


def test_labels_say_beta_and_untrained_weights():
    labels = [p.label for p in poolings(["soft", "lip", "mixed", "avg", "lp"], [1.0, 4.5], (2, 2, 2))]
    assert labels == [
        "soft, beta 1",
        "soft, beta 4.5",
        "lip, initial weights",
        "mixed, initial weights",
        "avg",
        "lp, p 2",
    ]


def test_pooling_again_pools_what_came_out():
    first, second = pool_clip(clip(), poolings(["max"], [1.0], (2, 2, 2))[0], (2, 2, 2), repeat=2)
    assert (first.factor, second.factor, second.shrink) == ((2, 2, 2), (4, 4, 4), "4x")
    torch.testing.assert_close(second.frames, F.max_pool3d(first.frames.transpose(0, 1), 2).transpose(0, 1))


def test_panels_draw_each_value_as_a_block():
    frames = clip(5, 7, 6)
    source = Source(Path("clip.mp4"), frames, 25.0)
    pooled = pool_clip(frames, poolings(["stride"], [1.0], (2, 2, 2))[0], (2, 2, 2))[0]
    panel = pooled_panel(pooled)
    for t in range(5):
        picture = panel.picture(t, 7, 6)
        for y, x in ((0, 0), (3, 5), (6, 4)):
            source_t, source_y = min(t // 2, 1) * 2, min(y // 2, 2) * 2
            assert picture[y, x].tolist() == frames[source_t, :, source_y, x // 2 * 2].tolist()
    right = Sheet([[original_panel(source), panel]], source, "caption")
    down = Sheet([[original_panel(source), panel]], source, "caption", below=True)
    assert right.frame(0).shape[1] > down.frame(0).shape[1] and right.frame(0).shape[0] < down.frame(0).shape[0]
    assert right.contact(99).shape[1] > right.contact(1).shape[1]


def test_what_is_too_small_says_what_fits():
    def refused(frames, kernel, repeat):
        with pytest.raises(UsageError) as error:
            check_size(Source(Path("a.mp4"), frames, 25.0), kernel, repeat)
        return str(error.value)

    check_size(Source(Path("a.mp4"), clip(8, 16, 16), 25.0), (2, 2, 2), 3)
    assert "too few frames to be pooled by 2x2x2 3 times; --repeat 2 is the most" in refused(
        clip(7, 16, 16), (2, 2, 2), 3
    )
    assert "too few columns" in refused(clip(16, 16, 7), (2, 2, 2), 3)
    assert "--kernel 1,2,2 leaves time alone" in refused(clip(1, 16, 16), (2, 2, 2), 1)
    assert "a smaller --kernel fits" in refused(clip(4, 4, 4), (8, 8, 8), 1)


def test_sources(tmp_path):
    video = write_numbered(tmp_path / "clip.mp4", 30)
    assert read_source(video).frames.shape == (30, 3, 48, 64)
    part = read_source(video, start=0.4, seconds=0.2, short_side=24)
    assert part.frames.shape == (5, 3, 24, 32) and part.size == "5x24x32"
    with pytest.raises(UsageError, match="--start 2: .* ends after 1.16 s"):
        read_source(video, start=2)

    Image.fromarray(np.arange(40 * 60 * 3).reshape(40, 60, 3).astype(np.uint8)).save(tmp_path / "a.png")
    picture = read_source(tmp_path / "a.png", short_side=20)
    assert picture.is_picture and picture.frames.shape == (1, 3, 20, 30) and picture.size == "20x30"
    (tmp_path / "text.jpg").write_text("text")
    with pytest.raises(DecodeError, match="no picture that Pillow knows"):
        read_source(tmp_path / "text.jpg")
