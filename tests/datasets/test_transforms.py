import numpy as np
import pytest
import torch

from softpool3d.config import DataConfig
from softpool3d.datasets.transforms import (
    BatchMix,
    EvalTransform,
    Recipe,
    TrainTransform,
    crop_boxes,
    normalize,
    resize_short_side,
    tells_direction,
)
from softpool3d.errors import UsageError


def settings(**keys) -> DataConfig:
    """Of `data` and of `data.augment`."""
    data = {"crop_size": 48, "train_short_side": [48, 64], "short_side": 48}
    data |= {key: value for key, value in keys.items() if key in DataConfig.model_fields}
    return DataConfig(**data, augment={key: value for key, value in keys.items() if key not in data})


def noise(frames: int = 1, height: int = 64, width: int = 80) -> torch.Tensor:
    """The same picture in every frame, smooth enough that colours matter: uint8 (frames, 3, H, W)."""
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    picture = torch.nn.functional.interpolate(picture, (height, width), mode="bilinear").to(torch.uint8)
    return picture.expand(frames, -1, -1, -1).contiguous()


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


# PySlowFast's uniform_crop, worked out by hand: (height, width), size -> (top, left) of its spatial index 0, 1, 2
PYSLOWFAST_BOXES = [
    ((256, 340), 256, [(0, 0), (0, 42), (0, 84)]),
    ((256, 341), 256, [(0, 0), (0, 43), (0, 85)]),
    ((340, 256), 256, [(0, 0), (42, 0), (84, 0)]),
    ((341, 256), 256, [(0, 0), (43, 0), (85, 0)]),
    ((256, 340), 224, [(16, 0), (16, 58), (16, 116)]),
    ((257, 340), 224, [(17, 0), (17, 58), (17, 116)]),
    ((455, 256), 224, [(0, 16), (116, 16), (231, 16)]),
    ((256, 256), 256, [(0, 0), (0, 0), (0, 0)]),
    ((128, 170), 112, [(8, 0), (8, 29), (8, 58)]),
]


@pytest.mark.parametrize(("picture", "size", "boxes"), PYSLOWFAST_BOXES)
def test_crops_lie_where_pyslowfast_places_them(picture, size, boxes):
    assert crop_boxes(*picture, size, 3) == boxes
    assert crop_boxes(*picture, size, 1) == boxes[1:2]


@pytest.mark.parametrize(
    ("picture", "resized"), [((240, 320), (256, 341)), ((320, 240), (341, 256)), ((360, 640), (256, 455))]
)
def test_sizes_are_rounded_down_as_pyslowfast_does(picture, resized):
    assert resize_short_side(torch.zeros(1, 3, *picture, dtype=torch.uint8), 256).shape[2:] == resized


AUGMENTATIONS = {
    "scale": {},
    "area": {"crop": "area"},
    "color": {"color_jitter": [0.4, 0.4, 0.4, 0.1]},
    "randaugment": {"policy": "randaugment"},
    "augmix": {"policy": "augmix", "operations": 3, "magnitude": 3},
    "erasing": {"erase_probability": 1.0},
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_training_is_repeatable_and_the_same_for_all_frames(name):
    transform = TrainTransform(settings(**AUGMENTATIONS[name]))
    clip = noise(frames=4)
    before = clip.clone()
    state = torch.get_rng_state()
    outputs = [transform(clip, Recipe(56, 48, True, seed)) for seed in (5, 5, 6, 7)]
    assert all(out.shape == (4, 3, 48, 48) and out.dtype == torch.uint8 for out in outputs)
    assert torch.equal(outputs[0], outputs[1])
    assert len({out.numpy().tobytes() for out in outputs}) == 3
    assert all(torch.equal(out[0], frame) for out in outputs for frame in out)
    assert torch.equal(clip, before)
    assert torch.equal(torch.get_rng_state(), state)  # dropout's draws are not disturbed
    assert type(outputs[0]) is torch.Tensor


def test_augmentations_change_the_picture():
    plain = TrainTransform(settings(flip=False))(noise(), Recipe(48, 48, False, 1)).float()
    for name in ("color", "randaugment", "augmix", "erasing"):
        changed = [
            (TrainTransform(settings(**AUGMENTATIONS[name]))(noise(), Recipe(48, 48, False, seed)).float() - plain)
            .abs()
            .mean()
            for seed in range(6)
        ]
        assert max(changed) > 3, name


def test_an_erased_box_has_the_mean_colour():
    data = settings(erase_probability=1.0, mean=[0.2, 0.4, 0.6])
    outputs = [TrainTransform(data)(noise(), Recipe(48, 48, False, seed)) for seed in range(5)]
    colour = torch.tensor([51, 102, 153], dtype=torch.uint8).view(1, 3, 1, 1)
    assert all(((out == colour).all(1)).float().mean() > 0.015 for out in outputs)


def test_short_sides_are_drawn_from_the_range():
    rng = np.random.default_rng(0)
    draws = {}
    for inverse in (False, True):
        transform = TrainTransform(settings(inverse_scale=inverse, train_short_side=[48, 96]))
        draws[inverse] = [transform.recipe(0, rng).short_side for _ in range(4000)]
        assert min(draws[inverse]) == 48 and max(draws[inverse]) == 96
    assert np.mean(draws[False]) == pytest.approx(72, abs=1)
    assert np.mean(draws[True]) == pytest.approx(np.log(2) / (1 / 48 - 1 / 96), abs=1)  # the mean of 1 / uniform


def test_areas_and_ratios_are_those_asked_for():
    """A crop of the whole area and of the picture's own ratio is the picture."""
    clip = noise(height=48, width=96)
    transform = TrainTransform(settings(crop="area", area=[1.0, 1.0], ratio=[2.0, 2.0], flip=False))
    whole = torch.nn.functional.interpolate(clip.float(), (48, 48), mode="bilinear", antialias=True)
    assert (transform(clip, Recipe(48, 48, False, 0)).float() - whole).abs().max() <= 1


def test_flip_only_where_it_is_on():
    def rising(data, label: int) -> set[bool]:
        transform = TrainTransform(data, classes)
        rng = np.random.default_rng(0)
        rows = [transform(ramp(48, 48), transform.recipe(label, rng))[0, 0, 0] for _ in range(30)]
        return {bool(row[0] < row[-1]) for row in rows}

    classes = ("waving", "Moving something from left to right", "turn Counterclockwise", "leftover food")
    plain = settings(train_short_side=[48, 48])
    assert [rising(plain, label) for label in range(4)] == [{True, False}, {True}, {True}, {True, False}]
    assert rising(settings(train_short_side=[48, 48], flip=False), 0) == {True}
    named = settings(train_short_side=[48, 48], no_flip_classes=["waving"])
    assert [rising(named, label) for label in range(2)] == [{True}, {True, False}]
    with pytest.raises(UsageError, match="data.no_flip_classes: 'wavin' is none of the 4 classes"):
        TrainTransform(settings(no_flip_classes=["wavin"]), classes)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        *((name, True) for name in ("swipe_left", "draw_circle_ccw", "circle-cw", "TurnRight", "2_right_hand", "LEFT")),
        *((name, True) for name in ("anti-clockwise", "rotate counter_clockwise", "upwards then leftwards")),
        *((name, False) for name in ("bright_light", "leftover", "cleft", "uprights", "Copyright", "CCWX", "wave")),
    ],
)
def test_a_direction_is_found_in_a_name_however_its_words_are_joined(name, told):
    assert tells_direction(name) is told


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixing_a_batch(mixup, cutmix):
    clips = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 3, 2, 16, 16).contiguous()
    label = torch.tensor([0, 1, 2, 3])
    mix = BatchMix(5, mixup, cutmix)
    state = torch.get_rng_state()
    kinds = set()
    for seed in range(12):
        mixed, target = mix(clips, label, seed)
        again, _ = mix(clips, label, seed)
        assert torch.equal(mixed, again) and type(mixed) is torch.Tensor
        assert mixed.shape == clips.shape and target.shape == (4, 5)
        torch.testing.assert_close(target.sum(1), torch.ones(4))
        # a clip of constant value k has label k: the mean value is the mean label
        torch.testing.assert_close(mixed.mean((1, 2, 3, 4)), target @ torch.arange(5.0))
        kinds.add("cutmix" if (mixed == mixed.round()).all() else "mixup")
    assert kinds == {name for name, on in (("mixup", mixup), ("cutmix", cutmix)) if on}
    assert torch.equal(torch.get_rng_state(), state)
    assert BatchMix(5, 0, 0)(clips, label, 0) == (clips, label)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_are_drawn_by_alpha(alpha):
    """Of Beta(alpha, alpha), whose variance is 1 / (4 (2 alpha + 1)); of boxes, before they are cut off at the edge."""
    clips, label = torch.arange(2.0).view(2, 1, 1, 1, 1).expand(2, 1, 1, 16, 16), torch.tensor([0, 1])
    shares = torch.tensor([float(BatchMix(2, alpha, 0)(clips, label, seed)[1][0, 0]) for seed in range(600)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.05) and float(shares.var()) == pytest.approx(
        variance, rel=0.2
    )
    cut = torch.tensor([float(BatchMix(2, 0, alpha)(clips, label, seed)[1][0, 0]) for seed in range(300)])
    assert (cut > 0.85).float().mean() > 0.15 if alpha < 8 else (cut > 0.85).float().mean() < 0.1


def test_views_in_evaluation():
    views = EvalTransform(64, 56, num_crops=3)(torch.zeros(4, 3, 128, 160, dtype=torch.uint8))
    assert [v.shape for v in views] == [(4, 3, 56, 56)] * 3


def test_normalize():
    clips = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1, 1).expand(2, 3, 1, 1, 1)
    out = normalize(clips, [0.5, 0.25, 0.0], [0.5, 0.25, 1.0])
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.flatten(1), torch.tensor([[-1.0, -1.0, 0.0], [1.0, 3.0, 1.0]]))
