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
        "with eval_mode(model), torch.no_grad():", "with eval_mode(model):",
        "tests/training/test_loop.py",
    ),
    change(
        "T08", "training/loop.py",
        "learner.eval_model, batches, learner.device", "learner.model, batches, learner.device",
        "tests/training/test_loop.py",
    ),
    ListedChange(
        "T12", "training/ema.py",
        (
            ("chain(self.module.parameters(), self.module.buffers())", "chain(self.module.parameters())"),
            ("chain(model.parameters(), model.buffers())", "chain(model.parameters())"),
        ),
        ("tests/training/test_ema.py",),
    ),
    change(
        "T15", "training/learner.py",
        "label_smoothing=0.0 if mix else config.label_smoothing,", "label_smoothing=config.label_smoothing,",
        "tests/training/test_learner.py",
    ),
    change(
        "T19", "training/optimizer.py",
        'group["betas"] = (momentum, group["betas"][1])', 'group["betas"] = group["betas"]',
        "tests/training/test_optimizer.py",
    ),
    change(
        "T20", "training/optimizer.py",
        '"weight_decay": config.weight_decay / scale, ', "",
        "tests/training/test_learner.py",
    ),
    change(
        "T26", "training/schedule.py",
        "        patience=config.plateau_patience,\n", "",
        "tests/training/test_schedule.py",
    ),
    change(
        "T38", "training/distributed.py",
        "return () if self.is_main else (self.rank,)", "return ()",
        "tests/utils/test_seeding.py",
    ),
    change(
        "T44", "lr_finder/range_test.py",
        "learner.train_step(images, labels, step, schedule.lr(step), schedule.momentum_at(step))",
        "learner.train_step(images, labels, step, schedule.lr_max, schedule.momentum_at(step))",
        "tests/lr_finder/test_finder.py",
    ),
    change(
        "T46", "lr_finder/suggestion.py",
        "math.exp(float(np.median(np.log(values))))", "float(np.median(values))",
        "tests/lr_finder/test_analysis.py",
    ),
    change(
        "T49", "lr_finder/analysis.py",
        "self.smoothed > max(4 * self.lowest, 1.5 * self.uniform_loss, start)", "self.smoothed > 4 * self.lowest",
        "tests/lr_finder/test_analysis.py",
    ),
    change(
        "T50", "data/mixup.py",
        'seed_for(config.seed, "mix", step)', 'seed_for(0, "mix", step)',
        "tests/utils/test_seeding.py",
    ),
    change(
        "T54", "lr_finder/suggestion.py",
        "return lr if lr is None or self.divergence is None else min(lr, self.divergence / SAFETY)", "return lr",
        "tests/lr_finder/test_analysis.py",
    ),
    change(
        "V03", "data/augment.py",
        'seed_for(seed, "augment", epoch)', 'seed_for(seed, "augment", 0)',
        "tests/utils/test_seeding.py", "tests/data/test_augment.py",
    ),
    change(
        "V04", "data/augment.py",
        'seed_for(seed, "augment", epoch)', 'seed_for(0, "augment", epoch)',
        "tests/utils/test_seeding.py", "tests/data/test_augment.py",
    ),
    change(
        "V15", "reporting/evaluation_report.py",
        "(predictions.tta_probabilities.argmax(1) == predictions.labels)",
        "(predictions.probabilities.argmax(1) == predictions.labels)",
        "tests/reporting/test_evaluation_report.py",
    ),
    change(
        "V16", "reporting/evaluation_report.py",
        "metrics.accuracy(predictions, 5)", "metrics.accuracy(predictions, 1)",
        "tests/reporting/test_evaluation_report.py",
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
        ("tests/reporting/test_evaluation_report.py",),
    ),
    change(
        "V19", "reporting/evaluation_report.py",
        "self.preprocess.image(split.picture(int(index))) for index in chosen",
        "self.preprocess.image(split.picture(int(index))) for index in sorted(chosen)",
        "tests/reporting/test_evaluation_report.py",
    ),
    change(
        "V28", "runs/inference.py",
        "order = np.argsort(-probabilities)[:top]", "order = np.argsort(probabilities)[:top]",
        "tests/runs/test_evaluate.py",
    ),
    change(
        "K05", "tracking/serialization.py",
        "hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes())", "hashlib.sha256(pixels.tobytes())",
        "tests/tracking/test_journal.py",
    ),
    change(
        "K16", "tracking/wandb/values.py",
        "[float(y) for y in line[::stride]]", "[float(y) for y in line[: len(curve.x[::stride])]]",
        "tests/tracking/test_wandb.py",
    ),
    change(
        "K17", "tracking/wandb/from_journal.py",
        "            tracker.summary(journal.summary)\n", "",
        "tests/tracking/test_sync.py",
    ),
    change(
        "K19", "tracking/wandb/from_journal.py",
        'tracker.finish(journal.status or "failed", 1 if journal.exit_code is None else journal.exit_code)',
        'tracker.finish("finished", 0)',
        "tests/tracking/test_sync.py",
    ),
    change(
        "K20", "tracking/wandb/offline_log.py",
        "return int(json.loads(item.value_json))", "return int(history.step.num)",
        "tests/tracking/test_sync.py",
    ),
    change(
        "S05", "sweep/storage.py",
        '"maximize" if each else "minimize" for each in maximise', '"maximize" for each in maximise',
        "tests/sweep/test_study.py",
    ),
    change(
        "S06", "sweep/selection.py",
        "(max if metric.maximise else min)(evaluated, key", "max(evaluated, key",
        "tests/sweep/test_selection.py", "tests/sweep/test_study.py",
    ),
    change(
        "S08", "sweep/study.py",
        "if self._is_surplus(trial):", "if False:",
        "tests/sweep/test_study.py",
    ),
    change(
        "S14", "sweep/scheduler.py",
        "(code < 0 or code in PREEMPTED) and self.study", "code < 0 and self.study",
        "tests/sweep/test_scheduler.py",
    ),
    change(
        "S17", "sweep/results.py",
        "record.objectives[0] if record.objectives else sweep.metric.best(record.history)",
        "record.objectives[0] if record.objectives else record.history[-1]",
        "tests/sweep/test_results.py",
    ),
    change(
        "S21", "sweep/metric.py",
        "not self.better(self.target, value)", "self.better(self.target, value)",
        "tests/sweep/test_selection.py",
    ),
    change(
        "R04", "reporting/html/groups.py",
        'to_plain([settings, run.dataset.get("fingerprint")])', "to_plain([settings])",
        "tests/reporting/test_run_contents.py",
    ),
    change(
        "R06", "reporting/html/run_charts.py",
        '"cross entropy (nats)", min)', '"cross entropy (nats)", max)',
        "tests/reporting/test_run_contents.py",
    ),
    change(
        "R08", "reporting/html/run_charts.py",
        '"overconfident" if confidence > accuracy', '"overconfident" if confidence < accuracy',
        "tests/reporting/test_run_contents.py",
    ),
    change(
        "R09", "evaluation/metrics.py",
        "images / max(int(support[truth]), 1)", "images / max(int(support[prediction]), 1)",
        "tests/evaluation/test_metrics.py",
    ),
    change(
        "R12", "reporting/html/facts.py",
        "best = max(range(len(values))", "best = min(range(len(values))",
        "tests/reporting/test_run_contents.py",
    ),
    change(
        "R13", "reporting/html/facts.py",
        '"rest of the epochs": epoch - train - evaluate,', '"rest of the epochs": epoch - train,',
        "tests/reporting/test_run_contents.py",
    ),
    change(
        "R16", "reporting/html/run_data.py",
        'return next((split for split in ("val", "test") if f"{split}/acc" in known), "test")', 'return "test"',
        "tests/reporting/test_run_contents.py",
    ),
    change(
        "R17", "reporting/html/run_data.py",
        "x += [float(step) for step in record.steps.x]", "x = [float(step) for step in record.steps.x]",
        "tests/reporting/test_run_contents.py",
    ),
    change(
        "C08", "utils/files.py",
        "        os.replace(temporary, path)\n        sync_folder(path.parent)",
        "        path.write_bytes(temporary.read_bytes())\n        temporary.unlink()\n        sync_folder(path.parent)",
        "tests/utils/test_files.py",
    ),
    change(
        "C11", "utils/seeding.py",
        '"\\x1f".join(', '"".join(',
        "tests/utils/test_seeding.py",
    ),
    change(
        "A04", "checks/finished_run.py",
        "is_cifar10 and (train, test) == SIZES", "is_cifar10",
        "tests/checks/test_verify.py",
    ),
    change(
        "A05", "checks/lr_schedule.py",
        "if all(_is_near(suggestion.get(name), value)", "if any(_is_near(suggestion.get(name), value)",
        "tests/checks/test_verify.py",
    ),
    change(
        "A07", "checks/augmentation.py",
        "sizes == [(CUTOUT, CUTOUT)] and is_filled", "sizes == [(CUTOUT, CUTOUT)]",
        "tests/checks/test_verify.py",
    ),
    change(
        "A09", "checks/network.py",
        "agrees = bool(abs(loss - reference) <= 1e-4 * max(1.0, abs(reference)))", "agrees = True",
        "tests/checks/test_verify.py",
    ),
    change(
        "U06", "runs/summary.py",
        '"epoch": epoch if selection else len(history),', '"epoch": len(history),',
        "tests/runs/test_result.py",
    ),
    change(
        "U07", "runs/trainer.py",
        "if self.components.selection_split and self.state.history:", "if False:",
        "tests/runs/test_result.py",
    ),
    change(
        "U09", "evaluation/trained_model.py",
        'if learner.get("ema"):', "if False:",
        "tests/runs/test_result.py",
    ),
    change(
        "U14", "runs/trainer.py",
        'best_epoch(history, "val")[0] >= patience', 'best_epoch(history, "val")[0] > patience',
        "tests/runs/test_result.py",
    ),
    change(
        "U17", "runs/components.py",
        "torch.manual_seed(config.seed)", "torch.manual_seed(0)",
        "tests/runs/test_result.py",
    ),
    change(
        "U21", "runs/lr_find.py",
        'stored.get("digest") != config.digest() or not _is_usable(stored)', "not _is_usable(stored)",
        "tests/lr_finder/test_finder.py",
    ),
    change(
        "U23", "runs/trainer.py",
        "evaluate_batches(model, held_out, device, precision)",
        "evaluate_batches(components.learner.model, held_out, device, precision)",
        "tests/runs/test_result.py",
    ),
)  # fmt: skip
