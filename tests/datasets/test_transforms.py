import pytest
import torch

from softpool3d.datasets.transforms import (
    EvalTransform,
    TrainTransform,
    crops_along_longer_side,
    normalize,
    resize_short_side,
)


def ramp(height: int, width: int) -> torch.Tensor:
    """(2, 3, H, W) uint8 whose value is the column, so that a crop tells where it is from."""
    return torch.arange(width, dtype=torch.uint8).expand(2, 3, height, width).contiguous()


@pytest.mark.parametrize(
    ("size", "expected"), [((240, 320), (120, 160)), ((320, 240), (160, 120)), ((7, 7), (120, 120))]
)
def test_short_side(size, expected):
    assert resize_short_side(torch.zeros(2, 3, *size, dtype=torch.uint8), 120).shape == (2, 3, *expected)


def test_nothing_is_resampled_at_the_right_size():
    clip = torch.randint(0, 256, (2, 3, 64, 80), dtype=torch.uint8)
    assert resize_short_side(clip, 64) is clip


def test_three_crops_are_start_centre_and_end_of_the_longer_side():
    assert [int(c[0, 0, 0, 0]) for c in crops_along_longer_side(ramp(64, 100), 64, 3)] == [0, 18, 36]
    tall = ramp(64, 100).transpose(2, 3)
    assert [int(c[0, 0, 0, 0]) for c in crops_along_longer_side(tall, 64, 3)] == [0, 18, 36]
    assert [int(c[0, 0, 0, 0]) for c in crops_along_longer_side(ramp(64, 100), 64, 1)] == [18]


def test_training_is_repeatable_and_the_same_for_all_frames():
    frame = torch.randint(0, 256, (1, 3, 80, 100), dtype=torch.uint8)
    clip = frame.expand(4, -1, -1, -1)
    transform = TrainTransform([64, 80], 56, flip=True)
    outputs = [transform(clip, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert outputs[0].shape == (4, 3, 56, 56) and outputs[0].dtype == torch.uint8
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert all(torch.equal(outputs[0][0], other) for other in outputs[0])


def test_flip_only_where_it_is_on():
    def rising(flip: bool) -> set[bool]:
        transform = TrainTransform([64, 64], 64, flip)
        rows = [transform(ramp(64, 64), torch.Generator().manual_seed(s))[0, 0, 0] for s in range(20)]
        return {bool(row[0] < row[-1]) for row in rows}

    assert rising(flip=False) == {True}
    assert rising(flip=True) == {True, False}


def test_views_in_evaluation():
    views = EvalTransform(64, 56, num_crops=3)(torch.zeros(4, 3, 128, 160, dtype=torch.uint8))
    assert [v.shape for v in views] == [(4, 3, 56, 56)] * 3


def test_normalize():
    clips = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1, 1).expand(2, 3, 1, 1, 1)
    out = normalize(clips, [0.5, 0.25, 0.0], [0.5, 0.25, 1.0])
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.flatten(1), torch.tensor([[-1.0, -1.0, 0.0], [1.0, 3.0, 1.0]]))
