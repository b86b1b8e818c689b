"""RandAugment and TrivialAugment: each operation by its definition, and what is drawn."""

import numpy as np
import pytest

from train.core.config.fields import default_config
from train.core.data.on_host import rand_augment as ra

RAND, TRIVIAL = ra.ranges("randaugment", 224), ra.ranges("trivialaugment", 224)
IMAGE = np.random.default_rng(0).integers(20, 230, (12, 10, 3), np.uint8)
WEIGHTS = (0.299, 0.587, 0.114)
LEVELS = [0, 9, 30]

each_range = pytest.mark.parametrize("limits", [RAND, TRIVIAL], ids=["rand", "trivial"])
each_level = pytest.mark.parametrize("level", LEVELS)
each_sign = pytest.mark.parametrize("sign", [-1, 1])


def call(operation, level, sign=1, limits=RAND, image=IMAGE):
    return operation(image, level / ra.LEVELS, sign, limits)


def test_there_are_the_fourteen_operations_of_the_papers():
    assert len(set(ra.OPERATIONS)) == 14


def test_ranges():
    assert RAND == (0.3, 150 / 331 * 224, 30, 0.9, 4)
    assert TRIVIAL == (0.99, 32, 135, 0.99, 6)


def taken(rows, columns):
    """The pixels at (rows, columns), black outside of the image."""
    inside = (rows >= 0) & (rows < 12) & (columns >= 0) & (columns < 10)
    pixels = IMAGE[np.clip(rows, 0, 11), np.clip(columns, 0, 9)]
    return np.where(inside[..., None], pixels, 0)


ROWS, COLUMNS = np.mgrid[:12, :10]


@each_range
@each_sign
@pytest.mark.parametrize("level", [0, 10, 30])
def test_shear_and_translation_take_each_pixel_from_its_place(level, sign, limits):
    shear = sign * level / 30 * limits.shear
    moved = sign * int(level / 30 * limits.translate)
    for operation, rows, columns in (
        (ra.shear_x, ROWS, COLUMNS + shear * ROWS),
        (ra.shear_y, ROWS + shear * COLUMNS, COLUMNS),
        (ra.translate_x, ROWS, COLUMNS + moved),
        (ra.translate_y, ROWS + moved, COLUMNS),
    ):
        near_half = (np.abs(rows % 1 - 0.5) < 0.04) | (np.abs(columns % 1 - 0.5) < 0.04)
        expected = taken(np.rint(rows).astype(int), np.rint(columns).astype(int))
        found = call(operation, level, sign, limits)
        np.testing.assert_array_equal(found[~near_half], expected[~near_half])


def test_quarter_turns_are_exact():
    square = IMAGE[:10]
    quarter = TRIVIAL._replace(rotate=90)
    left, right = (call(ra.rotate, 30, sign, quarter, square) for sign in (1, -1))
    np.testing.assert_array_equal(left, np.rot90(square, -1))
    np.testing.assert_array_equal(right, np.rot90(square))


def test_rotation_keeps_the_middle_and_blackens_the_corners():
    white = np.full((41, 41, 3), 255, np.uint8)
    for level, limits in ((30, RAND), (10, TRIVIAL)):
        turned = call(ra.rotate, level, 1, limits, white)
        assert turned[10:31, 10:31].min() == 255
        assert turned[0, 0].max() == turned[-1, 0].max() == 0


def blended(base, factor):
    return np.clip(base + factor * (IMAGE.astype(float) - base), 0, 255)


@each_range
@each_level
@each_sign
def test_enhancements_blend_with_their_base(limits, level, sign):
    factor = 1 + sign * level / 30 * limits.enhance
    grey = (IMAGE @ WEIGHTS)[..., None]
    smooth = IMAGE.astype(float)
    shifted = [np.roll(IMAGE.astype(float), (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    smooth[1:-1, 1:-1] = ((sum(shifted) + 4.0 * IMAGE) / 13)[1:-1, 1:-1]
    for operation, base in (
        (ra.brightness, 0),
        (ra.color, grey),
        (ra.contrast, grey.mean()),
        (ra.sharpness, smooth),
    ):
        found = call(operation, level, sign, limits)
        assert found.dtype == np.uint8
        # The base is rounded to whole levels too.
        assert np.abs(found - blended(base, factor)).max() <= 1.6


@pytest.mark.parametrize(
    ("limits", "level", "bits"), [(RAND, 0, 0), (RAND, 15, 2), (RAND, 30, 4), (TRIVIAL, 30, 6)]
)
def test_posterize_drops_the_lowest_bits(limits, level, bits):
    expected = IMAGE >> bits << bits
    np.testing.assert_array_equal(call(ra.posterize, level, 1, limits), expected)


@pytest.mark.parametrize("level", [0, 10, 30])
def test_solarize_inverts_from_the_threshold_on(level):
    expected = [255 - v if v >= 255 * (1 - level / 30) else v for v in IMAGE.ravel()]
    np.testing.assert_array_equal(call(ra.solarize, level).ravel(), expected)


def test_autocontrast_stretches_every_channel():
    found = call(ra.autocontrast, 9)
    for channel in range(3):
        values = IMAGE[..., channel].astype(float)
        expected = (values - values.min()) * 255 / (values.max() - values.min())
        assert np.abs(found[..., channel] - expected).max() <= 1
        assert (found[..., channel].min(), found[..., channel].max()) == (0, 255)
    flat = np.full((4, 4, 3), 50, np.uint8)
    np.testing.assert_array_equal(call(ra.autocontrast, 9, image=flat), flat)


def test_equalize_maps_each_value_to_the_share_of_pixels_below_it():
    image = np.random.default_rng(1).binomial(200, 0.3, (64, 64, 3)).astype(np.uint8)
    found = call(ra.equalize, 9, image=image)
    for channel in range(3):
        values = image[..., channel].ravel().astype(int)
        step = (len(values) - (values == values.max()).sum()) // 255
        below = np.array([(values < value).sum() for value in values])
        expected = np.minimum((below + step // 2) // step, 255)
        np.testing.assert_array_equal(found[..., channel].ravel(), expected)
    assert (found.min(), found.max()) == (0, 255)
    flat = np.full((40, 40, 3), 50, np.uint8)
    np.testing.assert_array_equal(call(ra.equalize, 9, image=flat), flat)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_keeps_shape_and_type_and_its_input(channels):
    image = IMAGE[..., :channels].copy()
    before = image.copy()
    draws = ra.Draws(np.arange(14)[:, None], np.full((14, 1), 20), np.ones((14, 1), int))
    for row in range(14):
        found = ra.apply(image, draws, row, TRIVIAL)
        assert (found.shape, found.dtype) == (image.shape, np.uint8)
        np.testing.assert_array_equal(image, before)


def draw(augmentation, count=4000, **fields):
    config = default_config().data
    config.update(augmentation=augmentation, **fields)
    return ra.draw(np.random.default_rng(0), count, config)


def test_randaugment_draws_operations_of_one_strength():
    draws = draw("randaugment", randaugment_operations=3, randaugment_level=12)
    assert draws.operations.shape == (4000, 3)
    assert set(draws.levels.ravel()) == {12}
    shares = np.bincount(draws.operations.ravel(), minlength=14) / 12000
    np.testing.assert_allclose(shares, 1 / 14, atol=0.01)
    assert abs(draws.signs.mean()) < 0.05
    assert set(draws.signs.ravel()) == {-1, 1}


def test_trivialaugment_draws_one_operation_of_any_strength():
    draws = draw("trivialaugment")
    assert draws.operations.shape == (4000, 1)
    shares = np.bincount(draws.levels.ravel(), minlength=31) / 4000
    np.testing.assert_allclose(shares, 1 / 31, atol=0.015)


def test_operations_follow_one_another():
    draws = ra.Draws(*(np.array([row]) for row in ([11, 10], [30, 15], [1, 1])))
    assert [ra.OPERATIONS[i] for i in (11, 10)] == [ra.solarize, ra.posterize]
    expected = call(ra.posterize, 15, image=call(ra.solarize, 30))
    np.testing.assert_array_equal(ra.apply(IMAGE, draws, 0, RAND), expected)
