"""What a run, a sweep and several seeds leave, and what a journal holds, as data; `make.py` writes the pages from it.

A pattern is a path below the folder as `fnmatch` reads it; `when` is empty for what is always there. Tests hold all of it
against real runs, in both directions.
"""

from typing import NamedTuple

from harness.runs import lr_find, seeds
from harness.sweep import results
from harness.tracking.journal import NAME as JOURNAL
from harness.tracking.run_dir import CHECKPOINTS, CONFIG, FIGURES, STATUS, SUMMARY
from harness.tracking.serialization import MEDIA
from harness.training.checkpoint import INDEX, LAST, PREVIOUS


class File(NamedTuple):
    pattern: str
    about: str
    when: str = ""


class Metric(NamedTuple):
    key: str
    unit: str
    about: str
    when: str = ""


REPORT = "report.html"
SEEN, MAPS = "`--gallery` above 0", "`--gallery` above 0 and a `--cam`"
FIND, EVALUATE, EVERY = "a range test", "`harness evaluate`", "`--explain-every`"
CLIP, ENOUGH = "`--clip-grad`", "enough trials to tell"
VAL, NO_VAL, TEST, TTA = "`--val-fraction`", "no validation split", "a test set", "`--tta`"

RUN = (
    File(CONFIG, "every setting of the run; a recipe that repeats it"),
    File(JOURNAL, "one JSON record a line: settings, machine and data first, then every epoch, the end, the summary"),
    File(STATUS, "running, finished, failed, preempted or interrupted; why; how to go on, or to upload"),
    File(SUMMARY, "the result and how it was chosen, the best and the last epoch, seconds by part, data, machine"),
    File(REPORT, "the run as one page that needs nothing beside it", "not `--report False`"),
    File("predictions.csv", "a row an image of the reported split: truth, prediction, confidence, loss, margin"),
    File("per_class.csv", "precision, recall, F1 and number of images of each class"),
    File(f"{FIGURES}/losses.png", "loss of every step and every epoch"),
    File(f"{FIGURES}/accuracy.png", "accuracy by epoch"),
    File(f"{FIGURES}/lr.png", "the learning rate of every step, as it was read back from the optimizer"),
    File(f"{FIGURES}/confusion.png", "confusion matrix"),
    File(f"{FIGURES}/reliability.png", "accuracy against confidence, with the calibration error"),
    File(f"{FIGURES}/correct.png", "correct images, the surest and the least sure", SEEN),
    File(f"{FIGURES}/misclassified.png", "misclassified images, by `--gallery-rule`", SEEN),
    File(
        f"{FIGURES}/gradcam.png",
        "class-activation maps of misclassified images, for the prediction and the truth",
        MAPS,
    ),
    File(f"{FIGURES}/epoch-*/*", "predictions, table and figures as they were after an earlier epoch", EVERY),
    File(f"{FIGURES}/{lr_find.FIGURE}", "the range test", FIND),
    File(lr_find.JSON, "what the range test found, and why", FIND),
    File(f"{CHECKPOINTS}/{LAST}", "everything that is needed to go on"),
    File(f"{CHECKPOINTS}/{PREVIOUS}", "the one before, should the last be damaged", "more than one save"),
    File(f"{CHECKPOINTS}/{INDEX}", "checksums that vouch for the checkpoints"),
    File(f"{CHECKPOINTS}/model.safetensors", "weights of the result"),
    File(f"{CHECKPOINTS}/model.json", "what they are: settings, classes, preprocessing, result"),
    File(f"{CHECKPOINTS}/config.json", "the same for timm: `timm.create_model('local-dir:FOLDER', pretrained=True)`"),
    File(f"{CHECKPOINTS}/README.md", "model card"),
    File(f"{MEDIA}/*.png", "the pictures of the journal, named by their content", "pictures that are tracked"),
    File("evaluation-*/*", "the same predictions, table and figures of another split or of other data", EVALUATE),
    File("wandb/*", "W&B's own run folder, and how far it has been sent", "not `--wandb disabled`"),
    File(".lock", "held by the process that writes the folder"),
)
SWEEP = (
    File(results.COPY, "the file as it was"),
    File(results.TRIALS, "a row a trial: state, parameters, best value, seconds, folder, why it failed"),
    File(results.BEST, "a recipe: `harness run --recipe .../best.yaml` trains the best and reads the test set"),
    File(results.SUMMARY, "counts, best, importance, seconds, the final runs' figures"),
    File(REPORT, "the sweep as one page that needs nothing beside it", "not `--report False`"),
    File(f"{results.FIGURES}/history.png", "value of each trial, and the best so far"),
    File(
        f"{results.FIGURES}/scatter.png", "the two first parameters, coloured by the metric", "two searched parameters"
    ),
    File(f"{results.FIGURES}/parallel.png", "a line a trial through all parameters", "two searched parameters"),
    File(f"{results.FIGURES}/importance.png", "which parameter mattered", ENOUGH),
    File("study.db", "the search itself, an Optuna study in SQLite", "no other `--storage`"),
    File("times.json", "seconds of each trial, and of it training"),
    File("logs/*.log", "what each trial said"),
    File(f"{results.RUNS}/*", "the run folder of each trial, and of each final run"),
    File(".lock", "held by the process that writes the folder"),
)
SEEDS = (
    File(seeds.RECIPE, "the settings that all seeds share"),
    File(seeds.SUMMARY, "the seeds with their states and folders, the figures with their spread, how to go on"),
    File(seeds.TABLE, "a row a seed"),
    File(seeds.FIGURES, "a row a figure: mean, standard deviation, 95 % interval"),
    File(REPORT, "the seeds side by side as one page", "not `--report False`"),
    File(".lock", "held by the process that writes the folder"),
)

LOSS, SHARE = "nats", "share, 0..1"
METRICS = (
    Metric("train/step_loss", LOSS, "loss of each step's batch"),
    Metric("train/grad_norm", "-", "2-norm of each step's gradient, before clipping", CLIP),
    Metric("lr", "-", "learning rate of each step, read back from the optimizer"),
    Metric("epoch", "epochs", "epochs done"),
    Metric("train/loss", LOSS, "mean over the epoch's images as they were trained on: augmented, by weights that move"),
    Metric("train/acc", SHARE, "of the same images"),
    Metric("val/loss", LOSS, "of the validation split after each epoch", VAL),
    Metric("val/acc", SHARE, "of the validation split after each epoch", VAL),
    Metric("test/loss", LOSS, "of the test set after each epoch", NO_VAL),
    Metric("test/acc", SHARE, "of the test set after each epoch", NO_VAL),
    Metric("best/val_acc", SHARE, "best so far: what sweeps choose by", VAL),
    Metric("best/test_acc", SHARE, "best so far; it is chosen on the test set", NO_VAL),
    Metric("time/epoch_s", "s", "wall time of the epoch"),
    Metric("time/train_s", "s", "of it training"),
    Metric("time/eval_s", "s", "of it evaluating"),
    Metric("throughput/images_per_s", "images/s", "training images in the time of training"),
    Metric("memory/peak_gib", "GiB", "most memory so far: of the GPU, or of the process on a CPU"),
    Metric("result/test/acc", SHARE, "of the weights that are kept", TEST),
    Metric("result/test/loss", LOSS, "of the weights that are kept", TEST),
    Metric("result/test/ece", SHARE, "expected calibration error", TEST),
    Metric("result/test/acc_tta", SHARE, "of the mean over the image and its mirror image", f"{TEST}, {TTA}"),
    Metric("result/test/acc5", SHARE, "the truth is among five guesses", f"{TEST}, more than ten classes"),
    Metric("result/val/loss", LOSS, "of the weights that are kept", VAL),
    Metric("result/val/acc", SHARE, "of the weights that are kept", VAL),
    Metric("result/val/ece", SHARE, "expected calibration error", "`--test False`"),
    Metric("result/val/acc_tta", SHARE, "of the mean over the image and its mirror image", f"`--test False`, {TTA}"),
    Metric("result/val/acc5", SHARE, "the truth is among five guesses", "`--test False`, more than ten classes"),
    Metric("result/empty_maps", "maps", "class-activation maps with nothing in them", "there are such"),
    Metric(
        "predictions/scores", "scores", "labels and probabilities: W&B's confusion matrix and precision-recall curves"
    ),
    Metric("predictions/per_class", "table", "precision, recall, F1 of each class"),
    Metric("predictions/confusion", "picture", "confusion matrix"),
    Metric("predictions/reliability", "picture", "accuracy against confidence"),
    Metric("predictions/correct", "table", "a row an image with what the model says of it", SEEN),
    Metric("predictions/misclassified", "table", "a row an image with what the model says of it", f"{SEEN}, an error"),
    Metric("gallery/correct", "picture", "as in `figures/`", SEEN),
    Metric("gallery/misclassified", "picture", "as in `figures/`", SEEN),
    Metric("gallery/gradcam", "picture", "as in `figures/`", MAPS),
    Metric(
        "explain/gradcam",
        "table",
        "image, maps and overlays for prediction and truth, share of each",
        f"{MAPS}, an error",
    ),
    Metric("find/seed_*", "curve", "loss over learning rate, of one seed", FIND),
    Metric("find/loss", "curve", "smoothed loss over learning rate", FIND),
    Metric("find/acc", "curve", "accuracy over learning rate", FIND),
    Metric("find/steps", "table", "every step", FIND),
    Metric("find/rules", "table", "what each rule suggests", FIND),
    Metric("find/trials", "table", "short runs around the suggestion", "`harness lr-find --confirm`"),
    Metric("find/figure", "picture", "the range test", FIND),
    Metric("find/lr_max", "-", "LRMAX found; missing where nothing was", FIND),
    Metric("find/lr_min", "-", "LRMIN found; missing where nothing was", FIND),
    Metric("find/sure", "words", "sure, fairly sure or unsure, and why", FIND),
)
