"""Mutations of the code, and the tests beside it that should see them: features that do nothing, options that are
ignored, wrong constants, off by one. Run by mutants.py."""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """old: text that is in the file once. tests: files, or tests in them, with spaces between."""

    file: str
    old: str
    new: str
    tests: str


STEP = "tests/softpool3d/test_training_step.py"
AROUND = "tests/softpool3d/test_training_settings.py"
TRAINER = "tests/softpool3d/test_trainer.py"
OPTIONS = "tests/tools/test_options.py"
CLIPS = "tests/datasets/test_settings.py"
TRANSFORMS = "tests/datasets/test_transforms.py"


def _all(file: str, tests: str, *pairs: tuple[str, str]) -> list[Mutation]:
    return [Mutation(file, old, new, tests) for old, new in pairs]


_CLIPPED = f"{STEP}::test_gradients_are_clipped"
_AVERAGE = f"{STEP}::test_the_average_of_the_weights_is_updated_by_its_decay"
_PRECISE = f"{STEP}::test_precise_statistics_are_those_of_that_many_batches"
_SKIPPED = f"{STEP}::test_a_skipped_update_leaves_weights_and_running_statistics"
_BEST = f"{AROUND}::test_the_best_weights_are_tested_and_not_the_last"
_VIEWS = f"{AROUND}::test_the_final_test_has_the_views_that_were_asked_for"
_BY_STEPS = f"{TRAINER}::test_evaluation_by_steps_the_best_few_and_the_last"
_TRAIN = "softpool3d/training/trainer.py"
_SETUP = "softpool3d/training/setup.py"

_ON_DEVICE = "tests/softpool3d/test_resume.py::test_verdicts_that_stay_on_the_device_skip_the_same_updates"
_TRAINING = [
    *_all(_TRAIN, _AVERAGE, ("self.average.update_parameters(self.network, self.guard.verdict)", "pass")),
    *_all(_SETUP, _AVERAGE, ("Average(self.network, config.train.ema)", "Average(self.network, 0.999)")),
    *_all(_TRAIN, _BEST, ("load_weights(keeper.best).state", "load_weights(keeper.last).state")),
    *_all(
        _TRAIN,
        _PRECISE,
        ("if self.config.train.precise_norm:", "if False:"),
        ("clips, self.config.train.precise_norm, self.accelerator", "clips, 1, self.accelerator"),
    ),
    *_all(
        _TRAIN,
        f"{_VIEWS} {_BEST}",
        ("views = self.config.test.num_clips, self.config.test.num_crops", "views = self.config.test.num_clips, 1"),
        ("views = self.config.test.num_clips, self.config.test.num_crops", "views = 1, self.config.test.num_crops"),
    ),
    *_all(
        _TRAIN,
        _CLIPPED,
        ("nn.utils.clip_grad_value_(self.model.parameters(), optim.clip_grad_value)", "pass"),
        ("nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip_grad_norm)", "pass"),
        (
            "nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip_grad_norm)",
            "nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)",
        ),
        (
            "nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip_grad_norm)",
            "nn.utils.clip_grad_norm_(list(self.model.parameters())[-1], optim.clip_grad_norm)",
        ),
    ),
    *_all(
        _SETUP,
        f"{STEP}::test_clips_are_mixed_as_far_as_alpha_says {STEP}::test_mixing_is_told_both_alphas",
        ("config.train.mixup, config.train.cutmix)", "min(config.train.mixup, 1.0), config.train.cutmix)"),
        ("config.train.mixup, config.train.cutmix)", "config.train.mixup, min(config.train.cutmix, 1.0))"),
        ("config.train.mixup, config.train.cutmix)", "config.train.cutmix, config.train.mixup)"),
    ),
    *_all(
        _SETUP,
        f"{AROUND}::test_the_network_is_compiled_where_that_is_asked_for",
        ("if config.train.compile:", "if False:"),
    ),
    *_all(
        _SETUP,
        f"{STEP}::test_the_rate_goes_with_the_clips_of_an_update",
        (
            "Schedule(config.optim, config.train.epochs, batches.update_size * config.train.repeats)",
            "Schedule(config.optim, config.train.epochs, batches.update_size)",
        ),
    ),
    *_all(
        _SETUP,
        f"{STEP}::test_what_is_frozen_keeps_its_first_values",
        ("        freeze(model, config.optim.freeze)\n", ""),
    ),
    *_all(
        _TRAIN,
        f"{STEP}::test_what_is_frozen_keeps_its_first_values",
        ("        train_mode(self.model)\n        for step", "        self.model.train()\n        for step"),
    ),
    *_all(
        _SETUP,
        f"{STEP}::test_norms_are_those_asked_for",
        ("model = convert_norms(model, config.train, self.device)", "model = model"),
    ),
    *_all(
        _TRAIN,
        f"{AROUND}::test_clips_lie_in_memory_as_asked_for",
        ("return clips.contiguous(memory_format=self.memory_format)", "return clips.contiguous()"),
    ),
    *_all(
        _SETUP,
        f"{AROUND}::test_the_seed_decides_the_first_weights_and_the_order_of_clips",
        ("seed_everything(self.config.seed)\n        self._read", "seed_everything(0)\n        self._read"),
    ),
    *_all(
        _TRAIN,
        f"{AROUND}::test_the_state_is_saved_so_often",
        ("every = 60 * self.config.checkpoint.every_minutes", "every = 600"),
        ("processes.is_first and 0 < every <", "processes.is_first and"),
    ),
    *_all(
        _TRAIN,
        f"{STEP}::test_gradient_descent",
        (
            "clips = normalize(video, self.config.data.mean, self.config.data.std)",
            "clips = normalize(video, [0.45] * 3, self.config.data.std)",
        ),
        (
            "clips = normalize(video, self.config.data.mean, self.config.data.std)",
            "clips = normalize(video, self.config.data.mean, [0.225] * 3)",
        ),
    ),
    *_all(_TRAIN, _SKIPPED, ("self.guard.before_forward()", "pass")),
    *_all(
        _TRAIN,
        f"{_BY_STEPS} {AROUND}::test_the_last_epoch_is_always_evaluated",
        ("due = (epoch + 1) % self.config.train.eval_every == 0 or", "due = True or"),
        (
            "due = (epoch + 1) % self.config.train.eval_every == 0 or epoch + 1 == self.config.train.epochs",
            "due = (epoch + 1) % self.config.train.eval_every == 0",
        ),
        ("self.state.steps // every > self.state.reported // every", "False"),
    ),
    *_all(
        "softpool3d/training/keeper.py",
        f"{_BY_STEPS} {TRAINER}::test_early_stopping_holds_over_a_resume {_BEST}",
        ("ranked = ranked[: self._config.train.keep_best]", "ranked = ranked[:1]"),
        ("0 < self._config.train.patience <=", "0 < self._config.train.patience <"),
        ("-scores.loss()", "scores.loss()"),
        ("reverse=True", "reverse=False"),
    ),
]

_OPTIMISER = [
    *_all(
        "softpool3d/training/optim.py",
        f"{STEP}::test_momentum_and_the_decay_of_weights_alone",
        ("weight_decay if decays else 0.0", "weight_decay"),
        ("decays = parameter.ndim > 1", "decays = parameter.ndim > 2"),
        ('"momentum": config.momentum', '"momentum": 0.9'),
        ("config.nesterov and config.momentum > 0", "config.momentum > 0"),
        ("config.nesterov and config.momentum > 0", "False"),
    ),
    *_all(
        "softpool3d/training/optim.py",
        f"{STEP}::test_another_optimiser_with_its_options",
        ("kind(groups, lr=config.lr, **options)", "kind(groups, lr=config.lr)"),
        ("groups = parameter_groups(model, config.weight_decay,", "groups = parameter_groups(model, 1e-4,"),
    ),
    *_all(
        "softpool3d/training/optim.py",
        f"{STEP}::test_blocks_learn_at_rates_of_their_own tests/softpool3d/test_optim.py",
        ("layer_decay ** (deepest - depth), head", "layer_decay ** depth, head"),
        ("| depths, len(blocks)", "| depths, len(blocks) - 1"),
        ("if layer_decay < 1 or head_epochs else", "if head_epochs else"),
    ),
    *_all(
        "softpool3d/training/optim.py",
        f"{STEP}::test_the_head_learns_alone_at_first",
        ("head_epochs if depth < deepest else 0", "head_epochs"),
        ("* (epoch >= group", "* (1 + epoch >= group"),
    ),
    *_all(
        "softpool3d/training/optim.py",
        f"{STEP}::test_the_rate_of_each_update {STEP}::test_the_rate_goes_with_the_clips_of_an_update "
        f"{STEP}::test_blocks_learn_at_rates_of_their_own",
        ("config.lr * batch_size / config.base_batch", "config.lr"),
        ("min((at + 1 / steps) / warmup, 1)", "min(at / warmup, 1)"),
        ("start = config.warmup_start * self.peak", "start = 0.0"),
        ("0.5 * (1 + math.cos(math.pi * done))", "(1 - done)"),
        ("(final + (1 - final) *", "((1 - final) *"),
        ("begin = 0.0 if config.cosine_from_start else config.warmup_epochs", "begin = config.warmup_epochs"),
        ("begin = 0.0 if config.cosine_from_start else config.warmup_epochs", "begin = 0.0"),
        ("self._after_warmup(warmup) if config.cosine_from_start else self.peak", "self.peak"),
        ("config.gamma ** sum(", "0.1 ** sum("),
        ("at + 1e-9 >= milestone", "at - 0.5 >= milestone"),
        ('rate * group.get("lr_scale", 1.0)', "rate"),
        ("at = self._config, epoch + step / steps", "at = self._config, epoch + 0.0"),
    ),
    *_all(
        "softpool3d/evaluation/losses.py",
        f"{STEP}::test_the_loss_is_the_one_asked_for",
        ('reduction="sum", label_smoothing=smoothing)', 'reduction="sum")'),
        ("target.float() * (1 - smoothing) + 0.5 * smoothing", "target.float()"),
        ("target, weights, reduction", "target, None, reduction"),
        ('return binary if config.optim.loss == "binary" else cross_entropy', "return cross_entropy"),
        ("counts.sum() / (classes * counts.clip(min=1))", "counts / counts.max()"),
        ("return weights / mean", "return weights"),
    ),
    *_all(
        "softpool3d/training/norms.py",
        f"{STEP}::test_norms_are_those_asked_for {_PRECISE} tests/softpool3d/test_norms.py",
        ("made.clips = config.norm_clips", "made.clips = 8"),
        ("itertools.islice(batches, count)", "itertools.islice(batches, count + 1)"),
        ("norm.num_batches_tracked.copy_(number)", "pass"),
        ("share = self._count / total", "share = 1 / accelerator.num_processes"),
        ('self._variance + between), "sum")', 'self._variance), "sum")'),
        ("not self.training or len(input) <= self.clips", "True"),
        ("variance * count / (count - 1), momentum", "variance, momentum"),
        ("    model.eval()  # dropout draws nothing\n", ""),
    ),
    *_all(
        "softpool3d/training/guard.py",
        f"{TRAINER}::test_a_verdict_that_stays_on_the_device_skips_the_same_updates",
        ("buffer.copy_(torch.where(good, buffer, kept))", "pass"),
        ("None, (~good).float()", "None, None"),
    ),
    *_all(
        "softpool3d/training/guard.py",
        _ON_DEVICE,
        ("self.verdict = good", "self.verdict = None"),
    ),
    *_all(
        "softpool3d/training/average.py",
        _ON_DEVICE,
        ("share = made * (1 - self.decay)", "share = 1 - self.decay + 0 * made"),
        ("self.n_averaged += 1 if made is None else made", "self.n_averaged += 1"),
    ),
    *_all(
        "softpool3d/training/guard.py",
        f"{_SKIPPED} {TRAINER}::test_an_update_with_a_nan_is_skipped",
        ("copy(list(self._model.buffers()), self._buffers)", "pass"),
        ("if self._skips and not self._losses:", "if False:"),
        ('self._state["skipped"] += 1', 'self._state["skipped"] += 2'),
        ('self._state["in_a_row"] == _MOST', 'self._state["in_a_row"] == 2 * _MOST'),
    ),
    *_all(
        "softpool3d/evaluation/evaluator.py",
        f"{AROUND}::test_views_are_averaged_as_asked_for {_VIEWS}",
        (".split(config.test.batch_size)", ".split(16)"),
    ),
    *_all(
        "softpool3d/evaluation/losses.py",
        f"{AROUND}::test_views_are_averaged_as_asked_for {_VIEWS}",
        ('if config.test.average == "logits":', "if False:"),
        ("as_probabilities(logits, config).mean(-2)", "as_probabilities(logits, config)[..., 0, :]"),
    ),
    *_all(
        "softpool3d/runtime/devices.py",
        f"{AROUND}::test_accelerate_is_told_the_precision_and_how_long_to_wait",
        ('backend.allow_tf32 = config.train.precision == "tf32"', "backend.allow_tf32 = False"),
        ("timedelta(minutes=config.train.timeout_minutes)", "timedelta(minutes=10)"),
        ('{"fp32": "no", "tf32": "no"}.get(config.train.precision, config.train.precision)', '"no"'),
        ("[InitProcessGroupKwargs(timeout=timeout)]", "[]"),
        ("log_with=config.train.trackers or None", "log_with=None"),
    ),
]

_READING = [
    *_all(
        "datasets/loader.py",
        f"{CLIPS} tests/softpool3d/test_training_batches.py::test_options_of_a_batch_reach_the_network",
        ("repeats, make_cache(config.data))", "1, make_cache(config.data))"),
        ("config.data, config.seed, repeats, make_cache(config.data))", "config.data, config.seed, repeats, None)"),
        ("data.prefetch if workers else None", "2 if workers else None"),
        ('data.sample_by == "time")', "False)"),
        ("rng = np.random.default_rng((self.seed, epoch, index))", "rng = np.random.default_rng((self.seed, index))"),
    ),
    *_all(
        "softpool3d/config.py",
        f"{CLIPS}::test_sizes_of_pictures_and_what_is_cut_out",
        ("return self.test_crop_size or self.crop_size", "return self.crop_size"),
    ),
    *_all(
        "datasets/video/decoder.py",
        f"{CLIPS}::test_a_file_is_opened_as_its_settings_say",
        ("timeout_s=data.decode_timeout_s,", "timeout_s=30.0,"),
        ("decoder=data.decoder,", 'decoder="pyav",'),
        ("max_missing=data.max_missing,", ""),
    ),
    *_all(
        "datasets/sampling.py",
        f"{CLIPS} tests/datasets/test_sampling.py",
        ("data.short_clip, data.jitter)", "data.short_clip)"),
        ("(timeline.fps / data.target_fps if data.target_fps else 1)", "1"),
        ('indices % total if short == "loop" else', "indices % total if True else"),
        ("random_clip(total, frames, rate, rng, data.short_clip", 'random_clip(total, frames, rate, rng, "loop"'),
        ("num_frames) * jitter * rate", "num_frames) * rate"),
        (
            "rng.integers(max(total - clip_span(num_frames, rate), 0) + 1)",
            "rng.integers(max(total - clip_span(num_frames, rate), 0) + 2)",
        ),
        ("starts = room * (2 * number + 1)", "starts = room * (2 * number)"),
    ),
    *_all(
        "datasets/transforms.py",
        f"{CLIPS} {TRANSFORMS}",
        ("v2.RandomErasing(augment.erase_probability,", "v2.RandomErasing(1.0,"),
        ("v2.ColorJitter(*augment.color_jitter)", "v2.ColorJitter(*augment.color_jitter[::-1])"),
        ("augment.operations, augment.magnitude, interpolation", "2, augment.magnitude, interpolation"),
        ("augment.operations, augment.magnitude, interpolation", "augment.operations, 9, interpolation"),
        (
            "severity=augment.magnitude, mixture_width=augment.operations",
            "severity=3, mixture_width=augment.operations",
        ),
        ("severity=augment.magnitude, mixture_width=augment.operations", "severity=augment.magnitude, mixture_width=3"),
        ("tuple(augment.area), tuple(augment.ratio)", "(0.08, 1.0), tuple(augment.ratio)"),
        ("tuple(augment.area), tuple(augment.ratio)", "tuple(augment.area)"),
        ("kind(alpha=alpha, num_classes=num_classes)", "kind(alpha=1.0, num_classes=num_classes)"),
        ("self.data.flip and not any(", "not any("),
        ("elif augment.inverse_scale:", "elif False:"),
        ("rng.integers(low, high + 1)", "rng.integers(low, high)"),
        ("if data.no_flip_classes is None:", "if True:"),
        ("torch.rand(()) < 0.5", "torch.rand(()) < 0.0"),
    ),
    *_all(
        "datasets/multigrid.py",
        f"{CLIPS}::test_clips_of_the_multigrid_have_the_shapes_asked_for "
        "tests/datasets/test_multigrid.py::test_shapes_of_the_paper",
        ("tuple(config.short_crops) if config.short_cycle else ()", "(0.5, 0.7071) if config.short_cycle else ()"),
        ("tuple(config.long_cycles),", "(),"),
        ("Grid(base.frames, min(crop, base.crop))", "Grid(base.frames, crop)"),
    ),
    *_all(
        "datasets/cache.py",
        f"{CLIPS}::test_copies_are_kept_as_asked_for "
        "tests/datasets/test_reencode.py::test_a_cache_copies_up_to_its_limit",
        ("int(data.cache_gb * 2**30)", "8 * 2**30"),
        ("FileCache(Path(data.cache_folder), limit)", "None"),
        ("if taken > self.limit:", "if taken >= self.limit + 10**9:"),
    ),
    *_all(
        "datasets/__init__.py",
        f"{CLIPS} tests/datasets/test_layouts.py::test_hmdb51",
        ("read_motion(tuple(data.motion_clips), data.motion_seed)", "read_motion(tuple(data.motion_clips))"),
        ("read_folder(data.root, data.split, data.split_seed,", "read_folder(data.root, data.split, 0,"),
        (
            "read_folder(data.root, data.split, data.split_seed,",
            "read_folder(data.root, (0.8, 0.1, 0.1), data.split_seed,",
        ),
        ("read_hmdb51(data.root, data.official_split)", "read_hmdb51(data.root, 1)"),
    ),
]

_NETWORKS = [
    *_all(
        "models/registry.py",
        "tests/models/test_models.py::test_each_key_of_the_model_reaches_its_network",
        ("            width=model.width,\n            dropout", "            dropout"),
        ("            dropout=model.dropout,\n", ""),
        ("            checkpointing=model.checkpointing,\n", ""),
        ("            inflate=model.inflate,\n            checkpointing", "            checkpointing"),
    ),
    *_all(
        "models/pools/basic.py",
        "tests/models/test_models.py::test_each_key_of_the_model_reaches_its_network tests/models/test_pools.py",
        ("x.abs().pow(self.p)", "x.abs().pow(2)"),
        ("pow(1 / self.p)", "pow(0.5)"),
    ),
]


def _options(*names: str) -> str:
    return " ".join(f"{OPTIONS}::test_{name}" for name in names)


_CLASSIFIER = _options(
    "the_network_runs_in_the_precision_asked_for",
    "a_compiled_network_is_one",
    "the_classifier_averages_views_as_its_weights_say",
    "classify_takes_the_views_asked_for",
)
_CLASSIFY = _options(
    "classify_hands_on_how_to_run_the_network",
    "classify_takes_the_views_asked_for",
    "classify_hands_on_how_to_slide_and_what_to_watch",
    "live_labels_are_as_many_as_asked_for",
)
_CLASSIFY += " tests/tools/test_classify.py::test_going_on_after_a_kill"
_PREPARE = _options("prepare_hands_on_how_to_check_and_copy", "prepare_takes_the_official_split_asked_for")
_VISUALIZE = _options(
    "visualize_shows_the_part_and_the_poolings_asked_for",
    "visualize_lays_out_as_asked_for",
    "visualize_measures_only_where_asked_for",
)
_VERBS = [
    *_all(
        "softpool3d/inference/classifier.py",
        _CLASSIFIER,
        (
            "average_views(logits, self.config)",
            "average_views(logits[:1], self.config)",
        ),
        ("Predictor(trained, place, precision, compile, batch)", "Predictor(trained, place, None, compile, batch)"),
        ("Predictor(trained, place, precision, compile, batch)", "Predictor(trained, place, precision, False, batch)"),
        ("self.num_clips = num_clips or", "self.num_clips ="),
        ("self.num_crops = num_crops or", "self.num_crops ="),
    ),
    *_all(
        "softpool3d/inference/predictor.py",
        _CLASSIFIER,
        ("precision or self.config.train.precision", "self.config.train.precision"),
        ("torch.compile(self.network, dynamic=False)", "self.network"),
    ),
    *_all(
        "softpool3d/inference/timeline.py",
        "tests/softpool3d/test_timeline.py",
        ("_smoothed(answered, smooth)", "_smoothed(answered, 1)"),
        ("_segments(windows, classifier.classes, min_score)", "_segments(windows, classifier.classes, 0.5)"),
    ),
    *_all(
        "tools/classify.py",
        _CLASSIFY,
        ('        "num_crops": asked.crops,\n', ""),
        ('        "precision": asked.precision and asked.precision.value,\n', ""),
        ('        "max_missing": asked.max_missing,\n', ""),
        ("score = 0.5 if min_score is None else min_score", "score = 0.5"),
        ("smooth or 3", "3"),
        ("topk or 3", "3"),
        ("live or camera is not None", "live"),
        ("resume is not None, overwrite)", "resume is not None, False)"),
    ),
    *_all(
        "softpool3d/inference/each_file.py",
        _options("classify_decodes_in_the_processes_asked_for"),
        ("for result in run(left, jobs):", "for result in run(left, 1):"),
    ),
    *_all(
        "tools/ensemble.py",
        _options("ensemble_takes_the_mean_and_the_videos_asked_for"),
        ("combine(members, names, parts, mean, common)", 'combine(members, names, parts, "arithmetic", common)'),
        ("combine(members, names, parts, mean, common)", "combine(members, names, parts, mean, False)"),
        ("combine(members, names, parts, mean, common)", "combine(members, names, None, mean, common)"),
    ),
    *_all(
        "tools/compare.py",
        _options("compare_puts_the_runs_in_order"),
        ("records.sort(key=lambda record: _place(record, sort))", "pass"),
        ('-record.test() if sort == "test"', 'record.test() if sort == "test"'),
        ("return -(record.best_val() or 0.0)", "return record.best_val() or 0.0"),
    ),
    *_all(
        "tools/prepare.py",
        _PREPARE,
        ("Encoding(short_side, gop, crf)", "Encoding(short_side, gop)"),
        ("Encoding(short_side, gop, crf)", "Encoding(short_side, 16, crf)"),
        ('"max_missing": max_missing,', '"max_missing": 0.1,'),
        ("official_split=split,", "official_split=1,"),
        ("make_copies(manifests, root, out, encoding, workers,", "make_copies(manifests, root, out, encoding, None,"),
    ),
    *_all(
        "datasets/reencode.py",
        f"{OPTIONS}::test_copies_are_as_small_as_their_quality "
        "tests/datasets/test_reencode.py::test_a_copy_shows_the_same_frames_at_the_same_times",
        ("encoding.crf", "20"),
        ("encoding.gop", "16"),
    ),
    *_all(
        "tools/visualize.py",
        _VISUALIZE,
        ("read_source(clip, start, seconds, short_side)", "read_source(clip, 0.0, seconds, short_side)"),
        ("read_source(clip, start, seconds, short_side)", "read_source(clip, start, 10.0, short_side)"),
        ("read_source(clip, start, seconds, short_side)", "read_source(clip, start, seconds)"),
        (", below), columns", ", below)"),
        (", below), columns", ", False), columns"),
        ("measures = measure or csv", "measures = csv"),
    ),
    *_all(
        "tools/explain.py",
        _options("explain_looks_where_asked_for"),
        ("explain(classifier, source, label, stage)", 'explain(classifier, source, label, "stage4")'),
        ("explain(classifier, source, label, stage)", "explain(classifier, source, None, stage)"),
        ("read_source(clip, 0.0, seconds, short_side)", "read_source(clip, 0.0, 10.0, short_side)"),
        ("draw(chosen, channels, caption)", "draw(chosen, 6, caption)"),
        ("if fnmatchcase(m.name, layers)", "if True"),
    ),
    *_all(
        "tools/export.py",
        _options("export_hands_on_what_to_write"),
        ("out, plain=plain, tolerance=tolerance)", "out, plain=plain)"),
        (
            "out, plain=plain, tolerance=tolerance)",
            "out, tolerance=tolerance)",
        ),
    ),
    *_all(
        "softpool3d/inference/exporter.py",
        _options("the_tolerance_of_an_export_is_the_one_given"),
        ("if not difference <= tolerance:", "if not difference <= 1e-2:"),
    ),
    *_all(
        "tools/train.py",
        _options("train_hands_on_what_to_go_on_with"),
        ("force_resume=force_resume)", "force_resume=False)"),
        ("auto_resume=auto,", "auto_resume=False,"),
    ),
    *_all(
        "tools/test.py",
        _options("test_tests_what_it_is_told_to"),
        ("test(subject, split, out, overwrite)", "test(subject, None, out, overwrite)"),
        ("test(subject, split, out, overwrite)", "test(subject, split, out)"),
    ),
    *_all(
        "tools/study.py",
        _options("study_says_what_there_is_and_writes_its_page"),
        ("page = out or", "page = None or"),
        ("    if dry_run:\n", "    if False:\n"),
    ),
]

MUTATIONS = [*_TRAINING, *_OPTIMISER, *_READING, *_NETWORKS, *_VERBS]
