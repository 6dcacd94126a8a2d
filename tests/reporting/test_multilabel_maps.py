"""Class-activation maps of images with several labels: which classes they are of, and what a run keeps of them."""

import warnings

import numpy as np
import pytest
import torch

from harness.config.settings import Config
from harness.data.dataset import in_memory
from harness.evaluation import gradcam
from harness.evaluation.multilabel import MultilabelPredictions
from harness.reporting.evaluation_report import Evaluator
from harness.reporting.figures import style
from harness.reporting.figures.gallery import Tile
from harness.reporting.figures.gradcam import gradcam_figure, overlay, shared_scale
from harness.reporting.gradcam_images import enlarge
from harness.reporting.multilabel_maps import explained_classes, maps_where_known, threshold_text
from harness.reporting.multilabel_report import exact_images, worst_images
from harness.utils.text import cut_middle
from tests.reporting.test_evaluation_report import CPU, PREPROCESS, SIZE, number_of, rows_of
from tests.support.tiny_net import random_images, tiny_net

NAMES, COUNT = ("even", "greater than 4", "prime", "a class with a rather long name"), 40


def random_answers(count=COUNT, seed=0):
    random = np.random.default_rng(seed)
    labels = (random.random((count, 4)) < 0.4).astype(np.uint8)
    probabilities = random.random((count, 4)).astype(np.float32)
    return MultilabelPredictions(labels, probabilities, np.zeros(count, np.float32), np.array([0.2, 0.5, 0.6, 0.8]))


def test_the_explained_classes_are_those_with_the_greatest_loss_among_the_wrong_ones():
    predictions = random_answers()
    chosen = np.flatnonzero(~predictions.correct)
    wrong, missed = explained_classes(predictions, chosen)
    for place, image in enumerate(chosen):
        losses = {True: {}, False: {}}  # by whether the class is predicted
        for number in range(4):
            probability, truth = predictions.probabilities[image, number], predictions.labels[image, number]
            is_predicted = probability >= predictions.thresholds[number]
            if is_predicted != bool(truth):
                losses[is_predicted][number] = -np.log(probability if truth else 1 - probability)
        assert wrong[place] == max(losses[True], key=losses[True].get, default=-1)
        assert missed[place] == max(losses[False], key=losses[False].get, default=-1)
    assert {-1} < set(wrong) and {-1} < set(missed)


@pytest.mark.parametrize(
    ("probability", "threshold", "text"),
    [
        (0.12, 0.64, "12 % < 64 %"),
        (0.5, 0.5, "50 % ≥ 50 %"),
        (0.151, 0.1546, "15.1 % < 15.5 %"),
        (0.9, 0.2, "90 % ≥ 20 %"),
    ],
)
def test_a_probability_beside_its_threshold_shows_which_one_is_greater(probability, threshold, text):
    assert threshold_text(probability, threshold) == text


def test_maps_of_some_images_are_those_of_each_alone_and_the_others_are_empty():
    model, images = tiny_net(), random_images()
    first, second = maps_where_known(
        model, images, [np.array([0, -1, 3, -1, 2]), np.full(5, -1)], method="hirescam", layer="auto"
    )
    for index, target in enumerate((0, -1, 3, -1, 2)):
        if target < 0:
            assert first.empty[index] and not first.raw[index].any() and first.peak[index] == 0
            continue
        alone = gradcam.compute_maps(model, images[index : index + 1], [target])
        np.testing.assert_allclose(first.raw[index], alone.raw[0], rtol=1e-4, atol=1e-6)
        assert (first.empty[index], first.share[index]) == (alone.empty[0], pytest.approx(alone.share[0], rel=1e-4))
    assert second.empty.all() and not second.scaled.any() and second.raw.shape == first.raw.shape


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """An evaluator of a network that knows nothing, the split, its images, its probabilities and the result."""
    random = np.random.default_rng(3)
    pixels = random.integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)
    labels = (random.random((COUNT, 4)) < 0.4).astype(np.uint8)
    split = in_memory("test", pixels, labels, [f"test/{index}" for index in range(COUNT)])
    model = tiny_net(pool="avg").eval()
    torch.nn.init.normal_(model.head.weight, std=3.0)
    images = torch.from_numpy(((pixels / 255 - PREPROCESS.mean) / PREPROCESS.std).astype(np.float32))
    images = images.permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        probabilities = model(images).sigmoid().numpy()
    settings = {"data": "table", "label_separator": "|", "loss": "bce", "select_by": "map"}
    config = Config(**settings, gallery=9, precision="fp32", threads=1)
    evaluator = Evaluator(config, model, PREPROCESS, NAMES, CPU)
    folder = tmp_path_factory.mktemp("evaluated")
    return (
        split,
        images,
        probabilities,
        evaluator,
        evaluator.evaluate(split, [(images, torch.from_numpy(labels))], folder),
        folder,
    )


def test_each_map_of_a_run_is_that_of_its_image_and_class_on_one_scale(evaluated):
    split, images, probabilities, evaluator, result, folder = evaluated
    rows, layers = rows_of(result.details["explain/maps"]), result.values["explain/gradcam"]
    losses = -np.log(np.where(split.labels > 0, probabilities, 1 - probabilities)).sum(1)
    wrong = np.flatnonzero(((probabilities >= 0.5) != (split.labels > 0)).any(1))
    assert [number_of(cells) for cells in rows] == sorted(wrong, key=lambda index: -losses[index])[:9]
    assert {bool(cells[f"class for {key}"]) for cells in rows for key in ("prediction", "truth")} == {True, False}
    for cells, layered in zip(rows, layers, strict=True):
        index, maps = number_of(cells), {}
        for key in ("prediction", "truth"):
            name = cells[f"class for {key}"]
            assert (name != "") == (key in layered.masks) == (cells[f"share for {key}"] is not None)
            if not name:
                assert cells[f"overlay for {key}"] is None and cells[f"threshold for {key}"] == ""
                continue
            number = NAMES.index(name)
            is_predicted = probabilities[index, number] >= 0.5
            assert is_predicted == (key == "prediction") and is_predicted != bool(split.labels[index, number])
            assert cells[f"threshold for {key}"] == threshold_text(probabilities[index, number], 0.5)
            assert f"{name} ({cells[f'threshold for {key}']})" in layered.image.caption
            maps[key] = gradcam.compute_maps(evaluator.model, images[index : index + 1], [number])
            assert cells[f"share for {key}"] == pytest.approx(float(maps[key].share[0]), abs=1e-4)
        pair = [maps.get(key, next(iter(maps.values()))) for key in ("prediction", "truth")]
        for key, heat in zip(("prediction", "truth"), shared_scale(*pair), strict=True):
            if key in maps and not maps[key].empty[0]:
                expected = overlay(enlarge(split.pixels[index]), heat[0]).astype(int)
                assert np.abs(cells[f"overlay for {key}"].pixels - expected).mean() < 1
    assert (folder / "figures/gradcam.png").stat().st_size > 20_000
    drawn = [cells[f"class for {key}"] for cells in rows for key in ("prediction", "truth")]
    assert result.empty_maps[1] == sum(map(bool, drawn))


def test_where_all_images_are_predicted_exactly_there_is_a_figure_that_says_so(evaluated, tmp_path):
    split, images, probabilities, evaluator, _, _ = evaluated
    labels = (probabilities >= 0.5).astype(np.uint8)
    exact = in_memory("test", split.pixels, labels, split.ids)
    result = evaluator.evaluate(exact, [(images, torch.from_numpy(labels))], tmp_path)
    assert result.metrics["exact_match"] == 1 and result.empty_maps == (0, 0)
    assert "explain/maps" not in result.details and (tmp_path / "figures/gradcam.png").is_file()


TEXTS = (
    "even",
    "greater than 4, prime",
    "golden_retriever of the west",
    "W" * 40,
    "i" * 60,
    "a, b, c, d, e, f, g, h, i, j, k",
    "$x_1$ Éä",
)


@pytest.mark.parametrize("lines", [1, 2, 3])
@pytest.mark.parametrize("text", TEXTS)
def test_a_fitted_text_is_as_wide_as_matplotlib_draws_it_and_loses_nothing_without_an_ellipsis(text, lines):
    fitted = style.fit_text(text, 1.2, 9, lines)
    figure = style.figure(4, 2)
    drawn = figure.text(0, 0, style.drawable_text(fitted), fontsize=9)
    style.set_fonts(drawn)
    assert drawn.get_window_extent().width / style.DPI < 1.2 * 1.04  # kerning may add a little
    assert len(fitted.splitlines()) <= lines
    if "…" not in fitted:
        assert "".join(fitted.split()) == "".join(text.split())
    else:
        assert len(fitted.splitlines()) == lines


def test_the_names_of_a_thousand_classes_are_fitted_without_trying_every_length(monkeypatch):
    """An image of a model that has learnt little has them all, and a gallery has many such images."""
    measured, text_width = [], style.text_width

    def counting(text, *arguments, **options):
        measured.append(len(text))
        return text_width(text, *arguments, **options)

    monkeypatch.setattr(style, "text_width", counting)
    text = "truth: " + ", ".join(f"class number {number}" for number in range(1000))
    fitted = style.fit_text(text, 1.9, 10)
    assert sum(measured) < 5 * len(text)
    longer = next(cut for width in range(len(fitted), 999) if (cut := cut_middle(text, width)) != fitted)
    assert text_width(fitted, 10) <= 1.9 < text_width(longer, 10)


def test_a_letter_that_no_font_has_gets_a_width_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert style.text_width("\U0001f9ff", 10) > 0


def test_captions_below_maps_use_two_lines_and_touch_no_neighbour(tmp_path, monkeypatch):
    figures = []
    save = style.save_figure
    monkeypatch.setattr(style, "save_figure", lambda figure, path: (figures.append(figure), save(figure, path))[1])
    pairs = (("golden_retriever", "flat-coated_retriever"), ("Staffordshire bull terrier", "W" * 30), ("cat", "dog"))
    tiles = [Tile(np.zeros((16, 16, 3), np.uint8), truth, prediction, 0.9, False) for truth, prediction in pairs]
    one = np.ones(3, np.float32)
    heat = np.tile(np.linspace(0, 1, 16, dtype=np.float32), (3, 16, 1))
    maps = gradcam.Maps("hirescam", "layer", heat, heat, np.zeros(3, bool), one, one)
    gradcam_figure(tiles, maps, maps, tmp_path / "x.png", title="t")
    texts = [text for text in figures[0].axes[0].texts if text.get_text()]
    assert {"✓ golden_\nretriever", "✗ flat-coated_\nretriever"} <= {text.get_text() for text in texts}
    extents = [text.get_window_extent() for text in texts]
    bounds = figures[0].bbox
    for number, first in enumerate(extents):
        assert bounds.x0 <= first.x0 and first.x1 <= bounds.x1 and bounds.y0 <= first.y0
        assert not any(first.overlaps(second) for second in extents[number + 1 :])


def test_the_exact_images_are_those_of_every_set_of_labels_in_turn():
    random = np.random.default_rng(1)
    labels = (random.random((60, 4)) < 0.3).astype(np.uint8)
    losses = random.random(60).astype(np.float32)
    wrong = random.random(60) < 0.2
    scores = np.where(wrong[:, None], 1 - labels, labels).astype(np.float32)
    predictions = MultilabelPredictions(labels, scores, losses, np.full(4, 0.5))
    left = {}
    for index in sorted(np.flatnonzero(~wrong), key=lambda index: losses[index]):
        left.setdefault(tuple(labels[index]), []).append(index)
    sets = sorted(left, key=lambda each: (-len(left[each]), left[each][0]))
    expected = []
    for turn in range(len(labels)):  # the lowest loss of each set, the highest, the second lowest, ...
        expected += [left[each].pop(0 if turn % 2 == 0 else -1) for each in sets if left[each]]
    assert exact_images(predictions, 60).tolist() == expected and len(expected) == (~wrong).sum()
    assert exact_images(predictions, 9).tolist() == expected[:9]
    order = sorted(np.flatnonzero(wrong), key=lambda index: -losses[index])
    assert worst_images(predictions, 5).tolist() == order[:5]
