"""The range test of images with several labels: its curve is that of a plain torch loop, its measures are scikit-learn's."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.nn import functional as F

from harness.config.settings import Config
from harness.lr_finder.measure import RANKING
from harness.lr_finder.range_test import LRRange
from harness.lr_finder.result import result_table, sweep_definition
from harness.lr_finder.suggestion import suggest
from harness.runs.lr_find import find_lr
from harness.tracking.journal import read_journal
from harness.training.losses import make_loss, uninformed_loss
from harness.training.multilabel import ranking_quality
from harness.utils.seeding import seed_for
from tests.lr_finder.test_analysis import UNIFORM_LOSS, typical_curve
from tests.lr_finder.test_finder import ValLoader, learner_factory, measure, net
from tests.runs.test_multilabel_run import SETTINGS
from tests.support.multilabel import make_squares, write_separated
from tests.training.test_multilabel import CPU, sample
from tests.training.test_multilabel import SETTINGS as LABELS

STEPS = 12


class Batches:
    """Images that are brighter in the channel of each class that they have; a function of seed and epoch."""

    def __init__(self, seed=0):
        self.seed, self.steps, self.num_images = seed, STEPS, 16 * STEPS

    def epoch(self, epoch, start=0):
        generator = torch.Generator().manual_seed(1000 * self.seed + epoch)
        for _ in range(self.steps):
            labels = (torch.rand(16, 3, generator=generator) < torch.tensor([0.5, 0.3, 0.1])).to(torch.uint8)
            images = torch.randn(16, 3, 8, 8, generator=generator)
            yield images + 1.5 * labels[:, :, None, None], labels


def test_losses_and_measures_of_a_range_test_are_those_of_a_plain_loop():
    lr_range = LRRange(1e-4, 0.05, STEPS)
    held_out = ValLoader(Batches(9).epoch(0))
    curve = measure(
        lr_range, learner_factory=learner_factory(**LABELS, weight_decay=5e-4, nesterov=True), loader_factory=Batches,
        val_loader=held_out, uniform_loss=2.0,
    )  # fmt: skip
    model = net(0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    torch.manual_seed(seed_for(0, "epoch", 0))  # of dropout
    for step, (images, labels) in enumerate(Batches(0).epoch(0)):
        optimizer.param_groups[0]["lr"] = lr = 1e-4 * 500 ** (step / (STEPS - 1))
        logits = model.train()(images)
        loss = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum") / 16
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert (curve.lrs[step], curve.losses[step]) == pytest.approx((lr, loss.item()), rel=1e-4)
        mixed = labels.bool().any(0) & ~labels.bool().all(0)
        assert curve.accs[step] == pytest.approx(roc_auc_score(labels[:, mixed], logits.detach()[:, mixed]), abs=1e-6)
        images, labels = (torch.cat(column) for column in zip(*held_out, strict=True))
        with torch.no_grad():
            logits = model.eval()(images)
        mean = F.binary_cross_entropy_with_logits(logits, labels.float()).item()
        expected = (3 * mean, average_precision_score(labels, logits, average="macro"))
        assert curve.val_points[step] == pytest.approx(expected, rel=1e-4)


def test_equal_logits_count_as_half_and_classes_without_pairs_are_left_out():
    logits, labels = sample()
    logits = logits.round()  # many are equal
    assert float(ranking_quality(logits, labels)) == pytest.approx(roc_auc_score(labels, logits))
    missing = torch.cat([labels, torch.zeros(40, 1), torch.ones(40, 1)], 1)
    padded = torch.cat([logits, torch.randn(40, 2)], 1)
    assert float(ranking_quality(padded, missing)) == pytest.approx(roc_auc_score(labels, logits))
    alone = torch.cat([labels[:, :1], torch.zeros(40, 1), torch.ones(40, 1)], 1)  # one class that can be ranked
    assert float(ranking_quality(logits, alone)) == pytest.approx(roc_auc_score(labels[:, 0], logits[:, 0]))
    assert float(ranking_quality(logits, torch.zeros(40, 3))) == 0.5
    assert float(ranking_quality(torch.zeros(40, 3), labels)) == 0.5


def test_of_micro_batches_the_measure_is_their_mean():
    factory = learner_factory(**LABELS, grad_accumulation=2)
    curve = measure(LRRange(1e-4, 0.05, STEPS), learner_factory=factory, loader_factory=Batches, uniform_loss=2.0)
    model = net(0).train()
    images, labels = next(Batches(0).epoch(0))
    torch.manual_seed(seed_for(0, "epoch", 0))  # of dropout
    with torch.no_grad():
        parts = [(model(part), truth) for part, truth in zip(images.chunk(2), labels.chunk(2), strict=True)]
    areas = []
    for logits, truth in parts:
        mixed = truth.bool().any(0) & ~truth.bool().all(0)
        areas.append(roc_auc_score(truth[:, mixed], logits[:, mixed]))
    assert curve.accs[0] == pytest.approx(np.mean(areas), abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({}, None),
        ({}, (3.0, 1.0, 8.0)),
        ({"loss_args": {"pos_weight": 4}}, None),  # class weights take its place
        ({"loss_args": {"sum_classes": False}}, None),
        ({"loss_args": {"sum_classes": False}}, (3.0, 1.0, 8.0)),
    ],
)
def test_the_loss_without_any_learning_is_the_least_of_the_same_answer_to_every_image(settings, weights):
    labels, config = sample(200)[1], Config(**LABELS, **settings)
    weights = None if weights is None else torch.tensor(weights)
    loss = make_loss(config, CPU, weights)

    def of_answer(logits):
        return float(loss(torch.tensor(logits, dtype=torch.float32).expand(200, 3), labels.float()))

    least = minimize(of_answer, np.zeros(3), method="Nelder-Mead").fun
    assert uninformed_loss(config, labels.numpy(), weights) == pytest.approx(least, rel=1e-4)


def test_of_many_images_some_give_the_loss_and_a_class_of_all_images_does_no_harm():
    labels = np.repeat(sample(40)[1].numpy(), 1000, axis=0)
    labels[:, 0] = 1
    expected = sum(-p * np.log(p) - (1 - p) * np.log(1 - p) for p in labels[:, 1:].mean(0))
    assert uninformed_loss(Config(**LABELS), labels, None) == pytest.approx(expected, rel=0.01)


def test_a_start_far_above_the_frequencies_of_the_classes_makes_the_result_unsure():
    curves = [typical_curve(seed) for seed in range(3)]
    known = suggest(curves, uniform_loss=UNIFORM_LOSS, chance=0.1, measure=RANKING)
    assert known.confidence.startswith("sure") and "AUC peak" in {rule.rule for rule in known.rules}
    high = suggest(curves, uniform_loss=UNIFORM_LOSS / 3, chance=0.1, measure=RANKING)
    assert high.confidence.startswith("unsure") and "high start" in {caution.kind for caution in high.cautions}
    one_label = suggest(curves, uniform_loss=UNIFORM_LOSS / 3, chance=0.1)
    assert "high start" not in {caution.kind for caution in one_label.cautions}


def test_a_measure_above_chance_is_no_caution_and_one_at_chance_names_it():
    curves = [typical_curve(seed) for seed in range(3)]
    for highest, expected in ((0.7, False), (0.5, True)):
        scaled = [replace(curve, accs=highest * curve.accs / np.nanmax(curve.accs)) for curve in curves]
        cautions = suggest(scaled, uniform_loss=UNIFORM_LOSS, chance=0.5, measure=RANKING).cautions
        found = [caution.text for caution in cautions if caution.kind.endswith("at chance")]
        assert bool(found) == expected and all("not above 50.0 %" in text for text in found)


def test_the_result_names_what_was_measured_in_place_of_the_accuracy(tmp_path):
    table = write_separated(tmp_path, make_squares(tmp_path, 200))
    settings = {**SETTINGS, "model_args": "width=4", "data_dir": str(table), "output": str(tmp_path / "runs")}
    result = find_lr(settings, seeds=1, steps=40, low=1e-3, high=1.0, confirm=2)
    assert result.lr_max is not None and result.curves[0].accs.max() > 0.8
    assert not [caution for caution in result.suggestion.cautions if caution.kind.endswith("at chance")]
    assert len(json.loads((result.folder / "lr_finder.json").read_text())["trials"]) == len(result.short_runs) == 2
    text = result_table(result)
    assert "AUC peak" in text and "held-out mAP" in text and "accuracy" not in text
    stored = json.loads((result.folder / "lr_finder.json").read_text())
    assert (
        len(stored["seeds"][0]["aucs"]) == len(result.curves[0].lrs) and {"map", "loss"} <= stored["trials"][0].keys()
    )
    assert not {"acc", "accs"} & {*stored["seeds"][0], *stored["trials"][0], *stored["seeds"][0]["held"][0]}
    last = read_journal(result.folder).records[-1]
    assert last.details["find/auc"].title == "range test: batch ROC AUC" and "find/acc" not in last.details
    assert {"auc", "held_map"} <= set(last.values["find/steps"].columns)
    page = (result.folder / "report.html").read_text()
    assert "Batch ROC AUC over the learning rate" in page and "Batch accuracy" not in page
    definition = sweep_definition(result)
    assert definition["metric"] == {"name": "best/val_map", "goal": "maximize"}


def test_nan_in_the_last_batch_of_a_test_leaves_the_area_a_share():
    """A model that has diverged gives such logits, and the curve keeps what was measured of them."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(40, 3, generator=generator), torch.arange(120).reshape(40, 3) % 7 < 3
    logits[::3, 0], logits[5, 1], logits[6, 2] = torch.nan, torch.inf, -torch.inf
    ranked = logits.nan_to_num(nan=-1e9, posinf=1e9, neginf=-1e9)
    areas = [roc_auc_score(labels[:, index], ranked[:, index]) for index in range(3)]
    assert float(ranking_quality(logits, labels)) == pytest.approx(np.mean(areas), abs=1e-6)
    assert float(ranking_quality(torch.full_like(logits, torch.nan), labels)) == 0.5
