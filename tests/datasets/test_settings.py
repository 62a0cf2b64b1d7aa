"""Every key of `data` that decides what a clip shows, read off the clip: pictures whose pixels say which frame, row and
column they are."""

import numpy as np
import pytest
import torch
from PIL import Image
from videos import read_numbers, write_numbered

from softpool3d.config import Config, DataConfig
from softpool3d.config_file import override_config
from softpool3d.datasets import read_manifests
from softpool3d.datasets.cache import make_cache
from softpool3d.datasets.loader import eval_loader, train_loader
from softpool3d.datasets.manifest import Clip, Manifest
from softpool3d.datasets.sources import motion
from softpool3d.datasets.transforms import Recipe, TrainTransform
from softpool3d.datasets.video import decoder
from softpool3d.datasets.views import read_views
from softpool3d.errors import WorkError

SIZES = ["data.crop_size=48", "data.short_side=48", "data.train_short_side=[48,48]", "data.flip=false"]


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """A folder of 40 pictures of 48x64: red is 6 times the frame's number, green 4 times the column, blue 5 times the
    row."""
    folder = tmp_path_factory.mktemp("frames") / "clip"
    folder.mkdir()
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[..., 1], picture[..., 2] = 4 * np.arange(64), 5 * np.arange(48)[:, None]
    for number in range(40):
        picture[..., 0] = 6 * number
        Image.fromarray(picture).save(folder / f"{number:03}.png")
    return Manifest(("a", "b"), [Clip(str(folder), 0)])


def settings(*overrides):
    return override_config(Config(), [*SIZES, "data.num_workers=0", "train.batch_size=1", *overrides])


def trained(manifest, *overrides, epochs=1):
    """The clip of each epoch, uint8 (C, T, H, W)."""
    loader, clips = train_loader(manifest, settings(*overrides)), []
    for epoch in range(epochs):
        loader.batch_sampler.set_position(epoch)
        clips += [video for batch in loader for video in batch.video]
    return clips


def numbers(video):
    """Of frames, by their red."""
    return (video[0].float().mean((-1, -2)) / 6).round().int().tolist()


def place(video):
    """Of the corner of what was cut out: row and column."""
    return int(video[2, 0, 0, 0]) // 5, int(video[1, 0, 0, 0]) // 4


# --- which frames ----------------------------------------------------------------------------------------------------


def test_frames_of_a_clip_and_how_they_lie(frames):
    length = ["data.num_frames=5", "data.sampling_rate=3"]
    (centred,) = trained(frames, *length, "data.sampling=centred")
    assert numbers(centred) == [13, 16, 19, 22, 25]
    dense = [numbers(clip) for clip in trained(frames, *length, epochs=12)]
    assert len({tuple(clip) for clip in dense}) > 6 and all(np.diff(clip).tolist() == [3] * 4 for clip in dense)
    uniform = [numbers(clip) for clip in trained(frames, *length, "data.sampling=uniform", epochs=6)]
    assert all([frame // 8 for frame in clip] == list(range(5)) for clip in uniform) and len({*map(tuple, uniform)}) > 2
    jittered = [numbers(clip) for clip in trained(frames, *length, "data.jitter=1", epochs=6)]
    assert len({step for clip in jittered for step in np.diff(clip)}) > 2
    few = ["data.num_frames=4", "data.sampling_rate=8", "data.jitter=0.25"]  # each frame moves by one at most
    steps = {int(step) for clip in trained(frames, *few, epochs=8) for step in np.diff(numbers(clip))}
    assert steps <= set(range(6, 11)) and len(steps) > 2


@pytest.mark.parametrize(("short_clip", "expected"), [("loop", [0, 15, 30, 5]), ("hold", [0, 15, 30, 39])])
def test_a_clip_longer_than_its_video(frames, short_clip, expected):
    length = ["data.num_frames=4", "data.sampling_rate=15", f"data.short_clip={short_clip}"]
    assert numbers(trained(frames, *length)[0]) == expected
    batch = next(iter(eval_loader(frames, settings(*length))))
    assert numbers(batch.video[0, 0]) == expected


def seen(path, *overrides):
    """The numbers of the frames that a view of a numbered video shows."""
    views = read_views(Clip(str(path), 0), settings(*overrides).data, 1, 3).clips
    picture = torch.zeros(views.shape[2], 3, 48, 64, dtype=torch.uint8)
    picture[..., :48], picture[..., 48:] = views[0].transpose(0, 1), views[2].transpose(0, 1)[..., 32:]
    return read_numbers(picture)


def test_rates_count_in_frames_or_in_seconds(tmp_path):
    """Ten frames that stay for a quarter of a second, then ten that stay for a twenty-fifth."""
    slow = write_numbered(tmp_path / "a.mp4", 40)
    length = ["data.num_frames=4", "data.sampling_rate=1"]
    assert np.diff(seen(slow, *length)).tolist() == [1] * 3
    assert np.diff(seen(slow, *length, "data.target_fps=5")).tolist() == [5] * 3
    times = [6 * n for n in range(10)] + [60 + n for n in range(10)]
    uneven = write_numbered(tmp_path / "b.mkv", 20, times=times)
    by = {name: seen(uneven, *length, "data.target_fps=2", f"data.sample_by={name}") for name in ("index", "time")}
    assert np.ptp(np.diff(by["index"])) <= 1  # every third or fourth, at 6.4 frames a second
    shown = np.array(times)[by["time"]] / 25
    assert max(abs(np.diff(shown) - 0.5)) <= 0.24 and by["time"] != by["index"]


# --- which pixels ----------------------------------------------------------------------------------------------------


def test_sizes_of_pictures_and_what_is_cut_out(frames):
    smaller = ["data.crop_size=32", "data.num_frames=2"]
    clips = trained(frames, *smaller, epochs=12)
    assert {clip.shape for clip in clips} == {(3, 2, 32, 32)}
    rows, columns = zip(*map(place, clips), strict=True)
    assert len(set(rows)) > 3 and len(set(columns)) > 4 and max(rows) <= 16 and max(columns) <= 32
    views = next(iter(eval_loader(frames, settings(*smaller)))).video
    assert views.shape[-2:] == (32, 32) and place(views[0, 0]) == (8, 16)
    views = next(iter(eval_loader(frames, settings(*smaller, "data.test_crop_size=40")))).video
    assert views.shape[-2:] == (40, 40) and place(views[0, 0]) == (4, 12)
    views = next(iter(eval_loader(frames, settings(*smaller, "data.short_side=96")))).video[0, 0]
    assert int(views[1, 0, 0, -1]) - int(views[1, 0, 0, 0]) == pytest.approx(62, abs=3)  # 31 of 128 columns
    steps = {int(clip[1, 0, 0, -1]) - int(clip[1, 0, 0, 0]) for clip in trained(frames, *smaller, epochs=4)}
    assert steps == {31 * 4}
    larger = trained(frames, *smaller, "data.train_short_side=[96,96]", epochs=4)
    assert all(int(clip[1, 0, 0, -1]) - int(clip[1, 0, 0, 0]) == pytest.approx(62, abs=3) for clip in larger)


def test_clips_are_mirrored_where_they_may_be(frames):
    def rising(*overrides):
        clips = trained(frames, "data.num_frames=1", *overrides, epochs=16)
        return {bool(clip[1, 0, 0, 0] < clip[1, 0, 0, -1]) for clip in clips}

    assert rising() == {True} and rising("data.flip=true") == {True, False}
    assert rising("data.flip=true", "data.no_flip_classes=[a]") == {True}


def of_training(**augment):
    """Clips of one grey picture with a border, by the seed of their recipe."""
    sizes = dict(crop_size=32, short_side=32, train_short_side=[32, 32], mean=[0.2, 0.4, 0.6])
    transform = TrainTransform(DataConfig(**sizes, augment=augment))
    picture = torch.tensor([60, 100, 140], dtype=torch.uint8).view(1, 3, 1, 1).repeat(2, 1, 32, 32)
    picture[:, :, 8:24, 8:24] += 40
    return lambda seed: transform(picture, Recipe(32, 32, False, seed)).int()


@pytest.mark.parametrize("number", range(4))
def test_each_colour_is_jittered_as_far_as_asked_for(number):
    """Brightness, contrast, saturation, hue: each alone does what its name says, no further than its number."""
    strength = [0.0] * 4
    strength[number] = 0.2
    make, plain = of_training(color_jitter=strength), of_training()(0)
    changed = 0
    for seed in range(12):
        clip = make(seed)
        inner, outer, was, around = clip[0, :, 15, 15], clip[0, :, 0, 0], plain[0, :, 15, 15], plain[0, :, 0, 0]
        changed += not torch.equal(clip, plain)
        if number == 0:
            factor = float(outer[0]) / float(around[0])
            assert 0.78 < factor < 1.22
            torch.testing.assert_close(inner.float(), was.float() * factor, atol=3, rtol=0)
        elif number == 1:  # distances from the mean grey change, by one factor for all colours
            factors = (inner - outer).float() / 40
            assert factors.max() - factors.min() < 0.08 and 0.75 < float(factors.mean()) < 1.25
        elif number == 2:  # colours move to grey or away from it; what is between two of them by the same factor
            factor = float(outer[2] - outer[0]) / 80
            assert 0.75 < factor < 1.25 and float(inner[2] - inner[0]) / 80 == pytest.approx(factor, abs=0.06)
            grey = torch.tensor([0.299, 0.587, 0.114])
            assert float((grey * outer).sum()) == pytest.approx(float((grey * around).sum()), abs=2)
        else:  # the largest and the smallest of the colours stay
            assert int(outer.max()) == pytest.approx(140, abs=2) and int(outer.min()) == pytest.approx(60, abs=2)
    assert changed > 8


def test_what_is_drawn_of_a_policy():
    """randaugment: so many operations of that strength; augmix: so many chains, as severe."""
    for name, most in (("randaugment", 30), ("augmix", 10)):
        far = {}
        for magnitude in (1, most):
            make, plain = of_training(policy=name, magnitude=magnitude, operations=1), of_training()(0)
            # of operations with a strength, the median over seeds; some, as equalize, have none
            far[magnitude] = np.median([float((make(seed) - plain).abs().float().mean()) for seed in range(40)])
        assert far[most] > far[1], (name, far)
    for operations in (1, 3):
        (step,) = TrainTransform(DataConfig(augment={"policy": "randaugment", "operations": operations}))._steps
        (mix,) = TrainTransform(DataConfig(augment={"policy": "augmix", "operations": operations}))._steps
        assert step.num_ops == operations == mix.mixture_width


@pytest.mark.parametrize(("probability", "least", "most"), [(0.25, 8, 32), (0.75, 48, 72), (1.0, 80, 80)])
def test_boxes_are_erased_as_often_as_asked_for(probability, least, most):
    make, colour = of_training(erase_probability=probability), torch.tensor([51, 102, 153]).view(1, 3, 1, 1)
    erased = sum(bool((make(seed) == colour).all(1).any()) for seed in range(80))
    assert least <= erased <= most


def test_clips_of_the_multigrid_have_the_shapes_asked_for(frames):
    """In turns: in the first epoch, with half of the frames, a quarter of the side and twice a half, which is the most
    there; then, with all of them, a quarter, three quarters and the whole."""
    many = Manifest(frames.classes, list(frames.clips) * 80)
    turns = [
        "train.multigrid.short_cycle=true",
        "train.multigrid.short_crops=[0.25,0.75]",
        "train.multigrid.long_cycles=[1]",
    ]
    shapes = ["train.multigrid.long_shapes=[[0.5,0.5]]", "data.num_frames=4", "data.crop_size=32"]
    loader = train_loader(many, settings(*turns, *shapes, "train.epochs=2"))
    seen = []
    for epoch in range(2):
        loader.batch_sampler.set_position(epoch)
        seen.append([tuple(batch.video.shape[2:]) for batch in loader][:3])
    assert seen == [[(2, 8, 8), (2, 16, 16), (2, 16, 16)], [(4, 8, 8), (4, 24, 24), (4, 32, 32)]]
    plain = train_loader(many, settings(*shapes, "train.epochs=2"))
    assert {tuple(batch.video.shape[2:]) for batch in plain} == {(4, 32, 32)}


# --- how they are read -----------------------------------------------------------------------------------------------


def test_workers_and_batches_that_they_have_ready(frames):
    loader = train_loader(frames, settings("data.num_workers=1", "data.prefetch=5"))
    assert (loader.num_workers, loader.prefetch_factor) == (1, 5)
    assert eval_loader(frames, settings()).num_workers == 0


def test_a_file_is_opened_as_its_settings_say(frames, tmp_path, monkeypatch):
    asked, real = [], decoder.open_video

    def opened(path, short_side, **named):
        asked.append((short_side, named))
        return real(path, short_side, **named)

    monkeypatch.setattr(decoder, "open_video", opened)
    path = write_numbered(tmp_path / "a.mp4", 8)
    limits = ["data.decoder=decord", "data.decode_timeout_s=7", "data.max_missing=0.3", "data.num_frames=2"]
    list(train_loader(Manifest(("a", "b"), [Clip(str(path), 0)]), settings(*limits)))
    assert asked == [(48, {"timeout_s": 7, "decoder": "decord", "max_missing": 0.3})]


def test_copies_are_kept_as_asked_for(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 8)
    assert make_cache(DataConfig()) is None
    there = DataConfig(cache="folder", cache_folder=str(tmp_path / "cache"), cache_gb=2**-20)
    assert make_cache(there).limit == 1024 and make_cache(there).path(str(path)) == str(path)  # too large for it
    there = there.model_copy(update={"cache_gb": 1.0})
    copy = make_cache(there).path(str(path))
    assert copy.startswith(str(tmp_path / "cache"))
    loader = train_loader(
        Manifest(("a", "b"), [Clip(str(path), 0)]),
        settings("data.num_frames=2", "data.cache=folder", f"data.cache_folder={tmp_path / 'other'}"),
    )
    list(loader)
    (made,) = (tmp_path / "other").rglob("*.mp4")
    assert made.read_bytes() == path.read_bytes()


# --- which clips -----------------------------------------------------------------------------------------------------


def test_a_folder_is_split_as_asked_for(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(20):
            (tmp_path / label / f"{number}.mp4").write_bytes(b"x")

    def split(*overrides):
        data = settings("data.dataset=folder", f"data.root={tmp_path}", *overrides).data
        return {name: [clip.path for clip in manifest.clips] for name, manifest in read_manifests(data).items()}

    parts = ["data.split=[0.5,0.3,0.2]"]
    assert {name: len(clips) for name, clips in split(*parts).items()} == {"train": 20, "val": 12, "test": 8}
    assert split(*parts) == split(*parts) != split(*parts, "data.split_seed=5")


def test_the_embedded_data_set_is_made_as_asked_for(monkeypatch, tmp_path):
    made = []

    def generate(*arguments):
        made.append(arguments[1:])
        raise WorkError("enough")

    monkeypatch.setenv("SOFTPOOL3D_HOME", str(tmp_path))
    monkeypatch.setattr(motion, "_generate", generate)
    with pytest.raises(WorkError, match="enough"):
        read_manifests(settings("data.motion_clips=[9,10,11]", "data.motion_seed=3").data)
    assert made == [((9, 10, 11), 3)]
