"""The configuration: every key, its default and the values that it may have.

config_file.py makes a configuration from a YAML file and the overrides of the command line.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from enum import Enum
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from softpool3d.naming import address_of
from softpool3d.yaml_text import dump

PoolKind = Literal["soft", "avg", "max", "lp", "mixed", "stochastic", "blur", "lip", "edscw", "ada", "conv"]
PoolPlace = Literal["existing", "stem", "downsample", "temporal", "head", "attention"]
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


class Effect(Enum):
    """What another value of a key changes in a run. Keys without an effect change what is learned."""

    WHERE = "where the run lies and works"
    HOW = "how it works: the same is computed"
    FREE = "what is written and when, or in how many parts an update is computed: the same is learned"
    REOPENS = "as FREE, and a run that is finished has something left to be done"
    OPTIMIZER = "what is learned; the optimiser's own state does not fit any more"


class Section(BaseModel):
    """A part of the configuration: no unknown keys, no silent conversions of meaning, checked on assignment too."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)


def _check_here(folder: str | None) -> None:
    if folder is not None and address_of(folder):
        raise ValueError(f"{folder} is an address, and this has to be a folder of this machine")


class PoolConfig(Section):
    """Which pooling, and where in the network it goes (see models/pooling.py)."""

    kind: PoolKind = "soft"  # as `softpool3d models --pools` lists them
    # the places that it is put into; existing: all poolings that the network has; []: the network as it was published
    where: Annotated[list[PoolPlace], Words] = ["existing"]
    head: PoolKind | None = None  # the kind in the head, where it is not `kind`
    beta: float | Literal["learnable"] = 1.0  # soft only: 0 is average pooling, large is max pooling
    beta_start: Annotated[float, Field(ge=1e-3, le=1e3)] = 1.0  # soft with beta: learnable only
    p: Annotated[float, Field(ge=1)] = 2.0  # lp only
    temporal: Annotated[list[Stage], Words] = []  # the stages before which time is halved, for `where: [temporal]`
    paper_stem: bool = False  # the stem's 3x3 pooling becomes 2x2, as in SoftPool's own ImageNet networks

    @model_validator(mode="after")
    def _consistent(self) -> PoolConfig:
        if ("temporal" in self.where) != bool(self.temporal):
            missing = "temporal names no stages" if "temporal" in self.where else "where does not hold `temporal`"
            raise ValueError(f"{missing}; set both, as in where: [existing, temporal] and temporal: [stage3]")
        if self.paper_stem and not {"existing", "stem"} & set(self.where):
            raise ValueError("paper_stem changes what is put into the stem; add stem or existing to where")
        if self.head and not {"head", "existing"} & set(self.where):
            raise ValueError("head says what stands in the head, and where leaves the head alone; add head to where")
        return self

    def at(self, place: str) -> PoolConfig:
        """Returns the options of a place."""
        return self.model_copy(update={"kind": self.head}) if self.head and place == "head" else self


class ModelConfig(Section):
    """The network."""

    name: str = "r3d_18"  # as `softpool3d models` lists them
    weights: str | None = None  # the initial weights: a weights file, a run, or a name (see docs/models.md)
    width: Annotated[int, Field(ge=4, le=512)] | None = None  # channels of the stem; the original's if not set
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # probability, before the last layer
    inflate: bool = False  # makes an image network a video network by repeating its weights over time
    # recompute activations in the backward: less memory, a third more time
    checkpointing: Annotated[bool, Effect.FREE] = False
    pool: PoolConfig = PoolConfig()


class AugmentConfig(Section):
    """The augmentation of a training clip, the same for all its frames (datasets/transforms.py)."""

    # scale: the short side is drawn from data.train_short_side and a square cut out; area: part of the picture is cut
    # out, by area and aspect ratio, and resized (RandomResizedCrop)
    crop: Literal["scale", "area"] = "scale"
    inverse_scale: bool = False  # draw 1 / short side, as SlowFast does
    area: Range = [0.08, 1.0]  # crop: area; drawn from this range, as a share of the picture
    ratio: Range = [0.75, 1.3333]  # crop: area; width by height, drawn from this range
    # how much each may change, at most: brightness, contrast, saturation (as shares), hue (0 to 0.5); 0: not at all
    color_jitter: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=4, max_length=4)] = [
        0.0,
        0.0,
        0.0,
        0.0,
    ]
    policy: Literal["none", "randaugment", "augmix"] = "none"  # operations on pictures, drawn at random
    operations: Annotated[int, Field(ge=1, le=10)] = 2  # randaugment: how many in a row; augmix: how many chains
    magnitude: Annotated[int, Field(ge=1, le=30)] = 9  # of randaugment; of augmix at most 10
    erase_probability: Fraction = 0.0  # probability of filling a box with the mean colour

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
    """The videos or pictures, and how clips are made of them."""

    # motion, digits: generated here; folder: videos, pictures: pictures, in class folders or lists; or kinetics400,
    # kinetics600, kinetics700, hmdb51, ucf101, ssv2
    dataset: str = "motion"
    root: Annotated[str | None, Effect.HOW] = None  # folder of the data set; `motion` is generated and has none
    # the folder that relative paths in lists start from; if not set, the list's own
    path_prefix: Annotated[str | None, Effect.HOW] = None
    num_frames: Positive = 16  # frames of a clip
    sampling_rate: Positive = 4  # every n-th frame of the video
    # dense: num_frames at sampling_rate from a random place; centred: from the middle; uniform: one frame of each of
    # num_frames equal segments (TSN)
    sampling: Literal["dense", "centred", "uniform"] = "dense"
    sample_by: Literal["index", "time"] = "index"  # time: evenly in seconds where the frame rate varies
    target_fps: Annotated[float, Field(gt=0)] | None = None  # sampling_rate counts frames of this rate, not the video's
    jitter: Fraction = 0.0  # in training, each frame moves by up to jitter * sampling_rate / 2 frames, at random
    short_clip: Literal["loop", "hold"] = "loop"  # for videos shorter than a clip: start again, or stay at the end
    # pixels, in training: each clip's is drawn from this range
    train_short_side: Annotated[list[Positive], Field(min_length=2, max_length=2)] = [128, 160]
    short_side: Positive = 128  # pixels, in evaluation
    crop_size: Positive = 112  # pixels: the side of the square that the network sees
    test_crop_size: Positive | None = None  # pixels, in evaluation; crop_size if not set
    # where a video's test.num_clips lie, of all places where a clip fits. centres: in the middle of equal parts;
    # ends: from the first place to the last; starts: where equal parts begin
    test_spacing: Annotated[Literal["centres", "ends", "starts"], Effect.REOPENS] = "centres"
    flip: bool = True  # horizontally, one clip in two
    # classes that are never flipped; null: those whose names contain the words left, right, clockwise, ...
    no_flip_classes: list[str] | None = None
    augment: AugmentConfig = AugmentConfig()
    transforms_on_device: bool = False  # crops, flips and augmentation on the GPU instead of in the workers
    # taken from red, green and blue in [0, 1]; if not set, a run takes that of model.weights where it is known
    mean: Channels = [0.45, 0.45, 0.45]
    std: Channels = [0.225, 0.225, 0.225]  # what is left is divided by it; if not set, as mean
    num_workers: Annotated[int, Field(ge=0), Effect.HOW] = 2  # processes that decode, for each process that trains
    prefetch: Annotated[Positive, Effect.HOW] = 2  # batches that each worker has ready
    decoder: Literal["pyav", "decord"] = "pyav"  # decord reads what it is known to read exactly, PyAV the rest
    # copies of the files, made at their first reading: in memory that all workers share, or in a folder on a local
    # disk; up to cache_gb
    cache: Annotated[Literal["none", "memory", "folder"], Effect.HOW] = "none"
    cache_gb: Annotated[float, Field(gt=0), Effect.HOW] = 8.0  # GB that the copies may take
    cache_folder: Annotated[str | None, Effect.HOW] = None  # cache: folder; where the copies lie
    decode_timeout_s: Annotated[float, Field(gt=0), Effect.HOW] = 30.0  # seconds; a longer decoding counts as hung
    max_missing: Fraction = 0.1  # share of a file's duration that may be cut off or undecodable before it is bad
    # share of a split's files that may be unreadable before the run stops
    max_bad_fraction: Annotated[Fraction, Effect.HOW] = 0.1
    split: Parts = [0.8, 0.1, 0.1]  # of a folder that is not split on disk: train, val, test
    split_seed: int = 0  # of that division
    official_split: Literal[1, 2, 3] = 1  # of HMDB51 and UCF101
    motion_clips: Counts = [400, 80, 80]  # train, val, test
    motion_seed: Annotated[int, Field(ge=0)] = 0  # of the clips that are generated

    @field_validator("root", "path_prefix", "cache_folder")
    @classmethod
    def _absolute(cls, folder: str | None) -> str | None:
        _check_here(folder)
        # so that a run can be resumed from another folder
        return None if folder is None else os.path.abspath(os.path.expanduser(folder))

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        if self.of_pictures and self.num_frames > 1:
            raise ValueError(
                f"dataset {self.dataset} has pictures, which are clips of one frame; set num_frames: 1 "
                f"(not {self.num_frames}), and a network for pictures, such as model.name=resnet18"
            )
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
    def is_generated(self) -> bool:
        """Whether the data set is made here, and so has no root."""
        return self.dataset in ("motion", "digits")

    @property
    def of_pictures(self) -> bool:
        """Whether the data set holds pictures, each a clip of one frame; folders of frames are none."""
        return self.dataset in ("pictures", "digits")

    @property
    def tested_crop(self) -> int:
        """Returns the side in pixels of the crops that evaluation, tests, `classify` and exported networks see."""
        return self.test_crop_size or self.crop_size


class OptimConfig(Section):
    """The optimiser, its learning rate over the epochs, and the loss."""

    # any of torch.optim, in lower case: sgd, adamw, rmsprop, ...; or of timm: lamb, lion, ...
    name: Annotated[str, Effect.OPTIMIZER] = "sgd"
    # further keywords of the optimiser, as in betas: [0.9, 0.98]
    options: Annotated[dict[str, Any], Effect.OPTIMIZER] = {}
    lr: Annotated[float, Field(gt=0)] = 0.1  # the learning rate, at its highest
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # sgd only
    nesterov: bool = True  # sgd only
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4  # not applied to norms, biases and a learnable beta
    # a block's learning rate is this factor times the rate of the block after it; the head has the full rate
    layer_decay: Annotated[float, Field(gt=0, le=1), Effect.OPTIMIZER] = 1.0
    # parameters that stay as they are, by pattern: stem*, layer1.*, ...
    freeze: Annotated[list[str], Words, Effect.OPTIMIZER] = []
    # the first epochs, in which the head alone learns: a new head's gradients would spoil layers that know something
    head_epochs: Annotated[int, Field(ge=0), Effect.OPTIMIZER] = 0
    base_batch: Positive | None = None  # lr is for updates of that many clips, and is scaled to their number
    schedule: Literal["cosine", "multistep", "constant"] = "cosine"  # after the warm-up
    milestones: list[Annotated[float, Field(gt=0)]] = []  # multistep: the epochs after which lr is multiplied by gamma
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1  # multistep: the factor at each milestone
    cosine_from_start: bool = False  # the cosine begins at epoch 0, not at the end of the warm-up
    final_lr: Fraction = 0.0  # cosine: the rate at the end, as a share of lr
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0  # the first epochs, in which the rate rises in a line to lr
    warmup_start: Fraction = 0.0  # the rate at the start of the warm-up, as a share of lr
    # binary: a sigmoid for each class; null: binary for clips with several labels, else cross_entropy
    loss: Literal["cross_entropy", "binary"] | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # the share of a label that goes to all classes evenly
    # one weight for each class; balanced: the rarer a class is in the training split, the larger its weight
    class_weights: Literal["balanced"] | list[Annotated[float, Field(ge=0)]] | None = None
    clip_grad_norm: Annotated[float, Field(ge=0)] = 0.0  # 0: no clipping
    clip_grad_value: Annotated[float, Field(ge=0)] = 0.0  # for each element; 0: no clipping

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
    """Batches of many small clips and of few large ones alternate (arXiv 1912.00998; datasets/multigrid.py)."""

    short_cycle: bool = False  # updates take turns: each of short_crops, then the whole crop
    short_crops: Annotated[list[Share], Field(min_length=1)] = [0.5, 0.7071]  # shares of the crop's side
    long_cycles: list[Positive] = []  # the epochs after which the long cycles end, as in [60, 120]; []: none
    # shares of the frames and of the side; each long cycle goes through them in order, with equal numbers of updates
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
    """How the network is trained, and when it is evaluated."""

    epochs: Positive = 30  # passes over the training clips
    batch_size: Annotated[Positive, Effect.FREE] = 16  # clips that a process takes at once
    repeats: Positive = 1  # clips of each video in a batch, decoded together (repeated augmentation, arXiv 1901.09335)
    mixup: Annotated[float, Field(ge=0)] = 0.0  # alpha of arXiv 1710.09412; 0: off
    cutmix: Annotated[float, Field(ge=0)] = 0.0  # alpha of arXiv 1905.04899; with both, each batch draws one
    multigrid: MultigridConfig = MultigridConfig()
    accumulate: Annotated[Positive, Effect.FREE] = 1  # batches per optimiser step
    # clips of an optimiser step, over all processes. If it is set, a process takes at most batch_size of them at once,
    # and accumulate is computed from that. If not, a step has batch_size * accumulate * processes clips.
    global_batch: Annotated[Positive | None, Effect.FREE] = None
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"  # all but fp32 need a GPU
    compile: bool = False  # torch.compile
    # divides parameters, their average, gradients and optimiser state among the processes (FSDP)
    shard: Annotated[bool, Effect.FREE] = False
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0  # decay of an average of the weights, as 0.999; 0: none
    # batch norm over a process's batch, over the batches of all processes, or over parts of a batch
    norm: Literal["batch", "sync", "split"] = "batch"
    norm_clips: Positive = 8  # split: clips of a part
    precise_norm: Annotated[int, Field(ge=0)] = 0  # batches that running statistics are computed from before evaluating
    # what happens at an update whose loss or gradient is NaN or infinite
    on_nonfinite: Annotated[Literal["stop", "skip"], Effect.FREE] = "stop"
    memory_format: Literal["channels_last_3d", "contiguous"] = "channels_last_3d"  # order of values; concerns speed
    # how long processes wait for each other before they give up
    timeout_minutes: Annotated[float, Field(gt=0), Effect.HOW] = 10.0
    eval_every: Annotated[Positive, Effect.FREE] = 1  # epochs; the last one is always evaluated
    eval_every_steps: Annotated[Positive | None, Effect.FREE] = None  # and after every n batches
    # more than one: the best few are in the run's folder kept/, beside best.safetensors
    keep_best: Annotated[Positive, Effect.FREE] = 1
    trackers: Annotated[list[Tracker], Words, Effect.FREE] = []  # beside TensorBoard
    # evaluations without a better one before the run stops early; 0: never
    patience: Annotated[int, Field(ge=0), Effect.REOPENS] = 0

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
        """Returns the clips of an optimiser step over all processes, and the batches in which each takes its share."""
        if self.global_batch is None:
            return self.batch_size * self.accumulate * processes, self.accumulate
        return self.global_batch, math.ceil(self.global_batch / (processes * self.batch_size))


class CheckpointConfig(Section):
    """What a run that is killed goes on from."""

    every_minutes: Annotated[float, Field(ge=0), Effect.HOW] = 10.0  # and after each epoch; 0: only after each epoch


class TestConfig(Section):
    """What a test sees of each video."""

    num_clips: Annotated[Positive, Effect.REOPENS] = 5  # clips of each video, spaced as data.test_spacing says
    num_crops: Annotated[Literal[1, 3], Effect.REOPENS] = 1  # 1: the centre; 3: along the longer side
    # what is averaged over the views: the probabilities (softmax or sigmoid), or the logits
    average: Annotated[Literal["softmax", "logits"], Effect.REOPENS] = "softmax"
    batch_size: Annotated[Positive, Effect.HOW] = 16  # clips, crops of one video included, that are computed at once

    __test__ = False  # not a test case, whatever pytest thinks of the name


class Config(Section):
    name: Annotated[str, Effect.WHERE] = Field(
        "run", pattern=r"^[^/\\]*[^/\\.][^/\\]*$"
    )  # the run's folder is <output>/<name>
    output: Annotated[str, Effect.WHERE] = "runs"  # the folder that runs lie in
    seed: Annotated[int, Field(ge=0)] = 0  # of all that is random: new weights, the order of clips, augmentation
    device: Annotated[str, Effect.WHERE] = "auto"  # cpu, cuda, cuda:1, ...
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    test: TestConfig = TestConfig()

    @field_validator("output")
    @classmethod
    def _here(cls, folder: str) -> str:
        _check_here(folder)
        return folder

    def to_yaml(self) -> str:
        return dump(self.model_dump())

    def flat(self) -> dict[str, Any]:
        """Returns every value by its dotted key, as overrides name it."""
        return dict(_leaves(self.model_dump()))


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def has_effect(key: str, *effects: Effect) -> bool:
    """Whether another value of a dotted key has one of these effects; what is in a dictionary has the dictionary's."""
    marked = _keys_of(effects)
    return key in marked or any(key.startswith(f"{name}.") for name in marked)


@cache
def _keys_of(effects: tuple[Effect, ...]) -> frozenset[str]:
    return frozenset(_marked(Config, effects, ""))


def _marked(section: type[Section], effects: tuple[Effect, ...], prefix: str) -> Iterator[str]:
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _marked(field.annotation, effects, f"{prefix}{key}.")
        elif any(effect in field.metadata for effect in effects):
            yield f"{prefix}{key}"


def differing(configs: Sequence[Config]) -> dict[str, list[Any]]:
    """Returns the keys whose values differ, in the order of the file: key -> the value in each configuration."""
    flat = [config.flat() for config in configs]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    table = {key: [values.get(key) for values in flat] for key in keys}
    return {key: values for key, values in table.items() if any(value != values[0] for value in values)}
