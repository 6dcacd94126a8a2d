"""Changes of the code that the tests of an earlier version did not notice, in the present layout.

Each is a mistake that somebody could make, and would be noticed by a user much later. `tests` names the mechanism's own
tests, which have to fail. `python -m tests.mutation run --listed` makes them one at a time.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ListedChange:
    """One change.

    Attributes:
        path: of the file under `harness/`.
        edits: (text, replacement); each text occurs once in the file.
        tests: files of tests, or single tests, that notice it.
    """

    id: str
    path: str
    edits: tuple[tuple[str, str], ...]
    tests: tuple[str, ...]


def change(id: str, path: str, old: str, new: str, *tests: str) -> ListedChange:
    """Return a change in one place."""
    return ListedChange(id, path, ((old, new),), tests)


LISTED = (
    change(
        "T07", "training/loop.py",
        "eval_mode(model), torch.no_grad():", "eval_mode(model):",
        "tests/training/test_loop.py::test_evaluation_computes_no_gradients",
    ),
    change(
        "T08", "training/loop.py",
        "learner, learner.eval_model, name", "learner, learner.model, name",
        "tests/training/test_loop.py::test_with_a_moving_average_it_is_the_average_that_is_evaluated",
    ),
    ListedChange(
        "T12", "training/ema.py",
        (
            ("chain(self.module.parameters(), self.module.buffers())", "chain(self.module.parameters())"),
            ("chain(model.parameters(), model.buffers())", "chain(model.parameters())"),
        ),
        ("tests/training/test_ema.py::test_the_moving_average_is_bit_identical_to_torchs_and_sends_nothing_to_the_device",),
    ),
    change(
        "T15", "training/learner.py",
        "is_smoothed=mix is not None", "is_smoothed=False",
        "tests/training/test_learner.py::test_the_loss_of_mixed_images_is_the_mean_over_both_labels_smoothed_once",
    ),
    change(
        "T19", "training/optimizer.py",
        'group["betas"] = (momentum, *group["betas"][1:])', 'group["betas"] = group["betas"]',
        "tests/training/test_learner.py::test_the_rates_and_the_momentum_of_each_update_are_those_that_torchs_optimizer_is_given",
    ),
    change(
        "T20", "training/optimizer.py",
        '"weight_decay": decay, ', "",
        "tests/training/test_learner.py::test_an_optimizer_with_skipped_steps_equals_torchs_unfused_one",
    ),
    change(
        "T26", "training/schedule.py",
        "        patience=config.plateau_patience,\n", "",
        "tests/training/test_schedule.py::test_patience_and_factor_of_the_settings_are_those_of_torchs_plateau",
    ),
    change(
        "T38", "training/distributed.py",
        "return () if self.is_main else (self.rank,)", "return ()",
        "tests/utils/test_seeding.py::test_each_argument_changed_alone_changes_the_draw_and_the_same_ones_repeat_it",
    ),
    change(
        "T44", "lr_finder/range_test.py",
        "learner.train_step(images, labels, step, schedule.lr(step), schedule.momentum_at(step))",
        "learner.train_step(images, labels, step, schedule.lr_max, schedule.momentum_at(step))",
        "tests/lr_finder/test_finder.py::test_a_short_run_is_trained_and_evaluated_as_a_whole_run_with_its_schedule",
    ),
    change(
        "T46", "lr_finder/suggestion.py",
        "math.exp(float(np.median(np.log(values))))", "float(np.median(values))",
        "tests/lr_finder/test_analysis.py::test_the_rate_of_two_seeds_is_their_geometric_mean",
    ),
    change(
        "T49", "lr_finder/analysis.py",
        "self.smoothed > max(4 * self.lowest, 1.5 * self.uniform_loss, start)", "self.smoothed > 4 * self.lowest",
        "tests/lr_finder/test_analysis.py::test_only_a_loss_above_each_of_three_bounds_is_an_explosion_and_forgetting_takes_a_while",
    ),
    change(
        "T50", "data/mixup.py",
        'seed_for(config.seed, "mix", step)', 'seed_for(0, "mix", step)',
        "tests/utils/test_seeding.py::test_each_argument_changed_alone_changes_the_draw_and_the_same_ones_repeat_it",
    ),
    change(
        "T54", "lr_finder/suggestion.py",
        "return lr if lr is None or self.divergence is None else min(lr, self.divergence / SAFETY)", "return lr",
        "tests/lr_finder/test_analysis.py::test_where_the_loss_diverges_near_the_top_of_the_accuracy_lr_max_is_a_quarter_of_that_rate",
    ),
    change(
        "V03", "data/augment.py",
        'seed_for(seed, "augment", epoch)', 'seed_for(seed, "augment", 0)',
        "tests/utils/test_seeding.py::test_each_argument_changed_alone_changes_the_draw_and_the_same_ones_repeat_it",
    ),
    change(
        "V04", "data/augment.py",
        'seed_for(seed, "augment", epoch)', 'seed_for(0, "augment", epoch)',
        "tests/utils/test_seeding.py::test_each_argument_changed_alone_changes_the_draw_and_the_same_ones_repeat_it",
    ),
    change(
        "V15", "reporting/evaluation_report.py",
        "(predictions.tta_probabilities.argmax(1) == predictions.labels)",
        "(predictions.probabilities.argmax(1) == predictions.labels)",
        "tests/reporting/test_evaluation_report.py::test_the_headline_metrics_are_those_of_scikit_learn_and_numpy",
    ),
    change(
        "V16", "reporting/evaluation_report.py",
        "metrics.accuracy(predictions, 5)", "metrics.accuracy(predictions, 1)",
        "tests/reporting/test_evaluation_report.py::test_the_headline_metrics_are_those_of_scikit_learn_and_numpy",
    ),
    ListedChange(
        "V18", "reporting/evaluation_report.py",
        (
            ("truth=self.classes[predictions.labels[index]]", "prediction=self.classes[predictions.labels[index]]"),
            (
                "prediction=self.classes[predictions.probabilities[index].argmax()]",
                "truth=self.classes[predictions.probabilities[index].argmax()]",
            ),
        ),
        ("tests/reporting/test_evaluation_report.py::test_the_maps_of_a_row_are_those_of_its_image_for_the_predicted_and_for_the_true_class",),
    ),
    change(
        "V19", "reporting/evaluation_report.py",
        "self.preprocess.image(split.picture(int(index))) for index in chosen",
        "self.preprocess.image(split.picture(int(index))) for index in sorted(chosen)",
        "tests/reporting/test_evaluation_report.py::test_the_maps_of_a_row_are_those_of_its_image_for_the_predicted_and_for_the_true_class",
    ),
    change(
        "V28", "runs/inference.py",
        "ranked = np.argsort(-probabilities)", "ranked = np.argsort(probabilities)",
        "tests/runs/test_evaluate.py::test_the_guesses_are_the_classes_by_the_models_softmax_the_most_probable_first",
    ),
    change(
        "K05", "tracking/serialization.py",
        "hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes())", "hashlib.sha256(pixels.tobytes())",
        "tests/tracking/test_journal.py::test_images_of_the_same_bytes_but_another_shape_are_two_images",
    ),
    change(
        "K16", "tracking/wandb/values.py",
        "[float(y) for y in line[::stride]]", "[float(y) for y in line[: len(curve.x[::stride])]]",
        "tests/tracking/test_wandb.py::test_the_chart_of_a_long_curve_has_points_of_the_curve_and_its_table_has_all_of_them",
    ),
    change(
        "K17", "tracking/wandb/from_journal.py",
        "            tracker.summary(journal.summary)\n", "",
        "tests/tracking/test_sync.py::test_the_log_that_is_made_of_a_journal_has_its_rows_summary_artifacts_and_exit_status",
    ),
    change(
        "K19", "tracking/wandb/from_journal.py",
        "tracker.finish(*journal.end)", 'tracker.finish("finished", 0)',
        "tests/tracking/test_sync.py::test_the_log_that_is_made_of_a_journal_has_its_rows_summary_artifacts_and_exit_status",
    ),
    change(
        "K20", "tracking/wandb/offline_log.py",
        "return int(parse_json(item.value_json))", "return int(history.step.num)",
        "tests/tracking/test_sync.py::test_the_step_of_a_row_is_its_own_item_where_it_has_one",
    ),
    change(
        "S05", "sweep/storage.py",
        '"maximize" if each else "minimize" for each in maximise', '"maximize" for each in maximise',
        "tests/sweep/test_study.py::test_a_search_is_told_its_goal_and_its_best_trial_is_that_of_the_goal",
    ),
    change(
        "S06", "sweep/selection.py",
        "(max if metric.maximise else min)(evaluated, key", "max(evaluated, key",
        "tests/sweep/test_selection.py::test_the_best_record_is_that_of_the_goal_by_the_best_or_the_last_value_of_each",
    ),
    change(
        "S08", "sweep/study.py",
        "if self._is_surplus(trial):", "if False:",
        "tests/sweep/test_study.py::test_of_two_schedulers_that_take_the_last_trial_at_once_one_gets_none",
    ),
    change(
        "S14", "sweep/scheduler.py",
        "(code < 0 or code in PREEMPTED) and self.study", "code < 0 and self.study",
        "tests/sweep/test_scheduler.py::test_a_trial_that_was_stopped_from_outside_is_run_again_and_one_that_failed_is_not",
    ),
    change(
        "S17", "sweep/results.py",
        "record.objectives[0] if record.objectives else sweep.metric.best(record.history)",
        "record.objectives[0] if record.objectives else record.history[-1]",
        "tests/sweep/test_results.py::test_the_table_of_trials_has_the_best_value_of_each_by_the_goal",
    ),
    change(
        "S21", "sweep/metric.py",
        "not self.better(self.target, value)", "self.better(self.target, value)",
        "tests/sweep/test_selection.py::test_a_target_is_reached_from_its_own_side_and_at_itself",
    ),
    change(
        "R04", "reporting/html/groups.py",
        'to_plain([settings, run.dataset.get("fingerprint")])', "to_plain([settings])",
        "tests/reporting/test_run_contents.py::test_runs_on_other_data_or_with_other_settings_are_other_groups_and_another_seed_is_the_same",
    ),
    change(
        "R06", "reporting/html/run_charts.py",
        '"cross entropy (nats)", min)', '"cross entropy (nats)", max)',
        "tests/reporting/test_run_contents.py::test_the_captions_by_epoch_name_the_last_and_the_best_value_of_each_split",
    ),
    change(
        "R08", "reporting/html/run_charts.py",
        '"overconfident" if confidence > accuracy', '"overconfident" if confidence < accuracy',
        "tests/reporting/test_run_contents.py::test_a_model_is_overconfident_where_its_confidence_is_above_its_accuracy",
    ),
    change(
        "R09", "evaluation/metrics.py",
        "images / max(int(support[truth]), 1)", "images / max(int(support[prediction]), 1)",
        "tests/evaluation/test_metrics.py::test_the_most_confused_pairs_are_the_largest_cells_off_the_diagonal",
    ),
    change(
        "R12", "reporting/html/facts.py",
        "best = max(range(len(values))", "best = min(range(len(values))",
        "tests/reporting/test_run_contents.py::test_an_unfinished_run_shows_its_last_and_its_best_epoch_so_far",
    ),
    change(
        "R13", "reporting/html/facts.py",
        '"rest of the epochs": epoch - train - evaluate,', '"rest of the epochs": epoch - train,',
        "tests/reporting/test_run_contents.py::test_the_phases_are_disjoint_and_add_up_to_the_whole_time",
    ),
    change(
        "R16", "reporting/html/run_data.py",
        'return next((split for split in ("val", "test") if f"{split}/{self.main}" in known), "test")', 'return "test"',
        "tests/reporting/test_run_contents.py::test_the_epochs_are_watched_on_validation_and_the_result_is_reported_on_test",
    ),
    change(
        "R17", "reporting/html/run_data.py",
        "x += [float(step) for step in record.steps.x]", "x = [float(step) for step in record.steps.x]",
        "tests/reporting/test_run_contents.py::test_lines_and_steps_of_all_epochs_are_read_in_their_order",
    ),
    change(
        "C08", "utils/files.py",
        "        os.replace(temporary, path)\n        sync_folder(path.parent)",
        "        path.write_bytes(temporary.read_bytes())\n        temporary.unlink()\n        sync_folder(path.parent)",
        "tests/utils/test_files.py::test_a_reader_of_the_former_file_keeps_it_while_and_after_it_is_replaced",
    ),
    change(
        "C11", "utils/seeding.py",
        '"\\x1f".join(', '"".join(',
        "tests/utils/test_seeding.py::test_keys_of_the_same_letters_but_other_parts_have_other_seeds",
    ),
    change(
        "A04", "checks/finished_run.py",
        "is_cifar10 and (train, test) == SIZES", "is_cifar10",
        "tests/checks/test_verify.py::test_cifar10_is_its_classes_and_both_numbers_of_images",
    ),
    change(
        "A05", "checks/lr_schedule.py",
        "if all(_is_near(suggestion.get(name), value)", "if any(_is_near(suggestion.get(name), value)",
        "tests/checks/test_verify.py::test_both_rates_have_to_be_those_of_one_range_test",
    ),
    change(
        "A07", "checks/augmentation.py",
        "sizes == [(CUTOUT, CUTOUT)] and is_filled", "sizes == [(CUTOUT, CUTOUT)]",
        "tests/checks/test_verify.py::test_a_cutout_that_is_not_full_deviates_though_its_box_has_the_size",
    ),
    change(
        "A09", "checks/network.py",
        "agrees = bool(abs(loss - reference) <= 1e-4 * max(1.0, abs(reference)))", "agrees = True",
        "tests/checks/test_verify.py::test_a_loss_that_is_not_the_negative_log_softmax_of_the_output_deviates",
    ),
    change(
        "U06", "runs/summary.py",
        '"epoch": epoch if selection else len(history),', '"epoch": len(history),',
        "tests/runs/test_result.py::test_the_result_is_the_epoch_with_the_highest_validation_accuracy_and_has_its_figures",
    ),
    change(
        "U07", "runs/trainer.py",
        "if self.components.selection_split and self.state.history:", "if False:",
        "tests/runs/test_result.py::test_the_saved_weights_are_those_of_the_selected_epoch_and_of_the_returned_model",
    ),
    change(
        "U09", "evaluation/trained_model.py",
        'if learner.get("ema"):', "if False:",
        "tests/runs/test_result.py::test_a_last_checkpoint_is_loaded_with_its_moving_average_and_not_with_the_weights_themselves",
    ),
    change(
        "U14", "runs/trainer.py",
        "config.select_by)[0], since) >= patience", "config.select_by)[0], since) > patience",
        "tests/runs/test_trainer.py::test_training_stops_after_exactly_as_many_epochs_without_a_better_one_as_early_stop_says",
    ),
    change(
        "U17", "runs/components.py",
        "torch.manual_seed(config.seed)", "torch.manual_seed(0)",
        "tests/runs/test_result.py::test_the_initial_weights_are_those_of_the_seed_and_of_a_plain_model_made_under_it",
    ),
    change(
        "U21", "runs/lr_find.py",
        'stored.get("digest") != config.before_extensions().digest() or not _is_usable(stored)', "not _is_usable(stored)",
        "tests/lr_finder/test_finder.py::test_the_result_of_a_test_of_other_settings_is_not_taken",
    ),
    change(
        "U23", "runs/trainer.py",
        "evaluate_batches(model, held_out, device, precision)",
        "evaluate_batches(components.learner.model, held_out, device, precision)",
        "tests/runs/test_result.py::test_the_result_is_the_epoch_with_the_highest_validation_accuracy_and_has_its_figures",
    ),
)  # fmt: skip
