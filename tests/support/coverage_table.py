"""Which test fails when a key of the configuration, or an option of a verb, is ignored or misread.

tests/test_table.py holds this against the configuration and the command: a new key or option needs an entry, and a test
that sees what it does.
"""

from __future__ import annotations


def _of(test: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, test)


def _under(prefix: str, table: dict[str, str]) -> dict[str, str]:
    return {f"{prefix}{name}": test for name, test in table.items()}


_STEP = "tests/softpool3d/test_training_step.py::"
_AROUND = "tests/softpool3d/test_training_settings.py::"
_CLIPS = "tests/datasets/test_settings.py::"
_OPTIONS = "tests/tools/test_options.py::"
_CLASSIFY = "tests/tools/test_classify.py::"
_EMBED = "tests/tools/test_embed.py::"
_PROBE = "tests/tools/test_probe.py::"
_RAY = "tests/cluster/test_ray.py::"
_TRAINER = "tests/softpool3d/test_trainer.py::"
_TRANSFORMS = "tests/datasets/test_transforms.py::"

_DATA = {
    **_of(_CLIPS + "test_a_folder_is_split_as_asked_for", "dataset", "root", "split", "split_seed"),
    **_of("tests/datasets/test_lists.py::test_a_prefix_of_paths", "path_prefix"),
    **_of(_CLIPS + "test_frames_of_a_clip_and_how_they_lie", "num_frames", "sampling_rate", "sampling", "jitter"),
    **_of(_CLIPS + "test_a_clip_longer_than_its_video", "short_clip"),
    **_of(_CLIPS + "test_rates_count_in_frames_or_in_seconds", "sample_by", "target_fps"),
    **_of(
        _CLIPS + "test_sizes_of_pictures_and_what_is_cut_out",
        *("train_short_side", "short_side", "crop_size", "test_crop_size"),
    ),
    **_of("tests/datasets/test_sampling.py::test_spaced_clips_lie_where_they_are_asked_for", "test_spacing"),
    **_of(_CLIPS + "test_clips_are_mirrored_where_they_may_be", "flip", "no_flip_classes"),
    **_of(_TRANSFORMS + "test_areas_and_ratios_are_those_asked_for", "augment.crop", "augment.area", "augment.ratio"),
    **_of(_TRANSFORMS + "test_short_sides_are_drawn_from_the_range", "augment.inverse_scale"),
    **_of(_CLIPS + "test_each_colour_is_jittered_as_far_as_asked_for", "augment.color_jitter"),
    **_of(
        _CLIPS + "test_what_is_drawn_of_a_policy",
        *("augment.policy", "augment.operations", "augment.magnitude"),
    ),
    **_of(_CLIPS + "test_boxes_are_erased_as_often_as_asked_for", "augment.erase_probability"),
    **_of(
        "tests/softpool3d/test_training_batches.py::test_options_of_a_batch_reach_the_network", "transforms_on_device"
    ),
    **_of(_STEP + "test_gradient_descent", "mean", "std"),
    **_of(_CLIPS + "test_workers_and_batches_that_they_have_ready", "num_workers", "prefetch"),
    **_of(_CLIPS + "test_a_file_is_opened_as_its_settings_say", "decoder", "decode_timeout_s", "max_missing"),
    **_of(_CLIPS + "test_copies_are_kept_as_asked_for", "cache", "cache_gb", "cache_folder"),
    **_of(_TRAINER + "test_bad_files_are_skipped_named_once_and_counted", "max_bad_fraction"),
    **_of("tests/datasets/test_layouts.py::test_hmdb51", "official_split"),
    **_of(_CLIPS + "test_the_embedded_data_set_is_made_as_asked_for", "motion_clips", "motion_seed"),
}

_OPTIM = {
    **_of(_STEP + "test_gradient_descent", "lr"),
    **_of(_STEP + "test_another_optimiser_with_its_options", "name", "options"),
    **_of(_STEP + "test_momentum_and_the_decay_of_weights_alone", "momentum", "nesterov", "weight_decay"),
    **_of(_STEP + "test_blocks_learn_at_rates_of_their_own", "layer_decay"),
    **_of(_STEP + "test_the_head_learns_alone_at_first", "head_epochs"),
    **_of(_STEP + "test_what_is_frozen_keeps_its_first_values", "freeze"),
    **_of(_STEP + "test_the_rate_goes_with_the_clips_of_an_update", "base_batch"),
    **_of(
        _STEP + "test_the_rate_of_each_update",
        *("schedule", "milestones", "gamma", "cosine_from_start", "final_lr", "warmup_epochs", "warmup_start"),
    ),
    **_of(_STEP + "test_the_loss_is_the_one_asked_for", "loss", "label_smoothing", "class_weights"),
    **_of(_STEP + "test_gradients_are_clipped", "clip_grad_norm", "clip_grad_value"),
}

_TRAIN = {
    **_of(_STEP + "test_the_rate_of_each_update", "epochs"),
    **_of(_STEP + "test_batches_add_up_to_an_update", "batch_size", "accumulate", "global_batch"),
    **_of("tests/softpool3d/test_training_batches.py::test_options_of_a_batch_reach_the_network", "repeats"),
    **_of(_STEP + "test_clips_are_mixed_as_far_as_alpha_says", "mixup", "cutmix"),
    **_of(
        _CLIPS + "test_clips_of_the_multigrid_have_the_shapes_asked_for",
        *("multigrid.short_cycle", "multigrid.short_crops", "multigrid.long_cycles", "multigrid.long_shapes"),
    ),
    **_of(_AROUND + "test_accelerate_is_told_the_precision_and_how_long_to_wait", "precision", "timeout_minutes"),
    **_of(_AROUND + "test_the_network_is_compiled_where_that_is_asked_for", "compile"),
    **_of("tests/softpool3d/test_sharding.py::test_what_cannot_be_sharded", "shard"),
    **_of(_STEP + "test_the_average_of_the_weights_is_updated_by_its_decay", "ema"),
    **_of(_STEP + "test_norms_are_those_asked_for", "norm", "norm_clips"),
    **_of(_STEP + "test_precise_statistics_are_those_of_that_many_batches", "precise_norm"),
    **_of(_STEP + "test_a_skipped_update_leaves_weights_and_running_statistics", "on_nonfinite"),
    **_of(_AROUND + "test_clips_lie_in_memory_as_asked_for", "memory_format"),
    **_of(
        _TRAINER + "test_evaluation_by_steps_the_best_few_and_the_last", "eval_every", "eval_every_steps", "keep_best"
    ),
    **_of("tests/softpool3d/test_trackers.py::test_a_run_goes_on_as_the_same_run_there", "trackers"),
    **_of(_TRAINER + "test_early_stopping_holds_over_a_resume", "patience"),
}

KEYS = {
    **_of(_AROUND + "test_a_run_goes_into_the_folder_of_its_name", "name", "output"),
    **_of(_AROUND + "test_the_seed_decides_the_first_weights_and_the_order_of_clips", "seed"),
    **_of(_TRAINER + "test_requests_that_cannot_be_met_write_nothing", "device"),
    **_under(
        "model.",
        {
            **_of(
                "tests/models/test_models.py::test_each_key_of_the_model_reaches_its_network",
                *("name", "width", "dropout", "inflate", "checkpointing", "pool.kind", "pool.where", "pool.head"),
                *("pool.beta", "pool.beta_start", "pool.p", "pool.temporal", "pool.paper_stem"),
            ),
            **_of(_TRAINER + "test_weights_to_start_from", "weights"),
        },
    ),
    **_under("data.", _DATA),
    **_under("optim.", _OPTIM),
    **_under("train.", _TRAIN),
    **_of(_AROUND + "test_the_state_is_saved_so_often", "checkpoint.every_minutes"),
    **_under(
        "test.",
        {
            **_of(_AROUND + "test_the_final_test_has_the_views_that_were_asked_for", "num_crops", "batch_size"),
            **_of(_AROUND + "test_the_best_weights_are_tested_and_not_the_last", "num_clips"),
            **_of(_AROUND + "test_views_are_averaged_as_asked_for", "average"),
        },
    ),
}

OPTIONS = {
    **_of("tests/tools/test_command_line.py::test_version", "--version"),
    **_of(
        "tests/tools/test_command_line.py::test_completion_of_the_shell", "--install-completion", "--show-completion"
    ),
    **_under(
        "prepare ",
        {
            **_of("tests/tools/test_prepare.py::test_prepare_writes_what_training_reads", "dataset", "--root"),
            **_of(
                "tests/datasets/test_lists.py::test_prepare_takes_the_prefix_and_writes_paths_that_need_none",
                "--path-prefix",
            ),
            **_of(_OPTIONS + "test_prepare_takes_the_official_split_asked_for", "--split"),
            **_of(
                _OPTIONS + "test_prepare_hands_on_how_to_check_and_copy",
                *("--verify", "--reencode", "--short-side", "--gop", "--crf", "--max-missing", "--out", "--workers"),
            ),
            **_of(_RAY + "test_features_and_checks", "--engine", "--address"),
        },
    ),
    **_under(
        "train ",
        _of(
            _OPTIONS + "test_train_hands_on_what_to_go_on_with",
            *("--cfg", "--resume", "--force-resume", "--print-config"),
        ),
    ),
    **_under(
        "train ",
        _of(
            "tests/softpool3d/test_choosing.py::test_a_folder_is_all_that_training_needs",
            *("arguments", "--dry-run"),
        ),
    ),
    **_under(
        "test ",
        _of(
            _OPTIONS + "test_test_tests_what_it_is_told_to",
            *("overrides", "--weights", "--cfg", "--split", "--out", "--overwrite"),
        ),
    ),
    **_under(
        "ensemble ",
        _of(
            _OPTIONS + "test_ensemble_takes_the_mean_and_the_videos_asked_for",
            *("scores", "--weights", "--mean", "--common", "--out", "--overwrite"),
        ),
    ),
    **_under(
        "compare ",
        _of(_OPTIONS + "test_compare_puts_the_runs_in_order", "runs", "--out", "--sort", "--overwrite"),
    ),
    **_under(
        "study ",
        _of(
            _OPTIONS + "test_study_says_what_there_is_and_writes_its_page",
            *("overrides", "--cfg", "--data", "--out", "--jobs", "--dry-run"),
        ),
    ),
    **_under(
        "classify ",
        {
            **_of(
                _OPTIONS + "test_classify_hands_on_how_to_run_the_network",
                *("--weights", "--max-missing", "--trust", "--views", "--crops", "--device", "--precision"),
                "--compile",
            ),
            **_of(_OPTIONS + "test_classify_in_batches_of_the_size_asked_for", "--batch"),
            **_of(_RAY + "test_labels_are_those_of_one_machine_to_the_bit", "--engine", "--address"),
            **_of(_CLASSIFY + "test_inputs", "videos", "--manifest", "--json"),
            **_of(_CLASSIFY + "test_a_folder_and_the_shipped_network_is_right", "--topk", "--out"),
            **_of(_OPTIONS + "test_classify_decodes_in_the_processes_asked_for", "--jobs"),
            **_of(_CLASSIFY + "test_going_on_after_a_kill", "--resume", "--overwrite"),
            **_of(_CLASSIFY + "test_timeline", "--timeline", "--plot", "--annotate"),
            **_of(_OPTIONS + "test_a_stream_that_comes_back_goes_on", "--reconnect"),
            **_of(
                _OPTIONS + "test_classify_hands_on_how_to_slide_and_what_to_watch",
                *("--window", "--hop", "--smooth", "--min-score", "--camera", "--stream", "--live"),
            ),
        },
    ),
    **_under(
        "embed ",
        {
            **_of(_EMBED + "test_a_folder_becomes_a_file_and_goes_on", "videos", "--out", "--resume", "--overwrite"),
            **_of(_EMBED + "test_numpy_alone_reads_them", "--layer", "--pool"),
            **_of(_EMBED + "test_windows_are_rows", "--window", "--hop"),
            **_of(_EMBED + "test_parts_of_files_are_named_with_their_times", "--manifest"),
            **_of(
                _EMBED + "test_embed_hands_on_how_to_run_the_network",
                *(
                    "--weights",
                    "--views",
                    "--crops",
                    "--device",
                    "--precision",
                    "--compile",
                    "--max-missing",
                    "--batch",
                ),
            ),
            **_of(_RAY + "test_features_and_checks", "--engine", "--address"),
            **_of(_EMBED + "test_embed_decodes_in_the_processes_asked_for", "--jobs"),
        },
    ),
    **_under(
        "probe ",
        {
            **_of(_PROBE + "test_folders_are_classes_and_a_list_says_the_same", "--labels", "--folds", "--json"),
            **_of(_PROBE + "test_a_test_list_is_what_is_tested", "--test"),
            **_of(_PROBE + "test_groups_are_kept_apart", "--neighbours"),
            **_of(_PROBE + "test_windows_are_averaged_and_files_add_up", "features"),
        },
    ),
    **_under(
        "visualize ",
        {
            **_of("tests/tools/test_visualize.py::test_a_picture_and_others_that_fail", "clips"),
            **_of("tests/tools/test_visualize.py::test_mp4_side_by_side_in_step", "--out"),
            **_of("tests/tools/test_visualize.py::test_repeat_as_gif_and_png", "--format"),
            **_of("tests/tools/test_visualize.py::test_measures_and_reports", "--csv", "--plot", "--report"),
            **_of(
                _OPTIONS + "test_visualize_shows_the_part_and_the_poolings_asked_for",
                *("--kernel", "--pools", "--beta", "--repeat", "--start", "--seconds", "--short-side"),
            ),
            **_of(_OPTIONS + "test_visualize_lays_out_as_asked_for", "--below", "--columns", "--overwrite"),
            **_of(_OPTIONS + "test_visualize_measures_only_where_asked_for", "--measure"),
        },
    ),
    **_under(
        "explain ",
        {
            **_of("tests/visual/test_explain.py::test_commands", "--method", "--out"),
            **_of(
                _OPTIONS + "test_explain_looks_where_asked_for",
                *("clip", "--weights", "--class", "--stage", "--channels", "--layers", "--seconds", "--short-side"),
                *("--device", "--overwrite"),
            ),
        },
    ),
    **_under(
        "export ",
        _of(
            _OPTIONS + "test_export_hands_on_what_to_write",
            *("--weights", "--out", "--to", "--plain", "--tolerance", "--overwrite"),
        ),
    ),
    **_under(
        "app ",
        _of(
            "tests/tools/test_app.py::test_options_reach_the_server",
            *("--weights", "--runs", "--port", "--host", "--password", "--open"),
        ),
    ),
    **_under(
        "models ",
        {
            **_of("tests/tools/test_models.py::test_one_network", "name", "--set"),
            **_of("tests/tools/test_models.py::test_the_kinds_of_pooling", "--pools"),
            **_of("tests/tools/test_models.py::test_the_page", "--save"),
        },
    ),
}
