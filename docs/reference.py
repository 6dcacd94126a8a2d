"""The files of a run, of a sweep and of several seeds, and the metrics of a journal, as data for the pages of `make.py`.

A pattern is a path below the directory, as `fnmatch` reads it; `when` is empty for what always exists. Tests compare all
of it with real runs, in both directions.
"""

from typing import NamedTuple

from harness.runs import lr_find, seeds
from harness.sweep import results
from harness.tracking.chosen_settings import CHOSEN
from harness.tracking.journal import NAME as JOURNAL
from harness.tracking.run_dir import CHECKPOINTS, CONFIG, DATASET, FIGURES, STATUS, SUMMARY
from harness.tracking.run_files import CONSOLE, DIFF, EXPORT
from harness.tracking.serialization import MEDIA
from harness.training.checkpoint import INDEX, LAST, PREVIOUS
from harness.utils.checksums import SUMS


class File(NamedTuple):
    pattern: str
    about: str
    when: str = ""


class Metric(NamedTuple):
    key: str
    unit: str
    about: str
    when: str = ""
    where: str = ""  # empty: journal and history


REPORT = "report.html"
SEEN, MAPS = "`--gallery` above 0", "`--gallery` above 0 and a `--cam`"
FIND, EVALUATE, EVERY = "a range test", "`harness evaluate`", "`--explain-every`"
TRACKED_EXPORT = "`harness export --wandb`"
JOURNAL_ONLY, IN_SUMMARY = "journal", "journal, summary"
CHANGES, WATCH = "uncommitted changes", "`--watch`"
GROUPS = "`--layer-decay`, `--head-lr-scale` or `--bias-lr-scale`"
CLIP, ENOUGH = "`--clip-grad`", "enough trials to tell"
TENSORBOARD, MLFLOW, TRACKIO = "`--tracker tensorboard`", "`--tracker mlflow`", "`--tracker trackio`"
SEVERAL, TRACKED = "several metrics", "`harness explain` with a tracker"
AUTOMATIC = "a setting was `auto`"
ONE_LABEL, MULTILABEL = "one label per image", "several labels per image"
VAL, NO_VAL, TEST, TTA = "`--val-fraction`", "no validation split", "a test set", "`--tta`"

RUN = (
    File(CONFIG, "every setting of the run; it is a recipe that repeats the run"),
    File(
        JOURNAL,
        "one JSON record per line: settings, machine and data first, then every epoch (its steps may be in earlier lines), the end, the summary",
    ),
    File(
        STATUS,
        "running, finished, failed, preempted or interrupted; why; step, epoch and accuracy so far; the command that resumes or uploads the run",
    ),
    File(CHOSEN, "settings that were chosen from the data: value, reason, and what was requested", AUTOMATIC),
    File(DATASET, "the data set's name, fingerprint and classes: the content of its W&B artifact"),
    File(
        SUMMARY,
        "the result and how it was chosen, the best and the last epoch, seconds by phase, data, machine; of several labels per image the threshold of each class (`thresholds`)",
    ),
    File(REPORT, "the run as one self-contained page", "not `--report False`"),
    File(
        CONSOLE,
        "what the run has shown: messages, warnings, epochs and the result with their times, without the progress bar",
    ),
    File(DIFF, "the uncommitted changes of the git repository of the working directory, at the start", CHANGES),
    File(
        "predictions.csv",
        "a row per image of the reported split: truth, prediction, confidence, loss, margin; of several labels per image: true and predicted labels, whether they are equal, loss, the probability of each class",
    ),
    File(
        "per_class.csv",
        "recall, precision, F1 and number of images of each class; last the accuracy of the class against the rest; of several labels per image: average precision, F1, precision, recall, threshold, images that have the class, images that are predicted to have it",
    ),
    File(f"{FIGURES}/losses.png", "loss of every step and every epoch"),
    File(f"{FIGURES}/accuracy.png", "accuracy by epoch", ONE_LABEL),
    File(f"{FIGURES}/map.png", "mean average precision by epoch", MULTILABEL),
    File(f"{FIGURES}/lr.png", "the learning rate of every step, read back from the optimizer"),
    File(f"{FIGURES}/confusion.png", "confusion matrix", ONE_LABEL),
    File(f"{FIGURES}/reliability.png", "accuracy against confidence, with the calibration error", ONE_LABEL),
    File(
        f"{FIGURES}/augmented.png",
        "training images of the first batch as the network sees them: augmented, and mixed by Mixup or CutMix",
        SEEN,
    ),
    File(
        f"{FIGURES}/correct.png",
        "correctly classified images, the most and the least confident; of several labels per image those whose labels are predicted exactly, of each set of labels the lowest and the highest loss",
        SEEN,
    ),
    File(
        f"{FIGURES}/misclassified.png",
        "misclassified images, by `--gallery-rule`; of several labels per image the others, the highest loss first",
        SEEN,
    ),
    File(
        f"{FIGURES}/gradcam.png",
        "class-activation maps of misclassified images, for the prediction and the truth",
        MAPS,
    ),
    File(f"{FIGURES}/epoch-*/*", "predictions, table and figures after an earlier epoch", EVERY),
    File(f"{FIGURES}/{lr_find.FIGURE}", "the range test", FIND),
    File(lr_find.JSON, "the range test's suggestion and its reasons", FIND),
    File(f"{CHECKPOINTS}/{LAST}", "everything that is needed to resume"),
    File(f"{CHECKPOINTS}/{PREVIOUS}", "the checkpoint before, used if the last is damaged", "more than one save"),
    File(f"{CHECKPOINTS}/{INDEX}", "checksums of the checkpoints"),
    File(f"{CHECKPOINTS}/model.safetensors", "weights of the result"),
    File(f"{CHECKPOINTS}/model.json", "their settings, classes, preprocessing and result, and thresholds"),
    File(f"{CHECKPOINTS}/config.json", "the same for timm: `timm.create_model('local-dir:FOLDER', pretrained=True)`"),
    File(f"{CHECKPOINTS}/class_map.txt", "the classes in the order of the logits, for `--class-map` of timm's scripts"),
    File(f"{CHECKPOINTS}/README.md", "model card"),
    File(
        SUMS,
        "checksums of the files that the result depends on, as `sha256sum -c SHA256SUMS` reads them",
        "a run that finished",
    ),
    File(f"{MEDIA}/*.png", "the images of the journal, named by their content", "images that are tracked"),
    File("evaluation-*/*", "predictions, table and figures of another split or of other data", EVALUATE),
    File(f"{EXPORT}/wandb/*", "W&B's run directories of exports", TRACKED_EXPORT),
    File("wandb/*", "W&B's own run directory, and how much of it was sent", "not `--wandb disabled`"),
    File("tensorboard/*", "TensorBoard's event files, and how much of the run they have", TENSORBOARD),
    File("mlflow/*", "how much of the run MLflow has, and its id there", MLFLOW),
    File("trackio/*", "how much of the run Trackio has, and its id there", TRACKIO),
    File(".lock", "locked by the process that writes the directory"),
)
SWEEP = (
    File(results.COPY, "a copy of the sweep file"),
    File(results.TRIALS, "a row per trial: state, parameters, best value, seconds, run directory, why it failed"),
    File(results.BEST, "a recipe: `harness run --recipe .../best.yaml` trains the best and reads the test set"),
    File(results.SUMMARY, "counts, best, importance, seconds, the final runs' metrics"),
    File(REPORT, "the sweep as one self-contained page", "not `--report False`"),
    File(f"{results.FIGURES}/history.png", "value of each trial, and the best so far"),
    File(
        f"{results.FIGURES}/scatter.png", "the two first parameters, coloured by the metric", "two searched parameters"
    ),
    File(f"{results.FIGURES}/parallel.png", "a line per trial through all parameters", "two searched parameters"),
    File(f"{results.FIGURES}/importance.png", "importance of each parameter", ENOUGH),
    File(f"{results.FIGURES}/pareto.png", "the trials and the Pareto front of the first two metrics", SEVERAL),
    File("pareto/*.yaml", "a recipe of each trial on the Pareto front", SEVERAL),
    File("study.db", "the search, an Optuna study in SQLite", "no other `--storage`"),
    File("times.json", "seconds of each trial, and the training part of them"),
    File("logs/*.log", "output of each trial"),
    File(f"{results.RUNS}/*", "the run directory of each trial, and of each final run"),
    File(".lock", "locked by the process that writes the directory"),
)
SEEDS = (
    File(seeds.RECIPE, "the settings that all seeds share"),
    File(
        seeds.SUMMARY,
        "the seeds with their states and directories, the metrics with their spread, the command that resumes",
    ),
    File(seeds.TABLE, "a row per seed"),
    File(seeds.FIGURES, "a row per metric: mean, standard deviation, 95 % interval"),
    File(REPORT, "the seeds side by side as one self-contained page", "not `--report False`"),
    File(".lock", "locked by the process that writes the directory"),
)

LOSS, SHARE = "nats", "fraction, 0..1"
PLAIN = "of the weights without their moving average, after each epoch"
BALANCED_ACC, F1_MACRO = "mean recall of the classes", "mean F1 of the classes"
MULTILABEL_METRICS = {
    "map": "mean over the classes of the average precision",
    "exact_match": "images of which every class is predicted correctly, at the thresholds",
}
METRICS = (
    Metric("train/step_loss", LOSS, "loss of each step's batch"),
    Metric("train/grad_norm", "-", "2-norm of each step's gradient, before clipping", CLIP),
    Metric("lr", "-", "learning rate of each step, read back from the optimizer"),
    Metric(
        "lr/*",
        "-",
        "learning rate of a group of parameters at the epoch's last update: `body`, `head`, `bias`, `layer_00` (the first layer) and so on",
        GROUPS,
    ),
    Metric("epoch", "epochs", "finished epochs, with a fraction at the steps within one"),
    Metric("images_seen", "images", "training images seen until then, counted in every epoch"),
    Metric(
        "train/loss",
        LOSS,
        "mean of the training loss (`--loss`, `--class-weights`) over the epoch's batches: augmented images, weights that change during the epoch",
    ),
    Metric(
        "train/acc",
        SHARE,
        "accuracy on the same batches; of images mixed by Mixup or CutMix, the label with the larger share counts",
    ),
    Metric("val/loss", LOSS, "cross-entropy on the validation split after each epoch", VAL),
    Metric("val/acc", SHARE, "on the validation split after each epoch", VAL),
    Metric("val/balanced_acc", SHARE, f"{BALANCED_ACC}, on the validation split after each epoch", VAL),
    Metric("val/f1_macro", SHARE, f"{F1_MACRO}, on the validation split after each epoch", VAL),
    Metric("test/loss", LOSS, "cross-entropy on the test set after each epoch", NO_VAL),
    Metric("test/acc", SHARE, "on the test set after each epoch", NO_VAL),
    Metric("test/balanced_acc", SHARE, f"{BALANCED_ACC}, on the test set after each epoch", NO_VAL),
    Metric("test/f1_macro", SHARE, f"{F1_MACRO}, on the test set after each epoch", NO_VAL),
    Metric("val/loss_plain", LOSS, f"{PLAIN}, on the validation split", f"{VAL}, `--ema`"),
    Metric("val/acc_plain", SHARE, f"{PLAIN}, on the validation split", f"{VAL}, `--ema`"),
    Metric("test/loss_plain", LOSS, f"{PLAIN}, on the test set", f"{NO_VAL}, `--ema`"),
    Metric("test/acc_plain", SHARE, f"{PLAIN}, on the test set", f"{NO_VAL}, `--ema`"),
    Metric("val/map_plain", SHARE, f"{PLAIN}, on the validation split", f"{VAL}, `--ema`, {MULTILABEL}"),
    Metric("test/map_plain", SHARE, f"{PLAIN}, on the test set", f"{NO_VAL}, `--ema`, {MULTILABEL}"),
    Metric("best/val_acc", SHARE, "best so far: what sweeps optimise", VAL),
    Metric("best/test_acc", SHARE, "best so far; it is chosen on the test set", NO_VAL),
    Metric("best/val_*", "that of the metric", "best so far of the metric of `--select-by`", f"{VAL}, `--select-by`"),
    Metric("best/test_*", "that of the metric", "the same on the test set", f"{NO_VAL}, `--select-by`"),
    Metric(
        "train/exact_match",
        SHARE,
        "training images of which every class is predicted correctly at 0.5; of mixed images, the labels of the heavier one count",
        MULTILABEL,
    ),
    *(
        Metric(f"{split}/{key}", SHARE, f"{about}, on the {name} after each epoch", f"{when}, {MULTILABEL}")
        for split, name, when in (("val", "validation split", VAL), ("test", "test set", NO_VAL))
        for key, about in MULTILABEL_METRICS.items()
    ),
    Metric("best/val_map", SHARE, "best so far: what sweeps optimise", f"{VAL}, {MULTILABEL}"),
    Metric("best/test_map", SHARE, "best so far; it is chosen on the test set", f"{NO_VAL}, {MULTILABEL}"),
    Metric("time/epoch_s", "s", "wall time of the epoch"),
    Metric("time/train_s", "s", "training part of it"),
    Metric("time/eval_s", "s", "evaluation part of it"),
    Metric("throughput/images_per_s", "images/s", "training images per second of training"),
    Metric("memory/peak_gib", "GiB", "peak memory so far: of the GPU, or of the process on a CPU"),
    Metric(
        "gradients/*", "histogram", "of the gradient of a parameter at the epoch's last update, after clipping", WATCH
    ),
    Metric("parameters/*", "histogram", "of the values of a parameter after the epoch", WATCH),
    Metric("result/test/acc", SHARE, "of the weights of the result", TEST),
    Metric("result/test/loss", LOSS, "of the weights of the result", TEST),
    Metric("result/test/balanced_acc", SHARE, BALANCED_ACC, TEST),
    Metric("result/test/f1_macro", SHARE, F1_MACRO, TEST),
    Metric("result/test/ece", SHARE, "expected calibration error", TEST),
    Metric("result/test/acc_tta", SHARE, "of the mean over the views of each image", f"{TEST}, {TTA}"),
    Metric(
        "result/test/acc5", SHARE, "the true class is among the five most probable", f"{TEST}, more than ten classes"
    ),
    Metric("result/val/loss", LOSS, "of the weights of the result", VAL),
    Metric("result/val/acc", SHARE, "of the weights of the result", VAL),
    Metric("result/val/balanced_acc", SHARE, BALANCED_ACC, VAL),
    Metric("result/val/f1_macro", SHARE, F1_MACRO, VAL),
    Metric("result/val/ece", SHARE, "expected calibration error", "`--test False`"),
    Metric("result/val/acc_tta", SHARE, "of the mean over the views of each image", f"`--test False`, {TTA}"),
    Metric(
        "result/val/acc5",
        SHARE,
        "the true class is among the five most probable",
        "`--test False`, more than ten classes",
    ),
    *(
        Metric(f"result/{split}/{key}", SHARE, about, f"{when}, {MULTILABEL}")
        for split, when in (("test", TEST), ("val", VAL))
        for key, about in MULTILABEL_METRICS.items()
    ),
    Metric(
        "result/test/map_tta", SHARE, "mAP of the mean over the views of each image", f"{TEST}, {TTA}, {MULTILABEL}"
    ),
    Metric("result/val/map_tta", SHARE, "the same", f"`--test False`, {TTA}, {MULTILABEL}"),
    *(
        Metric(
            f"result/{split}/{key}_plain",
            unit,
            f"of the weights without their moving average{after}",
            f"{when}, `--ema`{more}",
        )
        for split, when, after in (("test", NO_VAL, ""), ("val", VAL, ", after the epoch of the result"))
        for key, unit, more in (("loss", LOSS, ""), ("acc", SHARE, ""), ("map", SHARE, f", {MULTILABEL}"))
    ),
    Metric("result/empty_maps", "maps", "empty class-activation maps", "such a map"),
    Metric(
        "predictions/table",
        "table",
        "a row for each image of the split (of more than 50,000 images every second, third, ...): id, truth, prediction, "
        "whether it is correct, loss (nats), margin, the five most probable classes with their scores; thumbnails of the "
        "galleries' images and of those with the highest loss, about 100 in all",
    ),
    Metric(
        "predictions/per_class",
        "table",
        "recall, precision, F1, number of images and accuracy against the rest of each class",
    ),
    Metric(
        "predictions/confusion_matrix",
        "chart",
        "confusion matrix; of the 20 most confused classes where there are more",
    ),
    Metric("predictions/precision_recall", "chart", "precision at 21 recalls, of the same classes"),
    Metric("predictions/roc", "chart", "true over false positive rate at 17 rates, of the same classes"),
    Metric("predictions/calibration", "chart", "accuracy over confidence in 15 bins"),
    Metric("predictions/confusion", "image", "confusion matrix of all classes"),
    Metric("predictions/reliability", "image", "accuracy against confidence, with the number of images"),
    Metric("predictions/correct", "table", "the rows of the gallery's images", SEEN, JOURNAL_ONLY),
    Metric("predictions/misclassified", "table", "the rows of the gallery's images", f"{SEEN}, an error", JOURNAL_ONLY),
    Metric("gallery/augmented", "image", "as in `figures/`, with the first epoch", SEEN),
    Metric("gallery/correct", "image", "as in `figures/`", SEEN),
    Metric("gallery/misclassified", "image", "as in `figures/`", SEEN),
    Metric("gallery/gradcam", "image", "as in `figures/`", MAPS),
    Metric(
        "explain/gradcam",
        "images",
        "misclassified images, with the evidence for the prediction and for the truth (of several labels: for the class predicted wrongly and the one missed) as layers of four levels",
        f"{MAPS}, an error",
    ),
    Metric("explain/images", "table", "image with its map, file, prediction, confidence and guesses", TRACKED),
    Metric("explain/count", "images", "number of explained images", TRACKED),
    Metric(
        "explain/maps",
        "table",
        "the same with overlays, the share of the evidence and the resolution of the maps",
        f"{MAPS}, an error",
        JOURNAL_ONLY,
    ),
    Metric(
        "find/chart",
        "chart",
        "loss and accuracy (or ROC AUC) of every seed over the learning rate, LRMIN and LRMAX marked",
        FIND,
    ),
    Metric("find/steps", "table", "every step of every seed, at most 10,000", FIND),
    Metric("find/seed_*", "curve", "loss over learning rate, of one seed", FIND, JOURNAL_ONLY),
    Metric("find/loss", "curve", "smoothed loss over learning rate", FIND, JOURNAL_ONLY),
    Metric("find/acc", "curve", "batch accuracy over learning rate", f"{FIND}, {ONE_LABEL}", JOURNAL_ONLY),
    Metric("find/auc", "curve", "batch ROC AUC over learning rate", f"{FIND}, {MULTILABEL}", JOURNAL_ONLY),
    Metric("find/rules", "table", "suggestion of each rule", FIND, JOURNAL_ONLY),
    Metric("find/trials", "table", "short runs around the suggestion", "`harness lr-find --confirm`", JOURNAL_ONLY),
    Metric("find/lr_max", "-", "suggested LRMAX; missing when there is none", FIND, IN_SUMMARY),
    Metric("find/lr_min", "-", "suggested LRMIN; missing when there is none", FIND, IN_SUMMARY),
    Metric("find/sure", "words", "sure, fairly sure or unsure, and why", FIND, IN_SUMMARY),
)
