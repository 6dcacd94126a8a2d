import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from PIL import Image

from harness.reporting.figures import schedule, style, training_curves
from harness.reporting.figures import sweep as sweep_figures
from harness.reporting.figures.contact_sheet import contact_sheet
from harness.reporting.figures.gallery import Canvas, Tile, fit_to_box, fit_to_side, gallery
from harness.reporting.figures.lr_finder import draw_range_test
from harness.reporting.html.sweep_reader import read_sweep
from harness.tracking.records import Curve, Record
from harness.utils.errors import UsageError
from harness.utils.text import percent, truncate
from tests.support.report_samples import sweep

pytestmark = pytest.mark.filterwarnings("error")
AWKWARD = ("$x_1$", "cost $5", r"a\$b", "_private", "汉字 \t🙂", "{brace}", "%d <b>", "a" * 300, "")


def pixels(path):
    with Image.open(path) as picture:
        return np.array(picture.convert("RGB")).astype(int)


def like(picture, colour, tolerance=40):
    """bool [H, W]: which pixels are about that colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return (abs(picture - wanted) <= tolerance).all(2)


def epochs(count, **shift):
    return [
        Record(
            10 * e,
            e,
            {
                "train/loss": 2.0 / e,
                "test/loss": 2.2 / e + 0.1,
                "train/acc": 1 - 0.7 / e,
                "test/acc": 1 - 0.8 / e,
                **shift,
            },
        )
        for e in range(1, count + 1)
    ]


@pytest.mark.parametrize("count", [1, 2, 60])
def test_losses_and_accuracies_of_any_number_of_epochs_are_drawn_in_the_colours_of_their_splits(tmp_path, count):
    for draw in (training_curves.draw_losses, training_curves.draw_accuracy):
        picture = pixels(draw(epochs(count), tmp_path / "new" / "folder" / "picture.png"))
        assert picture.shape[:2] == (4.5 * style.DPI, 8 * style.DPI)
        assert like(picture, style.BLUE).sum() > 100 and like(picture, style.VERMILLION).sum() > 100


def test_an_epoch_measured_twice_counts_once_and_a_nan_is_a_gap():
    again = [
        *epochs(3),
        Record(20, 2, {"train/loss": 7.0}),
        Record(40, 4, {"train/loss": math.nan}),
        Record(40, 4, {"test/loss": 0.5}, kind="final"),
    ]
    lines, final = training_curves.values_by_epoch(again, "loss")
    assert list(lines["train"]) == [1, 2, 3, 4] and lines["train"][2] == 7.0 and math.isnan(lines["train"][4])
    assert "test" not in final and list(lines) == ["train", "test"]
    lines, final = training_curves.values_by_epoch(
        [Record(5, 1, {"test/acc": 0.9}, kind="final"), Record(5, 1, {"lr": 1.0, "best": "yes/acc"})], "acc"
    )
    assert lines == {} and final == {"test": (1, 0.9)}


def test_the_weights_without_their_moving_average_have_a_dotted_line_of_their_own(tmp_path):
    records = [
        *(
            Record(e, e, {"val/acc": 0.5 + 0.1 * e, "val/acc_plain": 0.3 + 0.1 * e, "val/accuracy": 9})
            for e in range(1, 5)
        ),
        Record(4, 4, {"result/val/acc_plain": 0.7}, kind="final"),
    ]
    lines, final = training_curves.values_by_epoch(records, "acc")
    assert list(lines) == ["val", "val, without EMA"] and not final
    assert list(lines["val, without EMA"].values()) == pytest.approx([0.4, 0.5, 0.6, 0.7])
    one = pixels(training_curves.draw_accuracy(records, tmp_path / "a.png"))
    other = pixels(
        training_curves.draw_accuracy(
            [Record(r.step, r.epoch, {"val/acc": r.values["val/acc"]}) for r in records[:4]], tmp_path / "b.png"
        )
    )
    assert like(one, style.GREEN).sum() > 1.2 * like(other, style.GREEN).sum()


def test_a_figure_without_data_shows_a_message(tmp_path):
    only_nan = [Record(1, 1, {"train/loss": math.nan, "train/acc": math.nan})]
    paths = [
        training_curves.draw_losses([], tmp_path / "a.png"),
        training_curves.draw_accuracy(only_nan, tmp_path / "b.png"),
        training_curves.draw_learning_rate([], [], tmp_path / "c.png"),
        training_curves.draw_schedule_curve([], [], tmp_path / "d.png", lr_min=0, lr_max=1),
        gallery([], tmp_path / "f.png", empty="No misclassified images."),
    ]
    assert all(200 < (pixels(path).sum(2) < 600).sum() < 60_000 for path in paths)


def test_the_schedule_rises_and_falls_between_two_level_lines_at_its_minimum_and_maximum(tmp_path):
    x = np.arange(101)
    lr = 0.08 + 0.72 * (1 - abs((x / 10) % 2 - 1))
    picture = pixels(
        training_curves.draw_schedule_curve(x, lr, tmp_path / "clr.png", lr_min=0.08, lr_max=0.8, title="Cyclic")
    )
    level = np.flatnonzero(like(picture, style.VERMILLION).sum(1) > 0.4 * picture.shape[1])
    bands = np.split(level, np.flatnonzero(np.diff(level) > 1) + 1)
    assert len(bands) == 2
    top, bottom = (band.mean() for band in bands)
    curve = like(picture, style.BLUE, 12)
    rows = np.flatnonzero(curve.any(1))
    assert abs(rows[0] - top) <= 4 and abs(rows[-1] - bottom) <= 4
    columns = np.flatnonzero(curve.any(0))
    heights = np.array([np.flatnonzero(curve[:, column]).mean() for column in columns])
    share = np.interp(np.linspace(0, 100, len(columns)), x, lr)
    drawn = 0.8 - (heights - top) / (bottom - top) * 0.72
    assert abs(drawn - share).mean() < 0.01


def test_momentum_marks_and_epochs_are_drawn_with_the_learning_rate(tmp_path):
    steps = np.arange(200)
    lr = np.interp(steps, [0, 50, 199], [0.1, 1, 0.1])
    plain = pixels(training_curves.draw_learning_rate(steps, lr, tmp_path / "a.png"))
    more = pixels(
        training_curves.draw_learning_rate(
            steps, lr, tmp_path / "b.png", momentum=1 - lr / 10, steps_per_epoch=20, marks={"resumed at $5_": 90}
        )
    )
    assert more.shape[0] > plain.shape[0]
    assert (
        not like(plain, style.ORANGE, 20).any()
        and like(more, style.ORANGE, 20).any()
        and like(more, style.VERMILLION).any()
    )
    training_curves.draw_learning_rate([0], [0.1], tmp_path / "one.png")
    training_curves.draw_learning_rate([0, 1], [0.1, 0.1], tmp_path / "level.png", steps_per_epoch=1)
    training_curves.draw_schedule_curve(
        [0, 1], [0.1, 0.1], tmp_path / "level.png", lr_min=0.1, lr_max=0.1, momentum=[0.9, 0.9]
    )


def test_any_name_can_be_drawn(tmp_path):
    picture = np.full((8, 8, 3), 99, np.uint8)
    title = "".join(AWKWARD[:-2])
    gallery([Tile(picture, name, name, 0.5, False) for name in AWKWARD], tmp_path / "gallery.png", title=title)
    training_curves.draw_losses([Record(1, 1, {f"{name}/loss": 1.0 for name in AWKWARD})], tmp_path / "loss.png")
    for suffix in ("svg", "png"):
        training_curves.draw_schedule_curve(
            [0, 1], [0, 1], tmp_path / f"s.{suffix}", lr_min=0, lr_max=1, title=title, x_name=title
        )


def test_dollars_start_no_formula_and_letters_without_a_glyph_are_escapes():
    from matplotlib.cbook import is_math_text

    assert not any(is_math_text(style.drawable_text(name)) for name in AWKWARD)
    assert style.drawable_text("$a$_b") == r"\$a\$_b"
    assert style.drawable_text("a\x00b\U0001f9ffc\td") == r"a\x00b\U0001f9ffc d"
    assert style.drawable_text("Ёжик, عربي, עברית, ñandú") == "Ёжик, عربي, עברית, ñandú"
    assert (
        style.drawable_text("\u2764\ufe0f\u200d") == "\u2764"
    )  # a heart without its selector of a colour and its joiner


def test_a_text_is_shortened_and_wrapped_as_it_is_drawn(monkeypatch):
    assert style.shorten("\U0001f9ff" * 9, 12) == r"\U0001f9ff…"  # an escape is not cut
    assert style.shorten("a\U0001f9ffbcdefg\U0001f9ff", 24) == r"a\U0001f9ffbcdefg…"
    assert style.shorten("golden retriever, a dog of the family", 12) == "golden r…ily"
    monkeypatch.setattr(style, "_has_glyph", lambda letter: True)
    assert style.shorten("猫" * 20, 12) == "猫猫猫猫…猫"  # letters that are twice as wide
    assert style.wrap("猫" * 8, 8) == "猫猫猫猫\n猫猫猫猫"


def test_a_letter_that_a_further_installed_font_has_is_drawn_with_it(tmp_path, caplog):
    from fontTools.ttLib import TTFont
    from matplotlib import font_manager

    caches = (style._has_glyph, style._other_fonts, style._warn_once)
    former, families = list(font_manager.fontManager.ttflist), dict(style._further_families)
    letters = "\u732b\u72ac"  # cat and dog; the font has the first
    try:
        for cache in caches:
            cache.cache_clear()
        assert style.drawable_text(letters) == r"\u732b\u72ac"
        assert "fonts-noto-cjk" in caplog.text and len(caplog.records) == 1
        with TTFont(font_manager.findfont("DejaVu Sans")) as font:
            for table in font["cmap"].tables:
                if table.isUnicode() and table.format in (4, 12):
                    table.cmap = {ord(letters[0]): "A"}
            for record in font["name"].names:
                if record.nameID in (1, 16):
                    record.string = "Cats"
            font.save(tmp_path / "cats.ttf")
        font_manager.fontManager.addfont(tmp_path / "cats.ttf")
        for cache in caches:
            cache.cache_clear()
        assert style.drawable_text(letters) == letters[0] + r"\u72ac"
        empty = style.figure(2, 1)
        empty.text(0.1, 0.5, style.drawable_text(letters[0]))
        drawn = pixels(style.save_figure(empty, tmp_path / "cat.png"))  # a warning of a missing glyph is an error here
        latin = style.figure(2, 1)
        latin.text(0.1, 0.5, "A")
        assert (drawn == pixels(style.save_figure(latin, tmp_path / "a.png"))).all()
    finally:
        font_manager.fontManager.ttflist[:] = former
        font_manager.fontManager._findfont_cached.cache_clear()
        style._further_families.clear()
        style._further_families.update(families)
        for cache in caches:
            cache.cache_clear()


def test_texts_are_truncated_and_percentages_round_to_0_or_100_only_if_exact():
    assert truncate("golden retriever, a dog of the family", 12) == "golden r…ily"
    assert all(len(truncate("x" * n, w)) <= w for n in range(1, 30) for w in range(2, 12))
    assert truncate("cat", 3) == "cat"
    assert [percent(p) for p in (1, 0.99999, 0.5, 0.00001, 0)] == ["100 %", "99.9 %", "50.0 %", "0.1 %", "0 %"]


def test_only_png_and_svg_are_drawn(tmp_path):
    with pytest.raises(UsageError, match=r"losses\.gif.*\.png or \.svg"):
        training_curves.draw_losses(epochs(2), tmp_path / "losses.gif")
    assert list(tmp_path.iterdir()) == []
    assert training_curves.draw_losses(epochs(2), tmp_path / "losses.SVG").read_text().startswith("<?xml")


def test_a_png_has_the_pixels_that_savefig_gives(tmp_path):
    def drawn():
        figure = style.figure(5, 3)
        left, right = figure.subplots(1, 2)
        left.plot([1, 2, 3], [0.1, 123.4, 5], label="a line")
        right.imshow(np.arange(12).reshape(3, 4))
        style.legend(left, loc="best")
        style.style_axes(left, x="step", y="value", title="Two axes")
        figure.colorbar(right.images[0], ax=right)
        style._set_fonts(figure)
        return figure

    drawn().savefig(tmp_path / "theirs.png", dpi=style.DPI)
    assert (pixels(style.save_figure(drawn(), tmp_path / "ours.png")) == pixels(tmp_path / "theirs.png")).all()
    with Image.open(tmp_path / "ours.png") as ours:
        assert round(ours.info["dpi"][0]) == style.DPI and ours.mode == "RGB"


def test_a_picture_is_copied_into_its_box_pixel_by_pixel(tmp_path):
    small = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    canvas = Canvas(3, 2)
    canvas.picture(0.5, 0.4, 1, 1, small, colour=style.BLUE)  # a box of 150 x 150 pixels: five for one
    shown = pixels(canvas.save(tmp_path / "one.png"))[60:210, 75 + 25 : 225 - 25]
    assert (shown[5:-5, 5:-5] == small.repeat(5, 0).repeat(5, 1)[5:-5, 5:-5]).all()


def test_a_picture_fills_its_box_and_keeps_its_aspect():
    for shape in ((32, 32), (200, 300), (900, 30), (1, 1)):
        fitted = fit_to_box(np.zeros((*shape, 3), np.uint8), 1.85, 1.0)
        rows, columns = fitted.shape[:2]
        assert rows <= 150 and columns <= round(1.85 * 150) and (rows == 150 or columns == round(1.85 * 150))
        assert abs(rows / columns - shape[0] / shape[1]) <= 0.5 / columns * (1 + shape[0] / shape[1]) + 1e-9
    noise = np.random.default_rng(1).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    assert fit_to_box(noise, 1, 1).std() < 0.7 * noise.std()  # reduced by averaging, not by leaving pixels out
    assert fit_to_box(noise, 2, 2) is noise


def test_two_threads_draw_what_one_draws(tmp_path):
    def draw(index):
        return training_curves.draw_losses(epochs(3 + index % 2), tmp_path / f"{index}.png").read_bytes()

    alone = [draw(0), draw(1)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(draw, range(2, 6)))
    assert together == alone * 2


@pytest.mark.parametrize("count", [1, 7, pytest.param(26, marks=pytest.mark.slow)])
def test_every_tile_of_a_gallery_is_shown_once_as_large_as_the_others(tmp_path, count):
    colours = np.random.default_rng(0).permutation(
        np.stack(np.meshgrid([0, 60, 250], [10, 70, 130], [90, 170, 255]), -1).reshape(-1, 3)
    )[:count]
    tiles = [Tile(np.tile(c.astype(np.uint8), (4, 4, 1)), "cat", "dog", 0.9, False) for c in colours]
    picture = pixels(gallery(tiles, tmp_path / "gallery.png"))
    areas = [(picture == c).all(2).sum() for c in colours]
    assert min(areas) > 0.5 * (1.2 * style.DPI) ** 2 and max(areas) < 1.02 * min(areas)


def test_correct_and_wrong_tiles_differ_in_sign_and_in_colour():
    picture = np.zeros((2, 2, 3), np.uint8)
    right, wrong = Tile(picture, "cat", "cat", 0.934, True), Tile(picture, "cat", "dog", 0.934, False)
    assert (right.verdict, wrong.verdict) == ("✓ cat  93.4 %", "✗ dog  93.4 %")
    assert right.colour != wrong.colour


def test_a_small_picture_is_enlarged_by_whole_pixels_and_a_large_one_reduced():
    small = np.random.default_rng(0).integers(0, 256, (32, 24, 3), dtype=np.uint8)
    large = fit_to_side(small, 320)
    assert large.shape == (320, 240, 3) and (large[5::10, 5::10] == small).all() and (large[::10, ::10] == small).all()
    assert fit_to_side(np.zeros((900, 600, 3), np.uint8), 300).shape == (300, 200, 3)


def test_a_figure_becomes_a_value_for_a_tracker(tmp_path):
    path = training_curves.draw_losses(epochs(2), tmp_path / "losses.png")
    image = training_curves.as_image(path, "losses")
    assert image.caption == "losses" and (image.pixels == pixels(path)).all()


def test_a_contact_sheet_and_a_range_test_without_data_show_a_message_too(tmp_path):
    nothing = Curve("lr", [0.1], {"median": [math.nan]})
    paths = [
        contact_sheet([], tmp_path / "a.png", title="Images", subtitle="none"),
        draw_range_test(tmp_path / "b.png", seeds=[], loss=nothing, acc=nothing, chosen={}, others={}),
    ]
    assert all(200 < (pixels(path).sum(2) < 600).sum() < 60_000 for path in paths)


def test_a_value_that_was_measured_at_the_end_alone_is_a_star_at_its_epoch(tmp_path):
    records = [Record(10 * e, e, {"val/acc": 0.5 + e / 20}) for e in (1, 2, 3)]
    without = pixels(training_curves.draw_accuracy(records, tmp_path / "a.png"))
    end = Record(30, 3, {"test/acc": 0.9}, kind="final")
    drawn = pixels(training_curves.draw_accuracy([*records, end], tmp_path / "b.png"))
    assert not like(without, style.VERMILLION).any() and like(drawn, style.VERMILLION).sum() > 50


@pytest.mark.parametrize(
    ("given", "low", "high"),
    [
        ({}, 0.08, 0.8),
        ({"lr_max": 0.5}, 0.05, 0.5),
        ({"LRMIN": "0.02"}, 0.02, 0.2),
        ({"lr_min": 0.1, "lr-max": 0.3}, 0.1, 0.3),
        ({"lr_min_ratio": 0.25}, 0.2, 0.8),
        ({"lr_min_ratio": 0.25, "lr_max": 0.4}, 0.1, 0.4),
    ],
)
def test_a_cyclic_schedule_lacks_no_rate(given, low, high):
    drawn = schedule.curve({"schedule": "cyclic", **given}, 10)
    assert (min(drawn.lr), max(drawn.lr)) == pytest.approx((low, high))


def figure_of(monkeypatch, draw, *arguments, **options):
    """Return the figure that a function would save, after its layout."""
    figures = []
    monkeypatch.setattr(style, "save_figure", lambda figure, path: figures.append(figure) or Path(path))
    draw(*arguments, **options)
    FigureCanvasAgg(figures[0]).draw()
    return figures[0]


def test_the_name_of_a_mark_stands_inside_of_the_axes_at_its_step(monkeypatch):
    steps = np.arange(100)
    figure = figure_of(
        monkeypatch, training_curves.draw_learning_rate, steps, steps / 20, "x.png", marks={"resumed": 60}
    )
    axes = figure.axes[0]
    [text] = [text for text in axes.texts if text.get_text() == "resumed"]
    box, frame = text.get_window_extent(), axes.get_window_extent()
    assert frame.y0 <= box.y0 and 0 <= frame.y1 - box.y1 < 0.1 * frame.height  # at the top
    assert abs(box.x0 - axes.transData.transform((60, 0))[0]) < 0.02 * frame.width


def test_the_axes_that_are_drawn_are_thin_and_of_one_soft_colour():
    axes = style.style_axes(style.figure().subplots())
    shown = [spine for spine in axes.spines.values() if spine.get_visible()]
    assert shown == [axes.spines["left"], axes.spines["bottom"]]
    assert {(to_hex(spine.get_edgecolor()), spine.get_linewidth()) for spine in shown} == {(style.SOFT.lower(), 0.8)}


def test_every_axis_of_a_sweeps_parallel_lines_is_inside_of_the_figure(monkeypatch, tmp_path):
    figure = figure_of(monkeypatch, sweep_figures.draw_parallel, read_sweep(sweep(tmp_path / "sweep")), "x.png")
    axes = figure.axes[0]
    low, high = axes.get_xlim()
    assert len(axes.get_xticks()) > 2 and all(low < column < high for column in axes.get_xticks())
    frame = figure.bbox
    for text in axes.texts:
        box = text.get_window_extent()
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1, text.get_text()
