"""Recipes: those named after a published network are that network, and each has one with SoftPool beside it."""

from importlib.resources import files
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from originals import HARA, TORCHVISION, original, randomize, run_original, seed_network
from torch import nn
from torchvision.models.video import mvit

from softpool3d.config_file import load_config
from softpool3d.errors import UsageError
from softpool3d.idle_keys import idle_keys
from softpool3d.models import build_model, load_pretrained
from softpool3d.models.weights import preprocessing_of, torchvision_weights
from softpool3d.runs.published import settings_of

CONFIGS = Path(str(files("softpool3d.configs")))
FOLDERS = ("kinetics400", "hmdb51", "ucf101")
RECIPES = [path for folder in FOLDERS for path in sorted((CONFIGS / folder).glob("*.yaml"))]
PLAIN = [path for path in RECIPES if not path.stem.endswith("_softpool")]
NETWORKS = sorted({load_config(path).model.name for path in PLAIN})


def name(path):
    return f"{path.parent.name}/{path.stem}"


def small(path, network, *overrides):
    """The recipe with clips as small as its network takes here."""
    frames = 8 if network == "slowfast_r50" else 4
    sizes = ["data.short_side=64", "data.train_short_side=[64,64]", "data.crop_size=64", "data.test_crop_size=null"]
    return load_config(path, [f"data.num_frames={frames}", *sizes, *overrides])


def published(network, data):
    """The network as its library builds it, for clips of this size."""
    if network == "mvit_v2_s":  # torchvision's function has no argument for the size
        size = dict(spatial_size=(data.crop_size, data.crop_size), temporal_size=data.num_frames)
        real = mvit._mvit
        with patch.object(mvit, "_mvit", lambda **settings: real(**settings | size)):
            return randomize(mvit.mvit_v2_s(num_classes=7)).eval()
    theirs = original(network, 7, data.num_frames, data.crop_size)
    for path in [path for path, module in theirs.named_modules() if isinstance(module, nn.AvgPool3d)]:
        theirs.set_submodule(path, nn.AdaptiveAvgPool3d(1))  # heads that are made for the published size
    return theirs


@torch.no_grad()
@pytest.mark.parametrize("network", NETWORKS)
def test_a_recipe_named_after_a_published_network_is_that_network(network, tmp_path):
    file = tmp_path / "public.pth"
    config = small(CONFIGS / "kinetics400" / f"{network}.yaml", network, f"model.weights={file}")
    theirs, ours = published(network, config.data), build_model(config, 7).eval()
    torch.save({"state_dict": theirs.state_dict()}, file)
    assert not load_pretrained(ours, config).missing
    clip = torch.randn(2, 3, config.data.num_frames, 64, 64)
    wanted = run_original(theirs, network, clip)
    assert wanted.std() > 1e-3  # or the comparison says nothing
    torch.testing.assert_close(ours(clip), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("path", PLAIN, ids=name)
def test_plain_recipes_of_a_network_build_the_same_one(path):
    """So that the comparison above is one of each of them."""
    model = load_config(path).model
    beside = {"dropout", "weights"}  # dropout is for training; weights say where to start
    of_kinetics = load_config(f"kinetics400/{model.name}").model
    assert model.model_dump(exclude=beside) == of_kinetics.model_dump(exclude=beside)
    assert path.stem.startswith(model.name) and model.pool.where == []


@pytest.mark.parametrize("path", PLAIN, ids=name)
def test_every_recipe_has_one_with_softpool_that_differs_in_nothing_else(path):
    beside = path.with_name(f"{path.stem}_softpool.yaml")
    plain, soft = load_config(path).flat(), load_config(beside).flat()
    changed = {key: value for key, value in soft.items() if value != plain[key]}
    assert changed == {
        "name": f"{path.parent.name}_{path.stem}_softpool",
        "model.pool.where": ["existing", "downsample"],
    }
    assert soft["model.pool.kind"] == "soft" and plain["name"] == f"{path.parent.name}_{path.stem}"
    assert len(beside.read_text().splitlines()) < 10


def test_a_recipe_with_softpool_has_a_plain_one():
    assert {path.stem.removesuffix("_softpool") for path in RECIPES} == {path.stem for path in PLAIN}


@pytest.mark.parametrize("network", NETWORKS)
def test_softpool_takes_the_places_of_the_published_network_s_strides_and_poolings(network):
    config = small(CONFIGS / "kinetics400" / f"{network}_softpool.yaml", network)
    changes = build_model(config, 7).pooling
    places = {change.place for change in changes}
    assert "downsample" in places and places & {"existing", "head"}


@pytest.mark.parametrize("network", [n for n in NETWORKS if n not in TORCHVISION])
def test_public_files_are_used_as_their_recipe_says(network):
    """Files of torchvision come with preprocessing of their own."""
    file = Path("SLOW_8x8_R50.pyth" if network == "slow_r50" else "file.pyth")
    layout = "hara" if network in HARA else "pytorchvideo"
    recipe, used = load_config(f"kinetics400/{network}"), settings_of(network, layout, file, "by its layers", 700)[0]
    assert used.model == recipe.model and used.data == recipe.data


# Evaluated every so many epochs, on statistics of so many batches: what the sources that the files name say.
PYSLOWFAST, OTHERS = (10, 200), (1, 0)
EVALUATED = {
    **dict.fromkeys(["i3d_r50", "slow_r50", "slowfast_r50", "slowfast_r50_multigrid"], PYSLOWFAST),
    **dict.fromkeys(["x3d_xs", "x3d_s", "x3d_m"], PYSLOWFAST),
    "mvit_v2_s": (10, 0),  # no batch norm
    **dict.fromkeys(["r3d_18", "mc3_18", "r2plus1d_18", "r3d_50"], OTHERS),
}


@pytest.mark.parametrize("path", [path for path in RECIPES if path.parent.name == "kinetics400"], ids=name)
def test_recipes_evaluate_as_their_sources_do(path):
    train = load_config(path).train
    assert (train.eval_every, train.precise_norm) == EVALUATED[path.stem.removesuffix("_softpool")]


# Where a video's test clips lie. PySlowFast divides the places where a clip fits into parts, and takes their beginnings
# (slowfast/datasets/decoder.py), unless DATA.USE_OFFSET_SAMPLING is set, as its recipe of MViTv2 does. torchvision's
# UniformClipSampler and MMAction2's SampleFrames go from the first place to the last. Hara tests on all of a video.
SPACING = {
    **dict.fromkeys(
        ["i3d_r50", "slow_r50", "slowfast_r50", "slowfast_r50_multigrid", "x3d_xs", "x3d_s", "x3d_m"], "starts"
    ),
    **dict.fromkeys(["mvit_v2_s", "r3d_18", "mc3_18", "r2plus1d_18"], "ends"),
    "r3d_50": "centres",
}


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipes_place_their_test_clips_as_their_sources_do(path):
    stem = path.stem.removesuffix("_softpool")
    of_mmaction2 = stem == "slow_r50" and path.parent.name != "kinetics400"
    assert load_config(path).data.test_spacing == ("ends" if of_mmaction2 else SPACING[stem])


def test_a_pooling_that_has_no_place_in_a_published_network_is_refused():
    for override in ("model.pool.kind=soft", "model.pool.kind=max", "model.pool.beta=2"):
        with pytest.raises(
            UsageError, match=f"^override {override}: model.pool.where is .., so .*where=.existing,downs"
        ):
            load_config("kinetics400/x3d_m", [override])
    chosen = load_config("kinetics400/x3d_m", ["model.pool.kind=max", "model.pool.where=[downsample]"]).model.pool
    assert (chosen.kind, chosen.where) == ("max", ["downsample"])


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_no_key_of_a_recipe_is_without_effect(path):
    if "variants:" not in path.read_text():  # a study
        assert idle_keys(load_config(path)) == []


# --- pictures --------------------------------------------------------------------------------------------------------

_BASES = ("torchvision", "softpool")
OF_PICTURES = [path for path in sorted((CONFIGS / "imagenet").glob("*.yaml")) if path.stem not in _BASES]
NETWORKS_OF_PICTURES = sorted({load_config(path).model.name for path in OF_PICTURES})


def test_there_is_a_pair_of_recipes_for_each_network_that_softpool_s_repository_has_weights_of():
    """Its README names these eleven."""
    resnets = [f"resnet{depth}" for depth in (18, 34, 50, 101, 152)]
    others = ["densenet121", "densenet161", "densenet169", "resnext50_32x4d", "resnext101_32x4d", "wide_resnet50_2"]
    assert sorted(NETWORKS_OF_PICTURES) == sorted([*resnets, *others])
    assert {path.stem for path in OF_PICTURES} == {
        f"{n}{end}" for n in NETWORKS_OF_PICTURES for end in ("", "_softpool")
    }
    for path in OF_PICTURES:
        config = load_config(path)
        assert config.name == f"imagenet_{path.stem}" and config.model.name == path.stem.removesuffix("_softpool")
        assert len(path.read_text().splitlines()) < 12


@torch.no_grad()
@pytest.mark.parametrize("end", ["", "_softpool"])
@pytest.mark.parametrize("network", NETWORKS_OF_PICTURES)
def test_a_recipe_of_pictures_is_the_network_of_its_source(network, end):
    theirs = seed_network(network, 7) if end else original(network, 7)
    config = load_config(CONFIGS / "imagenet" / f"{network}{end}.yaml")
    ours = build_model(config, 7).eval()
    ours.load_state_dict(theirs.state_dict())
    clip = torch.randn(2, 3, 1, 64, 64)
    wanted = theirs(clip[:, :, 0])
    assert wanted.std() > 1e-3  # or the comparison says nothing
    torch.testing.assert_close(ours(clip), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("network", NETWORKS_OF_PICTURES)
def test_recipes_of_pictures_have_the_settings_of_their_sources(network):
    plain, soft = (load_config(f"imagenet/{network}{end}") for end in ("", "_softpool"))
    longer = network.startswith("resnext")
    assert (plain.train.epochs, plain.optim.milestones) == ((100, [30, 60, 90]) if longer else (90, [30, 60]))
    assert (soft.train.epochs, soft.optim.milestones) == (90, [30, 60])
    assert (plain.optim.lr, plain.optim.base_batch, soft.optim.lr, soft.optim.base_batch) == (0.1, 256, 0.1, 128)
    sizes = [(config.data.short_side, config.data.tested_crop, config.data.crop_size) for config in (plain, soft)]
    assert sizes == [(256, 224, 224), (324, 299, 299)]
    own = {"model.pool.kind", "model.pool.where", "model.pool.paper_stem", "optim.base_batch", "name"}
    own |= {"data.short_side", "data.crop_size"} | ({"train.epochs", "optim.milestones"} if longer else set())
    changed = {key for key, value in soft.flat().items() if value != plain.flat()[key]}
    assert changed <= own and changed >= own - {"model.pool.kind"}  # soft is what pooling is by default


@pytest.mark.parametrize("network", [n for n in NETWORKS_OF_PICTURES if n != "resnext101_32x4d"])
def test_torchvision_s_first_weights_are_used_as_their_recipe_says(network):
    recipe, wanted = load_config(f"imagenet/{network}"), preprocessing_of(torchvision_weights(network, "imagenet1k_v1"))
    used, _ = settings_of(network, "torchvision", Path("a.pth"), "by its layers", 1000, wanted)
    keys = {"dataset", "num_frames", "sampling_rate", "short_side", "crop_size", "mean", "std"}
    assert used.data.model_dump(include=keys) == recipe.data.model_dump(include=keys)
    assert used.model == recipe.model and used.test.num_clips == recipe.test.num_clips == 1
