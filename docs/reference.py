"""What a run leaves, as data: the files of its folder and the keys of its journal. `make.py` writes the pages.

A pattern is a path below the run folder as `fnmatch` reads it; `when` is empty for what every run leaves. A test holds
both against real runs, in both directions.
"""

from typing import NamedTuple

from harness.runfolder import CHECKPOINTS, CONFIG, FIGURES, STATUS, SUMMARY
from harness.tracking.encoding import MEDIA
from harness.tracking.journal import NAME as JOURNAL
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


SEEN, MAPS = "`--gallery` above 0", "`--gallery` above 0 and a `--cam`"
FILES = (
    File(CONFIG, "every setting of the run; a recipe that repeats it"),
    File(
        JOURNAL,
        "one JSON record a line: header (settings, machine, data), a record an epoch, what is said at the end, summary",
    ),
    File(STATUS, "state (running, finished, failed, preempted, interrupted), why, exit status, how to go on or upload"),
    File(SUMMARY, "the result and how it was chosen, the best and the last epoch, seconds by part, data, machine"),
    File("report.html", "the run as one page that needs nothing beside it", "not `--report false`"),
    File("predictions.csv", "a row an image of the reported split: truth, prediction, confidence, loss, margin"),
    File("per_class.csv", "precision, recall, F1 and number of images of each class"),
    File(f"{FIGURES}/losses.png", "loss of every step and every epoch"),
    File(f"{FIGURES}/accuracy.png", "accuracy by epoch"),
    File(f"{FIGURES}/lr.png", "the learning rate of every step, as it was read back from the optimizer"),
    File(f"{FIGURES}/confusion.png", "confusion matrix"),
    File(f"{FIGURES}/reliability.png", "accuracy against confidence, with the calibration error"),
    File(f"{FIGURES}/correct.png", "gallery of correct images, surest and least sure", SEEN),
    File(f"{FIGURES}/misclassified.png", "gallery of misclassified images, by `--gallery-rule`", SEEN),
    File(
        f"{FIGURES}/gradcam.png",
        "class-activation maps of misclassified images: for the prediction and the truth",
        MAPS,
    ),
    File(f"{FIGURES}/epoch-*", "the same of an earlier epoch", "`--explain-every`"),
    File(f"{FIGURES}/lr_finder.png", "the range test", "`--lr-max find` or `--lr-min find`"),
    File("lr_finder.json", "what the range test found, and why", "`--lr-max find` or `--lr-min find`"),
    File(f"{CHECKPOINTS}/{LAST}", "everything needed to go on"),
    File(f"{CHECKPOINTS}/{PREVIOUS}", "the one before, should the last be damaged", "more than one epoch"),
    File(f"{CHECKPOINTS}/{INDEX}", "checksums of the checkpoints"),
    File(f"{CHECKPOINTS}/model.safetensors", "weights of the result"),
    File(f"{CHECKPOINTS}/model.json", "what they are: settings, classes, preprocessing, result"),
    File(f"{CHECKPOINTS}/config.json", "the same for timm: `timm.create_model('local-dir:FOLDER', pretrained=True)`"),
    File(f"{CHECKPOINTS}/README.md", "model card"),
    File(f"{MEDIA}/*.png", "pictures that the journal's tables name, by their content", SEEN),
    File(
        "evaluation-*",
        "what `harness evaluate` leaves: the files above for another split or other data",
        "`harness evaluate`",
    ),
    File("wandb/*", "W&B's own run folder, and what of it has been sent", "not `--wandb disabled`"),
    File(".lock", "held by the process that writes the run"),
)

LOSS, SHARE = "nats", "share, 0..1"
METRICS = (
    Metric("train/step_loss", LOSS, "loss of each step's batch"),
    Metric("train/grad_norm", "2-norm", "norm of each step's gradient, before clipping", "`--clip-grad`"),
    Metric("lr", "1", "learning rate of each step, read back from the optimizer"),
    Metric("epoch", "epochs", "epochs done"),
    Metric(
        "train/loss", LOSS, "mean over the images of the epoch, as they were trained on (augmented, moving weights)"
    ),
    Metric("train/acc", SHARE, "of the same images"),
    Metric("val/loss", LOSS, "of the validation split after each epoch", "`--val-fraction`"),
    Metric("val/acc", SHARE, "of the validation split after each epoch", "`--val-fraction`"),
    Metric("test/loss", LOSS, "of the test set after each epoch", "no validation split"),
    Metric("test/acc", SHARE, "of the test set after each epoch", "no validation split"),
    Metric("best/val_acc", SHARE, "best so far: what sweeps choose by", "`--val-fraction`"),
    Metric("best/test_acc", SHARE, "best so far; chosen on the test set", "no validation split"),
    Metric("time/epoch(s)", "s", "wall time of the epoch"),
    Metric("time/train(s)", "s", "of it training"),
    Metric("time/eval(s)", "s", "of it evaluating"),
    Metric("throughput(images/s)", "images/s", "training images in the time of training"),
    Metric("memory/peak(GiB)", "GiB", "most memory so far: of the GPU, or of the process on a CPU"),
    Metric("result/test/acc", SHARE, "of the weights that are kept", "a test set"),
    Metric("result/test/loss", LOSS, "of the weights that are kept", "a test set"),
    Metric("result/test/ece", SHARE, "expected calibration error", "a test set"),
    Metric("result/test/acc_tta", SHARE, "mean of the image and its mirror image", "`--tta`"),
    Metric("result/test/acc5", SHARE, "the truth among five guesses", "more than ten classes"),
    Metric("result/val/loss", LOSS, "of the weights that are kept", "`--val-fraction`"),
    Metric("result/val/acc", SHARE, "of the weights that are kept", "`--val-fraction`"),
    Metric("result/val/ece", SHARE, "expected calibration error", "`--test false`"),
    Metric("result/val/acc_tta", SHARE, "mean of the image and its mirror image", "`--test false` and `--tta`"),
    Metric("result/val/acc5", SHARE, "the truth among five guesses", "`--test false`, more than ten classes"),
    Metric("predictions/scores", "", "labels and probabilities: W&B's confusion matrix and precision-recall curves"),
    Metric("predictions/per_class", "", "table: precision, recall, F1 of each class"),
    Metric("predictions/confusion", "", "picture"),
    Metric("predictions/reliability", "", "picture"),
    Metric("predictions/correct", "", "table of images", SEEN),
    Metric("predictions/misclassified", "", "table of images", SEEN),
    Metric("gallery/correct", "", "picture", SEEN),
    Metric("gallery/misclassified", "", "picture", SEEN),
    Metric("gallery/gradcam", "", "picture", MAPS),
    Metric("explain/gradcam", "", "table: image, maps and overlays for prediction and truth, share of each", MAPS),
    Metric("find/seed_*", "", "curve of one seed: loss over learning rate", "range test"),
    Metric("find/loss", "", "curve: smoothed loss over learning rate", "range test"),
    Metric("find/acc", "", "curve: accuracy over learning rate", "range test"),
    Metric("find/steps", "", "table of every step", "range test"),
    Metric("find/rules", "", "table: what each rule suggests", "range test"),
    Metric("find/trials", "", "table of short runs around the suggestion", "`harness find --confirm`"),
    Metric("find/figure", "", "picture", "range test"),
    Metric("find/lr_max", "1", "LRMAX found", "range test"),
    Metric("find/lr_min", "1", "LRMIN found", "range test"),
    Metric("find/sure", "", "how sure, in words", "range test"),
)
