"""Crops: the definition of the random resized crop, and what is cut from which image."""

import cv2
import numpy as np
import pytest

from train.core.data.on_host import crop


def draws(count=1, seed=0):
    return crop.draw(np.random.default_rng(seed), count)


def draws_of(areas, aspects, place=(0.5, 0.5)):
    """One row of draws, the last area and aspect repeated."""
    fill = crop.ATTEMPTS - len(areas)
    rows = [*areas, *[areas[-1]] * fill], [*aspects, *[aspects[-1]] * fill], place
    return crop.Draws(*(np.array([row], float) for row in rows))


def test_draws_are_uniform_in_area_and_in_the_logarithm_of_the_aspect():
    areas, aspects, places = draws(2000)
    np.testing.assert_allclose(np.quantile(areas, [0, 0.5, 1]), [0.08, 0.54, 1], atol=0.01)
    logs = np.log(aspects) / np.log(4 / 3)
    np.testing.assert_allclose(np.quantile(logs, [0, 0.25, 0.5, 1]), [-1, -0.5, 0, 1], atol=0.02)
    np.testing.assert_allclose(np.quantile(places, [0, 0.5, 1]), [0, 0.5, 1], atol=0.02)


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (224, 224), (1, 1), (3, 200), (9, 1)])
def test_boxes_lie_in_the_image_and_have_the_drawn_area_and_aspect(size):
    height, width = size
    drawn = draws(300)
    fallback = 0
    for row in range(300):
        box = crop.random_box(height, width, drawn, row)
        assert 0 <= box.top <= box.top + box.height <= height
        assert 0 <= box.left <= box.left + box.width <= width
        assert min(box.height, box.width) >= 1
        areas, aspects = drawn.areas[row] * height * width, drawn.aspects[row]
        wanted = zip(np.sqrt(areas / aspects), np.sqrt(areas * aspects), strict=True)
        rounded = [(round(h), round(w)) for h, w in wanted]
        fitting = [(h, w) for h, w in rounded if 0 < h <= height and 0 < w <= width]
        fallback += not fitting
        assert (box.height, box.width) == (fitting[0] if fitting else box[2:])
    if max(size) <= 2 * min(size):
        assert fallback < 3


def test_first_box_that_fits_is_taken():
    # 1.0 of the area at aspect 4/3 is wider than a square image; then a quarter of it fits.
    box = crop.random_box(100, 100, draws_of([1.0, 0.25, 0.5], [4 / 3, 1.0, 1.0]), 0)
    assert box == (25, 25, 50, 50)


@pytest.mark.parametrize(
    ("place", "corner"), [((0, 0), (0, 0)), ((0.999, 0.999), (50, 50)), ((0.5, 0), (25, 0))]
)
def test_place_reaches_every_corner(place, corner):
    assert crop.random_box(100, 100, draws_of([0.25], [1.0], place), 0)[:2] == corner


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((300, 30), (130, 0, 40, 30)),  # tall: all of the width, height = width / (3/4)
        ((30, 300), (0, 130, 30, 40)),  # wide: all of the height, width = height · 4/3
        ((100, 100), (0, 0, 100, 100)),
    ],
)
def test_fallback_is_the_largest_box_in_the_middle(size, expected):
    # 100 % of the area never fits, unless the aspect is that of the image.
    box = crop.random_box(*size, draws_of([1.0], [1.2]), 0)
    assert box == expected


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", crop.INTERPOLATIONS.values())
def test_resize_is_that_of_each_channel(channels, interpolation):
    image = np.random.default_rng(0).integers(0, 256, (30, 20, channels), np.uint8)
    resized = crop.resize(image, (12, 16), interpolation)
    for channel in range(channels):
        alone = np.ascontiguousarray(image[..., channel])
        expected = cv2.resize(alone, (16, 12), interpolation=interpolation)
        np.testing.assert_array_equal(resized[..., channel], expected)


def test_center_of_the_usual_evaluation():
    """Short side to 256, then 224 × 224 from the middle; a ramp tells where pixels come from."""
    ramp = np.broadcast_to(np.arange(500, dtype=np.float32)[None, :, None], (375, 500, 3)) / 2
    image = crop.center(ramp.astype(np.uint8), (224, 224, 3), 0.875, cv2.INTER_LINEAR)
    assert image.shape == (224, 224, 3)
    # Scaled to 256 × 341, columns 58 … 281 remain: 58 / 341 · 500 / 2 and so on.
    np.testing.assert_allclose(image[0, [0, -1], 0], [42.5, 206], atol=1.5)


@pytest.mark.parametrize("size", [(2, 2), (1, 50), (224, 224), (223, 500)])
def test_center_of_any_size(size):
    image = np.full((*size, 3), 77, np.uint8)
    for ratio in (1.0, 0.875):
        cut = crop.center(image, (224, 224, 3), ratio)
        assert (cut.shape, cut.min(), cut.max()) == ((224, 224, 3), 77, 77)


def test_image_of_the_size_stays_only_where_all_of_it_is_wanted():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    assert crop.center(image, (8, 8, 3)) is image
    assert not np.array_equal(crop.center(image, (8, 8, 3), 0.5), image)
