"""Overlays of class-activation maps: one scale for the maps of an image, and hatching for an empty one."""

import numpy as np
import pytest
from PIL import Image

from harness.evaluation import gradcam
from harness.reporting.figures import style
from harness.reporting.figures.gallery import Tile
from harness.reporting.figures.gradcam import MapLabel, gradcam_figure, labels_figure, overlay, shared_scale
from tests.reporting.test_figures import like, pixels
from tests.support.tiny_net import random_images, tiny_net


def test_equal_evidence_has_the_same_colour_in_every_panel_and_no_evidence_keeps_the_image():
    draw = np.random.default_rng(0)
    picture = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    weak, strong = np.zeros((16, 16)), np.zeros((16, 16))
    weak[:8] = strong[:8] = 0.4
    strong[8:] = 1.0
    assert (overlay(picture, weak)[:8] == overlay(picture, strong)[:8]).all()
    none = overlay(picture, np.zeros((16, 16)))
    assert (overlay(picture, weak)[8:] == none[8:]).all()
    luma = picture @ [0.299, 0.587, 0.114]
    assert np.corrcoef(none.mean(2).ravel(), luma.ravel())[0, 1] > 0.98
    assert none.dtype == np.uint8 and overlay(picture, np.ones((4, 4))).shape == picture.shape
    ramp = overlay(np.full((1, 64, 3), 60, np.uint8), np.linspace(0, 1, 64)[None]).astype(float) @ [0.299, 0.587, 0.114]
    assert (np.diff(ramp[0]) > -2).all() and ramp[0, -1] > ramp[0, 0] + 100


def test_two_maps_of_an_image_are_compared_on_one_scale():
    model, images = tiny_net(), random_images()
    first, second = (
        gradcam.compute_maps(model, images, [0, 1, 2, 3, 1]),
        gradcam.compute_maps(model, images, [1, 3, 2, 1, 0]),
    )
    ours, theirs = shared_scale(first, second)
    for index in np.flatnonzero(~first.empty & ~second.empty):
        stronger = max(first.peak[index], second.peak[index])
        assert max(ours[index].max(), theirs[index].max()) <= 1 + 1e-6
        np.testing.assert_allclose(ours[index], first.scaled[index] * first.peak[index] / stronger, rtol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 6])
def test_the_panel_draws_an_empty_map_as_a_hatched_box_and_never_as_an_image(tmp_path, count):
    def maps(empty):
        heat = np.tile(np.linspace(0, 1, 16, dtype=np.float32), (count, 16, 1))
        flags = np.full(count, empty)
        heat[flags] = 0
        return gradcam.Maps(
            "hirescam", "layer", heat, heat, flags, np.ones(count, np.float32), np.ones(count, np.float32)
        )

    tiles = [Tile(np.full((16, 16, 3), (250, 20, 20), np.uint8), "$a_b$", "dog", 0.9, False) for _ in range(count)]
    pixels = {}
    for empty in (False, True):
        path = gradcam_figure(tiles, maps(False), maps(empty), tmp_path / f"{empty}.png", title="25 of $3")
        with Image.open(path) as picture:
            pixels[empty] = np.array(picture.convert("RGB")).astype(int)
    hatched = (abs(pixels[True] - 0xF0) <= 2).all(2).sum()
    assert hatched - (abs(pixels[False] - 0xF0) <= 2).all(2).sum() > 8_000 * count or count == 0
    assert (pixels[False] == pixels[True]).all() == (count == 0)
    if count:
        with pytest.raises(ValueError, match="a map of each kind"):
            gradcam_figure(tiles[1:] + tiles * 2, maps(False), maps(True), tmp_path / "x.png")


def resolution_of(cells, pixels):
    shape = lambda side: np.zeros((1, side, side), np.float32)  # noqa: E731
    maps = gradcam.make_maps("hirescam", "layer", shape(cells), shape(pixels))
    return maps.resolution


def test_a_map_states_its_resolution_and_one_of_fewer_than_4_cells_a_side_is_coarse():
    assert str(resolution_of(4, 32)) == "4 x 4 cells for 32 x 32 pixels"
    assert str(resolution_of(2, 64)) == "2 x 2 cells for 64 x 64 pixels: too coarse to tell where the evidence lies"
    assert [resolution_of(side, 32).is_coarse for side in (1, 3, 4, 7)] == [True, True, False, False]


def test_the_map_of_a_class_without_evidence_is_striped_beside_those_of_the_others(tmp_path):
    heat = np.stack([np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1)), np.zeros((64, 64), np.float32)])
    ones = np.ones(2, np.float32)
    maps = gradcam.Maps("hirescam", "layer", heat, heat, np.array([False, True]), ones, ones)
    picture = np.full((64, 64, 3), (250, 20, 20), np.uint8)
    path = labels_figure(picture, maps, [MapLabel("cat", ""), MapLabel("dog", "no evidence")], tmp_path / "x.png")
    drawn = pixels(path)
    striped = np.flatnonzero(((drawn == 205).all(2) | (drawn == 235).all(2)).sum(0) > 20)
    assert len(striped) and striped.min() > 2 / 3 * drawn.shape[1] - 20  # the last of three pictures


@pytest.mark.parametrize(("cells", "is_coarse"), [(2, True), (16, False)])
def test_a_map_of_too_few_cells_is_said_to_be_in_the_colour_of_what_is_wrong(tmp_path, cells, is_coarse):
    heat = np.tile(np.linspace(0, 1, 32, dtype=np.float32), (1, 32, 1))
    ones = np.ones(1, np.float32)
    maps = gradcam.Maps("hirescam", "layer", heat[:, :cells, :cells], heat, np.array([False]), ones, ones)
    assert maps.resolution.is_coarse == is_coarse
    tiles = [Tile(np.full((32, 32, 3), 128, np.uint8), "cat", "cat", 0.9, True)]
    drawn = pixels(gradcam_figure(tiles, maps, maps, tmp_path / "x.png", title="one"))
    heading = drawn[: drawn.shape[0] // 2]
    assert (like(heading, style.WRONG, 8).sum() > 100) == is_coarse
