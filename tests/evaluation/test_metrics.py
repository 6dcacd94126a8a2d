import csv

import numpy as np
import pytest
import torch
from torch import nn

from harness.evaluation import metrics as p
from harness.reporting.figures.confusion import confusion_figure, reliability_figure
from harness.reporting.figures.gallery import RIGHT_RULES, WRONG_RULES, choose_images, table
from harness.utils.errors import DataError, DivergedError, UsageError

CLASSES = ("cat", "dog", "=ship()", "-3", "never")


def some(images=400, classes=5, seed=0):
    """Predictions that are often right; nothing is, or is said to be, of the last class."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes - 1, images)
    logits = draw.normal(size=(images, classes)) * 1.5
    logits[np.arange(images), labels] += 1.5
    logits[:, -1] = -9
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return p.Predictions(
        labels, chances.astype(np.float32), -np.log(chances[np.arange(images), labels]).astype(np.float32)
    )


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)

    def forward(self, images):
        return self.head(self.drop(self.norm(self.convolution(images)).relu().mean((2, 3))))


def batches(sizes=(7, 7, 3)):
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 3, 8, 8, generator=draw), torch.randint(0, 5, (n,), generator=draw)) for n in sizes]


def test_figures_of_merit_equal_those_of_scikit_learn():
    from sklearn import metrics

    said = some()
    matrix = p.confusion(said)
    labels = range(5)
    assert (matrix == metrics.confusion_matrix(said.labels, said.predicted, labels=labels)).all()
    assert p.accuracy(said) == pytest.approx(metrics.accuracy_score(said.labels, said.predicted))
    for k in (1, 2, 5, 9):
        expected = (
            metrics.top_k_accuracy_score(said.labels, said.probabilities, k=min(k, 5), labels=labels) if k < 5 else 1.0
        )
        assert p.accuracy(said, k) == pytest.approx(expected)
    ours = p.per_class(matrix)
    theirs = metrics.precision_recall_fscore_support(said.labels, said.predicted, labels=labels, zero_division=0)
    for mine, other in zip((ours.precision, ours.recall, ours.f1, ours.support), theirs, strict=True):
        np.testing.assert_allclose(mine, other)
    assert said.losses.mean() == pytest.approx(
        metrics.log_loss(said.labels, said.probabilities, labels=labels), rel=1e-5
    )
    rest = [metrics.accuracy_score(said.labels == label, said.predicted == label) for label in labels]
    np.testing.assert_allclose(ours.accuracy, rest)
    assert ours.table(CLASSES).rows[4] == ("never", 1.0, 0.0, 0.0, 0.0, 0)


def test_calibration_equals_a_loop_over_bins():
    said = some()
    measured = p.reliability(said)
    error = 0.0
    for number in range(15):
        inside = (said.confidence > number / 15) & (said.confidence <= (number + 1) / 15)
        assert inside.sum() == measured.counts[number]
        if inside.any():
            assert measured.accuracy[number] == pytest.approx(said.right[inside].mean())
            assert measured.confidence[number] == pytest.approx(said.confidence[inside].mean(), rel=1e-5)
            error += inside.mean() * abs(said.right[inside].mean() - said.confidence[inside].mean())
        else:
            assert np.isnan(measured.accuracy[number])
    assert measured.counts.sum() == len(said) and measured.ece == pytest.approx(error, rel=1e-5)


def test_a_model_that_is_as_often_right_as_it_says_has_no_calibration_error():
    chances = np.tile(np.array([0.8, 0.2], np.float32), (1000, 1))
    said = p.Predictions(np.repeat([0, 1], [800, 200]), chances, np.zeros(1000, np.float32))
    assert p.reliability(said).ece == pytest.approx(0, abs=1e-6)
    sure = p.Predictions(np.array([0, 1]), np.array([[1, 0], [1, 0]], np.float32), np.zeros(2, np.float32))
    assert p.reliability(sure).ece == pytest.approx(0.5)


def test_the_margin_is_negative_exactly_where_the_model_is_wrong():
    said = some()
    for margin, label, row in zip(said.margin, said.labels, said.probabilities, strict=True):
        assert margin == pytest.approx(row[label] - max(v for k, v in enumerate(row) if k != label))
    assert ((said.margin < 0) == ~said.right).all()
    assert p.Predictions(np.zeros(2, int), np.ones((2, 1), np.float32), np.zeros(2)).margin.tolist() == [1, 1]


def test_predicting_equals_a_plain_forward_pass_in_evaluation_mode():
    model = Net().eval()
    said = p.predict(model, batches(), "cpu", tta=True)
    images, labels = (torch.cat(part) for part in zip(*batches(), strict=True))
    with torch.no_grad():
        logits, mirrored = model(images), model(images.flip(3))
    np.testing.assert_allclose(said.probabilities, logits.softmax(1), atol=1e-6)
    np.testing.assert_allclose(said.losses, nn.functional.cross_entropy(logits, labels, reduction="none"), atol=1e-5)
    np.testing.assert_allclose(said.tta_probabilities, ((logits + mirrored) / 2).softmax(1), atol=1e-6)
    assert (said.labels == labels.numpy()).all() and said.labels.dtype == np.int64
    half = p.predict(model, batches(), "cpu", autocast=torch.bfloat16)
    assert half.probabilities.dtype == half.losses.dtype == np.float32 and half.tta_probabilities is None
    np.testing.assert_allclose(half.probabilities, said.probabilities, atol=0.02)


@pytest.mark.parametrize("fails", [False, True])
def test_predicting_leaves_each_module_in_its_own_mode_and_no_statistic_moved(fails):
    model = Net().train()
    model.norm.eval()  # a frozen norm in a training model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if fails:
        with pytest.raises(RuntimeError):
            p.predict(model, [(torch.zeros(2, 9, 8, 8), torch.zeros(2))], "cpu")
    else:
        p.predict(model, batches(), "cpu")
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_can_be_trained_on_with_what_its_first_forward_pass_made():
    class Lazy(Net):
        table = None

        def forward(self, images):
            if self.table is None:
                self.table = torch.ones(5, device=images.device)
            return super().forward(images) * self.table

    model = Lazy()
    p.predict(model, batches(), "cpu")
    model.train()(batches()[0][0]).sum().backward()
    assert model.head.weight.grad is not None


def test_no_images_and_answers_that_are_no_numbers_are_refused():
    with pytest.raises(DataError, match="no images"):
        p.predict(Net(), [], "cpu")
    model = Net()
    nn.init.constant_(model.head.bias, float("nan"))
    with pytest.raises(DivergedError, match="17 of 17 images"):
        p.predict(model, batches(), "cpu")


def test_the_csv_holds_every_image_and_no_formula(tmp_path):
    said = some(50)
    ids = [f"=cmd({i}).png" if i % 2 else f'test/a "quoted", name\n{i}' for i in range(49)] + ["broken\udcff"]
    path = p.write_csv(said, ids, CLASSES, tmp_path / "out" / "predictions.csv")
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == p.COLUMNS and len(rows) == 50
    for index, row in enumerate(rows[:-1]):
        assert int(row["index"]) == index
        assert row["id"] == ("'" if index % 2 else "") + ids[index]
        assert row["label"].removeprefix("'") == CLASSES[said.labels[index]]
        assert row["prediction"].removeprefix("'") == CLASSES[said.predicted[index]]
        assert not any(row[key].startswith(("=", "+", "-", "@")) for key in ("id", "label", "prediction"))
        for key, numbers in (("confidence", said.confidence), ("loss", said.losses), ("margin", said.margin)):
            assert float(row[key]) == pytest.approx(numbers[index], rel=1e-5)
    assert rows[-1]["id"] == r"broken\udcff"


@pytest.mark.parametrize(
    ("wrong", "rule"), [(True, rule) for rule in WRONG_RULES] + [(False, rule) for rule in RIGHT_RULES]
)
def test_each_rule_chooses_distinct_images_of_its_kind_and_the_same_for_the_same_seed(wrong, rule):
    said = some()
    chosen = choose_images(said, wrong=wrong, rule=rule, count=25, seed=3)
    assert len(set(chosen.tolist())) == 25 and (said.right[chosen] != wrong).all() and chosen.dtype == np.int64
    assert (chosen == choose_images(said, wrong=wrong, rule=rule, count=25, seed=3)).all()
    assert len(choose_images(said, wrong=wrong, rule=rule, count=10_000)) == (said.right != wrong).sum()
    assert len(choose_images(said, wrong=wrong, rule=rule, count=0)) == 0
    assert (chosen == choose_images(said, wrong=wrong, rule=rule, count=25, seed=4)).all() == (rule != "random")


def test_rules_order_as_they_say():
    said = some()
    errors = np.flatnonzero(~said.right)
    confident = choose_images(said, wrong=True)
    assert confident.tolist() == sorted(errors, key=lambda i: -said.confidence[i])[:25]
    assert said.labels[choose_images(said, wrong=True, rule="per-class", count=4)].tolist() == [0, 1, 2, 3]
    matrix = p.confusion(said) * (1 - np.eye(5, dtype=int))
    first = choose_images(said, wrong=True, rule="confusion", count=1)[0]
    assert matrix[said.labels[first], said.predicted[first]] == matrix.max()
    mixed = choose_images(said, wrong=False, count=8)
    for label in range(4):
        of_class = np.flatnonzero(said.right & (said.labels == label))
        assert mixed[label] == max(of_class, key=lambda i: said.confidence[i])
        assert mixed[4 + label] == min(of_class, key=lambda i: said.confidence[i])
    everything = p.Predictions(np.zeros(3, int), np.array([[1, 0]] * 3, np.float32), np.zeros(3, np.float32))
    assert choose_images(everything, wrong=True).shape == (0,)
    with pytest.raises(UsageError, match="did you mean 'confident'"):
        choose_images(said, wrong=True, rule="confidnt")


def test_the_table_of_a_gallery_says_what_the_predictions_say():
    said = some(30)
    chosen = choose_images(said, wrong=True, count=4)
    pictures = [np.full((4, 4, 3), i, np.uint8) for i in range(len(chosen))]
    made = table(said, chosen, pictures, [f"test/{i}" for i in range(30)], CLASSES)
    for row, index in zip(made.rows, chosen, strict=True):
        cells = dict(zip(made.columns, row, strict=True))
        assert cells["id"] == f"test/{index}" and cells["truth"] == CLASSES[said.labels[index]]
        assert (
            cells["confidence"]
            == cells[f"score/{cells['prediction']}"]
            == pytest.approx(said.probabilities[index].max())
        )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [2, 10, 30, 100])
def test_confusion_and_reliability_are_drawn_for_any_number_of_classes(tmp_path, count):
    said = some(3000, count)
    names = [f"$class_{i}$ with a long name" for i in range(count)]
    assert confusion_figure(p.confusion(said), names, tmp_path / "confusion.png").stat().st_size > 10_000
    assert reliability_figure(p.reliability(said), tmp_path / "reliability.png").stat().st_size > 10_000
    confusion_figure(np.zeros((count, count), int), names, tmp_path / "none.png")
