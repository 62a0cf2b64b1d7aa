"""Which keys of a configuration have no effect, because of what other keys say."""

from __future__ import annotations

from collections.abc import Callable

from softpool3d.config import Config

_FOLDERS = ("folder", "pictures")
_DIVIDED = (*_FOLDERS, "digits")  # by data.split, unless they are divided on disk: datasets/ says so
_SPANS = "videos with data.sampling=dense or centred"
_NORMS = ("train.norm", "train.precise_norm")
_SEVERAL = "a training of several processes, by torchrun"

# key -> what it belongs to, as an override says it, and whether that is so
_BELONGS_TO: dict[str, tuple[str, Callable[[Config], bool]]] = {
    "model.pool.kind": ("model.pool.where", lambda c: bool(c.model.pool.where)),
    "model.pool.beta": ("model.pool.kind=soft", lambda c: "soft" in (c.model.pool.kind, c.model.pool.head)),
    "model.pool.beta_start": ("model.pool.beta=learnable", lambda c: c.model.pool.beta == "learnable"),
    "model.pool.p": ("model.pool.kind=lp", lambda c: "lp" in (c.model.pool.kind, c.model.pool.head)),
    "data.root": ("a data set in files, as data.dataset=folder", lambda c: not c.data.is_generated),
    "data.path_prefix": ("data.dataset=folder", lambda c: c.data.dataset in _FOLDERS),
    "data.split": ("data.dataset=folder", lambda c: c.data.dataset in _DIVIDED),
    "data.split_seed": ("data.dataset=folder", lambda c: c.data.dataset in _DIVIDED),
    "data.official_split": ("data.dataset=hmdb51 or ucf101", lambda c: c.data.dataset in ("hmdb51", "ucf101")),
    "data.motion_clips": ("data.dataset=motion", lambda c: c.data.dataset == "motion"),
    "data.motion_seed": ("data.dataset=motion", lambda c: c.data.dataset == "motion"),
    "data.sampling_rate": (_SPANS, lambda c: _spans(c) or _is_picture(c) and c.data.sampling_rate == 1),
    "data.target_fps": (_SPANS, lambda c: _spans(c)),
    "data.jitter": ("videos with data.sampling=dense", lambda c: _spans(c) and c.data.sampling == "dense"),
    "data.short_clip": (_SPANS, lambda c: _spans(c)),
    "data.test_spacing": ("test.num_clips above 1", lambda c: _clips(c) > 1),
    "data.no_flip_classes": ("data.flip=true", lambda c: c.data.flip),
    "data.cache_gb": ("data.cache=memory or folder", lambda c: c.data.cache != "none"),
    "data.sampling": ("videos", lambda c: not _is_picture(c)),
    "data.sample_by": ("videos", lambda c: not _is_picture(c)),
    "data.decoder": ("videos", lambda c: not _is_picture(c)),
    "data.decode_timeout_s": ("videos", lambda c: not _is_picture(c)),
    "data.max_missing": ("videos", lambda c: not _is_picture(c)),
    "data.prefetch": ("data.num_workers above 0", lambda c: c.data.num_workers > 0),
    "data.augment.inverse_scale": ("data.augment.crop=scale", lambda c: c.data.augment.crop == "scale"),
    "data.augment.area": ("data.augment.crop=area", lambda c: c.data.augment.crop == "area"),
    "data.augment.ratio": ("data.augment.crop=area", lambda c: c.data.augment.crop == "area"),
    "data.augment.operations": ("data.augment.policy", lambda c: c.data.augment.policy != "none"),
    "data.augment.magnitude": ("data.augment.policy", lambda c: c.data.augment.policy != "none"),
    "optim.momentum": ("optim.name=sgd", lambda c: c.optim.name == "sgd"),
    "optim.nesterov": ("optim.name=sgd", lambda c: c.optim.name == "sgd"),
    "optim.gamma": ("optim.schedule=multistep", lambda c: c.optim.schedule == "multistep"),
    "optim.final_lr": ("optim.schedule=cosine", lambda c: c.optim.schedule == "cosine"),
    "optim.cosine_from_start": ("optim.warmup_epochs", lambda c: c.optim.warmup_epochs > 0),
    "optim.warmup_start": ("optim.warmup_epochs", lambda c: c.optim.warmup_epochs > 0),
    "test.num_clips": (_SPANS, lambda c: _clips(c) == c.test.num_clips),
    "test.average": ("several views, by test.num_clips or test.num_crops", lambda c: _clips(c) * c.test.num_crops > 1),
    "train.norm_clips": ("train.norm=split", lambda c: c.train.norm == "split"),
    "train.multigrid.short_crops": ("train.multigrid.short_cycle=true", lambda c: c.train.multigrid.short_cycle),
    "train.multigrid.long_shapes": ("train.multigrid.long_cycles", lambda c: bool(c.train.multigrid.long_cycles)),
}


def _is_picture(config: Config) -> bool:
    return config.data.of_pictures


def _spans(config: Config) -> bool:
    """Whether a clip is a part of a video, so that there can be several."""
    return not config.data.of_pictures and config.data.sampling != "uniform"


def _clips(config: Config) -> int:
    """Returns the clips of a video in testing."""
    return config.test.num_clips if _spans(config) else 1


def idle_keys(config: Config, has_norms: bool = True, alone: bool = False) -> list[str]:
    """Returns a sentence for each key that differs from its default and has no effect.

    Args:
        has_norms: whether the network has batch norms; a configuration does not tell.
        alone: whether one process trains; nor does it tell that.
    """
    values, defaults = config.flat(), Config().flat()
    idle = {key: what for key, (what, is_so) in _BELONGS_TO.items() if not is_so(config)}
    if not has_norms:
        idle |= dict.fromkeys(_NORMS, f"networks with batch norm, and {config.model.name} has none")
    if alone:
        idle["train.shard"] = _SEVERAL
        if config.train.norm == "sync":
            idle["train.norm"] = _SEVERAL
    return [
        f"{key}={values[key]} has no effect: it belongs to {what}"
        for key, what in idle.items()
        if values[key] != defaults[key]
    ]
