"""The configuration: one YAML file and command-line overrides become one validated `Config`.

    config = load_config("configs/r3d_softpool.yaml", ["optim.lr=0.05", "model.pool.kind=avg"])

A file may name one `base:` file, relative to itself, whose values it overrides. Every mistake is reported with its
key and where it stands (file and line, or the override itself).
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from softpool3d.errors import UsageError
from softpool3d.yaml_text import dump, parse_value, read_yaml

PoolKind = Literal["soft", "avg", "max", "lp", "mixed", "stochastic", "blur", "lip", "edscw", "ada", "conv"]
PoolPlace = Literal["existing", "downsample", "temporal", "head", "attention"]
Stage = Literal["stem", "stage1", "stage2", "stage3", "stage4"]
Tracker = Literal["wandb", "mlflow", "comet_ml", "aim", "clearml"]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Parts = Annotated[list[Fraction], Field(min_length=3, max_length=3)]
Counts = Annotated[list[Annotated[int, Field(ge=8)]], Field(min_length=3, max_length=3)]
Range = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)]
Channels = Annotated[list[float], Field(min_length=3, max_length=3)]
# a list may also be written as one word, or as a,b
Words = BeforeValidator(lambda value: value.replace(",", " ").split() if isinstance(value, str) else value)


class Section(BaseModel):
    """A part of the configuration: no unknown keys, no silent conversions of meaning, checked on assignment too."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)


class PoolConfig(Section):
    """Which pooling, and where in the network it goes (see models/pooling.py)."""

    kind: PoolKind = "soft"
    where: Annotated[list[PoolPlace], Words] = ["existing"]
    beta: float | Literal["learnable"] = 1.0  # soft only: 0 is average pooling, large is max pooling
    p: Annotated[float, Field(ge=1)] = 2.0  # lp only
    temporal: Annotated[list[Stage], Words] = []  # the stages before which time is halved, for `where: [temporal]`
    paper_stem: bool = False  # the stem's 3x3 pooling becomes 2x2, as in SoftPool's own ImageNet networks

    @model_validator(mode="after")
    def _consistent(self) -> PoolConfig:
        if ("temporal" in self.where) != bool(self.temporal):
            missing = "temporal names no stages" if "temporal" in self.where else "where does not hold `temporal`"
            raise ValueError(f"{missing}; set both, as in where: [existing, temporal] and temporal: [stage3]")
        if self.paper_stem and "existing" not in self.where:
            raise ValueError("paper_stem changes what `existing` puts into the stem; add existing to where")
        return self


class ModelConfig(Section):
    name: str = "r3d_18"
    weights: str | None = None  # to start from: a weights file, a run, or a name (see docs/models.md)
    width: Annotated[int, Field(ge=4, le=512)] | None = None  # channels of the stem; the original's if not set
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    inflate: bool = False  # an image network, turned into a video network by repeating its weights over time
    checkpointing: bool = False  # recompute activations in the backward: less memory, a third more time
    pool: PoolConfig = PoolConfig()


class AugmentConfig(Section):
    """What else happens to a training clip, the same for all its frames (datasets/transforms.py)."""

    # scale: the short side is drawn from data.train_short_side and a square cut out; area: part of the picture is cut
    # out, by area and aspect ratio, and resized (RandomResizedCrop)
    crop: Literal["scale", "area"] = "scale"
    inverse_scale: bool = False  # draw 1 / short side, as SlowFast does
    area: Range = [0.08, 1.0]
    ratio: Range = [0.75, 1.3333]
    color_jitter: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=4, max_length=4)] = [
        0.0,
        0.0,
        0.0,
        0.0,
    ]
    policy: Literal["none", "randaugment", "augmix"] = "none"
    operations: Annotated[int, Field(ge=1, le=10)] = 2  # of randaugment, one after another; chains of augmix
    magnitude: Annotated[int, Field(ge=1, le=30)] = 9  # of randaugment; of augmix at most 10
    erase_probability: Fraction = 0.0  # of a box in the mean colour

    @model_validator(mode="after")
    def _consistent(self) -> AugmentConfig:
        for key in ("area", "ratio"):
            low, high = getattr(self, key)
            if low > high:
                raise ValueError(f"{key} is [from, to] and {low:g} > {high:g}")
        if self.area[1] > 1:
            raise ValueError(f"area {self.area} is a part of the picture, at most 1")
        if self.color_jitter[3] > 0.5:
            raise ValueError("color_jitter is [brightness, contrast, saturation, hue], and hue is at most 0.5")
        if self.policy == "augmix" and self.magnitude > 10:
            raise ValueError(f"magnitude {self.magnitude} is too large for augmix (1 to 10)")
        return self


class DataConfig(Section):
    dataset: str = "motion"
    root: str | None = None  # of a dataset on disk; `motion` makes its own
    path_prefix: str | None = None  # the folder where relative paths of lists begin; if not set, the list's own
    num_frames: Positive = 16
    sampling_rate: Positive = 4  # every n-th frame of the video
    # dense: num_frames at sampling_rate from a random place; centred: from the middle; uniform: one frame of each of
    # num_frames equal segments (TSN)
    sampling: Literal["dense", "centred", "uniform"] = "dense"
    sample_by: Literal["index", "time"] = "index"  # time: evenly in seconds where the frame rate varies
    target_fps: Annotated[float, Field(gt=0)] | None = None  # sampling_rate counts frames of this rate, not the video's
    jitter: Fraction = 0.0  # in training, frames move by up to half of this times sampling_rate, each by itself
    short_clip: Literal["loop", "hold"] = "loop"  # videos with fewer frames than a clip spans
    train_short_side: Annotated[list[Positive], Field(min_length=2, max_length=2)] = [128, 160]  # drawn from
    short_side: Positive = 128  # in evaluation
    crop_size: Positive = 112
    test_crop_size: Positive | None = None  # in evaluation; crop_size if not set
    flip: bool = True  # horizontally, one clip in two
    # classes that are never flipped; null: those whose names have the words left, right, clockwise, ...
    no_flip_classes: list[str] | None = None
    augment: AugmentConfig = AugmentConfig()
    transforms_on_device: bool = False  # crops, flips and augmentation on the GPU instead of in the workers
    # where they are not set and model.weights tell theirs, a run takes those
    mean: Channels = [0.45, 0.45, 0.45]
    std: Channels = [0.225, 0.225, 0.225]
    num_workers: Annotated[int, Field(ge=0)] = 2
    prefetch: Positive = 2  # batches that each worker has ready
    decoder: Literal["pyav", "decord"] = "pyav"  # decord reads what it is known to read exactly, PyAV the rest
    # copies of the files, made when they are first read: in memory (of all workers together), or in a folder on a
    # local disk; up to cache_gb
    cache: Literal["none", "memory", "folder"] = "none"
    cache_gb: Annotated[float, Field(gt=0)] = 8.0
    cache_folder: str | None = None
    decode_timeout_s: Annotated[float, Field(gt=0)] = 30.0  # a decoder that takes longer has hung
    max_missing: Fraction = 0.1  # of a file's time: one that has lost more, or cannot be decoded for longer, is bad
    max_bad_fraction: Fraction = 0.1  # of a split's files that may turn out unreadable before the run stops
    split: Parts = [0.8, 0.1, 0.1]  # of a folder that is not split on disk: train, val, test
    split_seed: int = 0
    official_split: Literal[1, 2, 3] = 1  # of HMDB51 and UCF101
    motion_clips: Counts = [400, 80, 80]  # train, val, test
    motion_seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("root", "path_prefix", "cache_folder")
    @classmethod
    def _absolute(cls, folder: str | None) -> str | None:
        # so that a run can be resumed from another folder
        return None if folder is None else os.path.abspath(os.path.expanduser(folder))

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        low, high = self.train_short_side
        if low > high:
            raise ValueError(f"train_short_side is [from, to] and {low} > {high}")
        if self.crop_size > min(low, self.short_side):
            raise ValueError(
                f"crop_size {self.crop_size} does not fit into a short side of {min(low, self.short_side)} "
                "(short_side and train_short_side have to be at least crop_size)"
            )
        if self.test_crop_size is not None and self.test_crop_size > self.short_side:
            raise ValueError(
                f"test_crop_size {self.test_crop_size} does not fit into a short_side of {self.short_side}"
            )
        if (self.cache == "folder") != (self.cache_folder is not None):
            raise ValueError("cache: folder and cache_folder belong together; set both or neither")
        if min(self.std) <= 0:
            raise ValueError("std has to be above 0")
        if abs(sum(self.split) - 1) > 1e-6 or 0 in self.split[:2]:
            raise ValueError(f"split {self.split} has to sum to 1, with parts above 0 for train and val")
        return self

    @property
    def tested_crop(self) -> int:
        """Pixels of the crops that evaluation, testing, labels and exported networks see."""
        return self.test_crop_size or self.crop_size


class OptimConfig(Section):
    name: str = "sgd"  # any of torch.optim, in lower case: sgd, adamw, rmsprop, ...; or of timm: lamb, lion, ...
    options: dict[str, Any] = {}  # further keywords of the optimiser, as in betas: [0.9, 0.98]
    lr: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # sgd only
    nesterov: bool = True  # sgd only
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4  # not of norms, biases and a learnable beta
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # each block's lr is that of the one behind it times this
    freeze: Annotated[list[str], Words] = []  # parameters that stay as they are, by pattern: stem*, layer1.*, ...
    base_batch: Positive | None = None  # lr is for that many clips an update, and is scaled to what an update has
    schedule: Literal["cosine", "multistep", "constant"] = "cosine"  # after the warm-up
    milestones: list[Annotated[float, Field(gt=0)]] = []  # multistep: the epochs after which lr is multiplied by gamma
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    cosine_from_start: bool = False  # it counts from epoch 0, under the warm-up, instead of from the warm-up's end
    final_lr: Fraction = 0.0  # cosine: where it ends, as a share of lr
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    warmup_start: Fraction = 0.0  # where the warm-up starts, as a share of lr
    # binary: a sigmoid for each class; null: that for clips with several labels, else cross entropy
    loss: Literal["cross_entropy", "binary"] | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # one number a class; balanced: by how rare each is in the training split
    class_weights: Literal["balanced"] | list[Annotated[float, Field(ge=0)]] | None = None
    clip_grad_norm: Annotated[float, Field(ge=0)] = 0.0  # 0: no clipping
    clip_grad_value: Annotated[float, Field(ge=0)] = 0.0  # of each element

    @model_validator(mode="after")
    def _consistent(self) -> OptimConfig:
        if (self.schedule == "multistep") != bool(self.milestones):
            raise ValueError("schedule: multistep and milestones belong together, as in milestones: [20, 30, 40]")
        if self.class_weights and self.class_weights != "balanced" and not any(self.class_weights):
            raise ValueError("class_weights are all 0: nothing would be learned")
        if self.cosine_from_start and self.schedule != "cosine":
            raise ValueError(f"cosine_from_start is for schedule: cosine, not {self.schedule}")
        if sorted(set(self.milestones)) != self.milestones:
            raise ValueError(f"milestones {self.milestones} have to be epochs in rising order")
        return self


class MultigridConfig(Section):
    """Batches of many small clips and of few large ones in turns (arXiv 1912.00998; datasets/multigrid.py)."""

    short_cycle: bool = False  # updates take turns: clips of each of short_crops, then whole ones
    short_crops: Annotated[list[Share], Field(min_length=1)] = [0.5, 0.7071]  # shares of the side
    long_cycles: list[Positive] = []  # the epochs in which the long cycles end, as in [60, 120]; none: no long cycle
    # the clips of each long cycle, one after another for as many updates each: shares of the frames and of the side
    long_shapes: Annotated[list[Annotated[list[Share], Field(min_length=2, max_length=2)]], Field(min_length=1)] = [
        [0.25, 0.7071],
        [0.5, 0.7071],
        [0.5, 1.0],
        [1.0, 1.0],
    ]

    @model_validator(mode="after")
    def _consistent(self) -> MultigridConfig:
        if sorted(set(self.long_cycles)) != self.long_cycles:
            raise ValueError(f"long_cycles {self.long_cycles} have to be epochs in rising order")
        return self


class TrainConfig(Section):
    epochs: Positive = 30
    batch_size: Positive = 16
    repeats: Positive = 1  # clips of each video in a batch, decoded together (repeated augmentation, arXiv 1901.09335)
    mixup: Annotated[float, Field(ge=0)] = 0.0  # alpha of arXiv 1710.09412; 0: off
    cutmix: Annotated[float, Field(ge=0)] = 0.0  # alpha of arXiv 1905.04899; with both, each batch draws one
    multigrid: MultigridConfig = MultigridConfig()
    accumulate: Positive = 1  # batches per optimiser step
    # clips of an optimiser step, all processes together: batch_size then is the most that one process takes at once,
    # and accumulate follows; not set, it is batch_size * accumulate * processes
    global_batch: Positive | None = None
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"  # all but fp32 on a GPU
    compile: bool = False  # torch.compile
    shard: bool = False  # parameters, their average, gradients, optimiser state divided among processes (FSDP)
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0  # decay of an average of the weights, as 0.999; 0: none
    norm: Literal["batch", "sync", "split"] = (
        "batch"  # statistics of a process's batch, of all processes', of its parts
    )
    norm_clips: Positive = 8  # split: clips of a part
    precise_norm: Annotated[int, Field(ge=0)] = 0  # batches that running statistics are taken from before an evaluation
    on_nonfinite: Literal["stop", "skip"] = "stop"  # an update whose loss or gradient is NaN or infinite
    memory_format: Literal["channels_last_3d", "contiguous"] = "channels_last_3d"
    timeout_minutes: Annotated[float, Field(gt=0)] = 10.0  # that processes wait for each other before they give up
    eval_every: Positive = 1  # epochs; the last one is always evaluated
    eval_every_steps: Positive | None = None  # and after every n batches of an epoch
    keep_best: Positive = 1  # more than one: the best few are in the run's folder kept/, beside best.safetensors
    trackers: Annotated[list[Tracker], Words] = []  # beside TensorBoard
    patience: Annotated[int, Field(ge=0)] = 0  # evaluations without a better one before the run stops early; 0: never

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.batch_size % self.repeats:
            raise ValueError(f"batch_size {self.batch_size} cannot be divided into {self.repeats} clips of each video")
        if self.global_batch and self.global_batch % self.repeats:
            raise ValueError(f"global_batch {self.global_batch} cannot be divided into {self.repeats} clips each video")
        if self.global_batch and self.accumulate > 1:
            raise ValueError("accumulate follows from global_batch and batch_size; set one of the two")
        cycles = self.multigrid.long_cycles
        if cycles and cycles[-1] > self.epochs:
            raise ValueError(f"multigrid.long_cycles {cycles} end after the run's {self.epochs} epochs; set fewer")
        return self

    def update(self, processes: int) -> tuple[int, int]:
        """Clips of an optimiser step, all processes together, and the batches that each process makes of its share."""
        if self.global_batch is None:
            return self.batch_size * self.accumulate * processes, self.accumulate
        return self.global_batch, math.ceil(self.global_batch / (processes * self.batch_size))


class CheckpointConfig(Section):
    every_minutes: Annotated[float, Field(ge=0)] = 10.0  # and after each epoch; 0: after each epoch alone


class TestConfig(Section):
    num_clips: Positive = 5  # evenly spaced in time
    num_crops: Literal[1, 3] = 1  # the centre; or three along the longer side
    average: Literal["softmax", "logits"] = "softmax"  # over the views: the probabilities, or what they come from
    batch_size: Positive = 16

    __test__ = False  # not a test case, whatever pytest thinks of the name


class Config(Section):
    name: str = Field("run", pattern=r"^[^/\\]*[^/\\.][^/\\]*$")  # the run's folder is <output>/<name>
    output: str = "runs"
    seed: Annotated[int, Field(ge=0)] = 0
    device: str = "auto"  # cpu, cuda, cuda:1, ...
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    test: TestConfig = TestConfig()

    def to_yaml(self) -> str:
        return dump(self.model_dump())

    def flat(self) -> dict[str, Any]:
        """Every value by its dotted key, as overrides name it."""
        return dict(_leaves(self.model_dump()))


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# --- reading ---------------------------------------------------------------------------------------------------------


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file and its `base:`, applies `key.path=value` overrides, validates.

    `path` may also name a file that ships with the package, as `r3d_softpool` or `configs/r3d_softpool.yaml`.

    Raises:
        UsageError: naming the file and line, or the override, of the first mistake.
    """
    values, origins = read_yaml(find_config(path), Config)
    if "variants" in values:
        raise UsageError(f"{path} describes a study: softpool3d study --cfg {path}")
    for override in overrides:
        _apply_override(values, origins, override)
    config = validate(values, origins)
    check_schedule(config, origins)
    _check_pooling(config, overrides)
    return config


def override_config(config: Config, overrides: Sequence[str]) -> Config:
    """`config` with `key.path=value` overrides.

    Raises:
        UsageError: naming the override that is wrong.
    """
    values: dict[str, Any] = config.model_dump()
    origins: dict[tuple, str] = {}
    for override in overrides:
        _apply_override(values, origins, override)
    return validate(values, origins)


def check_schedule(config: Config, origins: dict[tuple, str] | None = None) -> None:
    """What a training may not begin with: a learning rate that its epochs do not come to. Weights and runs that are
    there already are read without this.

    Raises:
        UsageError: for a warm-up longer than the run, or milestones past its end.
    """
    optim, epochs = config.optim, config.train.epochs
    mistakes, instead, keys = [], [], []
    if optim.warmup_epochs > epochs:
        keys.append("warmup_epochs")
        mistakes.append(f"optim.warmup_epochs={optim.warmup_epochs:g} is longer")
        instead.append("optim.warmup_epochs=0")
    if late := [milestone for milestone in optim.milestones if milestone >= epochs]:
        within = [milestone for milestone in optim.milestones if milestone < epochs]
        keys.append("milestones")
        mistakes.append(f"{_list(late)} of optim.milestones would never be reached")
        instead.append(f"optim.milestones={_list(within)}" if within else "optim.schedule=constant optim.milestones=[]")
    if mistakes:
        origin = (origins or {}).get(("optim", keys[0]))
        raise UsageError(
            f"{f'{origin}: ' if origin else ''}the learning rate's schedule does not fit into train.epochs={epochs}: "
            f"{', and '.join(mistakes)}; for a run so short, add {' '.join(instead)}"
        )


def _check_pooling(config: Config, overrides: Sequence[str]) -> None:
    """A pooling that is asked for has to have a place: the recipes of published networks name none."""
    asked = next((o for o in overrides if o.startswith("model.pool.") and not o.startswith("model.pool.where=")), None)
    if asked and not config.model.pool.where:
        raise UsageError(
            f"override {asked}: model.pool.where is [], so that the network pools as it was published; say where it "
            "goes, as in model.pool.where=[existing,downsample]"
        )


def _list(numbers: list[float]) -> str:
    return f"[{','.join(f'{number:g}' for number in numbers)}]"


def differing(configs: Sequence[Config]) -> dict[str, list[Any]]:
    """The keys that are not the same in all of them, with each one's value, in the order of the file."""
    flat = [config.flat() for config in configs]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    table = {key: [values.get(key) for values in flat] for key in keys}
    return {key: values for key, values in table.items() if any(value != values[0] for value in values)}


def with_what_is_set(config: Config, other: Config) -> Config:
    """`config` with all that a file, an override or the constructor has set in `other`."""

    def merged(base: dict, over: dict) -> dict:
        both = {key: merged(base[key], value) if isinstance(value, dict) else value for key, value in over.items()}
        return base | both

    return validate(merged(config.model_dump(), other.model_dump(exclude_unset=True)))


def find_config(path: str | Path) -> Path:
    """The file itself, or else the one of that name among the package's own."""
    path = Path(path)
    if path.is_file():
        return path
    if path.is_dir():
        raise UsageError(f"config {path} is a folder; name the YAML file in it")
    shipped = Path(str(files("softpool3d.configs")))
    relative = Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else path
    for candidate in (shipped / relative, shipped / f"{relative}.yaml"):
        if candidate.is_file() and not path.is_absolute():
            return candidate
    found = sorted(shipped.glob("*.yaml")) + sorted(shipped.glob("*/*.yaml"))
    known = [str(p.relative_to(shipped).with_suffix("")) for p in found]
    raise UsageError(f"no config file {path}; those that come with softpool3d: {', '.join(known)}")


def validate(values: dict[str, Any], origins: dict[tuple, str] | None = None) -> Config:
    """`values` as a Config; `origins` says for each key path where it was written."""
    origins = origins or {}
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UsageError(_explain(error.errors(), values, origins)) from None


def pool_config(**values: Any) -> PoolConfig:
    """A PoolConfig from keyword arguments.

    Raises:
        UsageError: naming the argument that is wrong.
    """
    try:
        return PoolConfig.model_validate(values)
    except ValidationError as error:
        raise UsageError(_explain(error.errors(), values, {}).removeprefix(": ")) from None


def _apply_override(values: dict[str, Any], origins: dict[tuple, str], override: str) -> None:
    key, equals, text = override.partition("=")
    path = tuple(key.split("."))
    if not equals or not all(path):
        raise UsageError(f"{override!r} is not an override; write key.path=value, as in optim.lr=0.05")
    value = parse_value(text, path, Config)
    target = values
    for part in path[:-1]:
        if not isinstance(target.get(part), dict):
            target[part] = {}
        target = target[part]
    target[path[-1]] = value
    for length in range(1, len(path) + 1):  # what does not fit together is the override's mistake, not the file's
        origins[path[:length]] = f"override {override}"


# --- saying what is wrong --------------------------------------------------------------------------------------------


def _explain(errors: list, values: dict, origins: dict[tuple, str]) -> str:
    """One sentence for pydantic's first error: where, which key, what is wrong, what is allowed."""
    error = errors[0]
    path = parts = tuple(part for part in error["loc"] if isinstance(part, str))
    alternatives = [error["msg"]]
    if error["type"] != "extra_forbidden":
        path = next((parts[:n] for n in range(1, len(parts) + 1) if _model_at(parts[:n]) is None), parts)
    if len(parts) > len(path):  # one of several types: an error each, of which those say most that lead deepest
        union = [other for other in errors if other["loc"][: len(path)] == path]
        depth = max(len(other["loc"]) for other in union)
        deepest = [other for other in union if len(other["loc"]) == depth]
        error, alternatives = deepest[0], list(dict.fromkeys(other["msg"] for other in deepest))
    # a list's element is reported at the list's line
    origin = next((origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins), None)
    where = f"{origin}: " if origin else ""
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        known = _known_keys(path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        elsewhere = [k for k in _all_keys() if k.rpartition(".")[2] == path[-1]]
        if near:
            hint = f"did you mean {'.'.join((*path[:-1], near[0]))}?"
        elif elsewhere:
            hint = f"did you mean {elsewhere[0]}?"
        else:
            hint = f"known here: {', '.join(known)}"
        return f"{where}unknown key {key}; {hint}"
    message = " or ".join([alternatives[0], *(text.removeprefix("Input should be ") for text in alternatives[1:])])
    message = message.removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = error["input"]
    if error["type"] == "value_error" or isinstance(given, dict):
        return f"{where}{key}: {message}"
    return f"{where}{key} = {given!r}: {message}"


def _model_at(path: tuple[str, ...]) -> type[BaseModel] | None:
    model: type[BaseModel] = Config
    for part in path:
        field = model.model_fields.get(part)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return None
        model = field.annotation
    return model


def _known_keys(path: tuple[str, ...]) -> list[str]:
    model = _model_at(path)
    return list(model.model_fields) if model else []


def _all_keys(path: tuple[str, ...] = ()) -> list[str]:
    keys = []
    for name in _known_keys(path):
        here = (*path, name)
        keys += _all_keys(here) if _model_at(here) else [".".join(here)]
    return keys
