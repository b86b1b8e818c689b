"""What the host makes of an image: crops, RandAugment, JPEG files that end early."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers.image_datasets import tfds_writer
from train.core.config.fields import default_config
from train.core.data import crop
from train.core.data.on_host import partial_jpeg
from train.core.data.on_host import rand_augment as ra
from train.core.data.sources.records import Record, decode

# Crops: the definition of the random resized crop, and what is cut from which image.


def crop_draws(count=1, seed=0):
    return crop.draw(np.random.default_rng(seed), count)


def draws_of(areas, aspects, place=(0.5, 0.5)):
    """One row of draws, the last area and aspect repeated."""
    fill = crop.ATTEMPTS - len(areas)
    rows = [*areas, *[areas[-1]] * fill], [*aspects, *[aspects[-1]] * fill], place
    return crop.CropDraws(*(np.array([row], float) for row in rows))


def test_draws_are_uniform_in_area_and_in_the_logarithm_of_the_aspect():
    areas, aspects, places = crop_draws(2000)
    np.testing.assert_allclose(np.quantile(areas, [0, 0.5, 1]), [0.08, 0.54, 1], atol=0.01)
    logs = np.log(aspects) / np.log(4 / 3)
    np.testing.assert_allclose(np.quantile(logs, [0, 0.25, 0.5, 1]), [-1, -0.5, 0, 1], atol=0.02)
    np.testing.assert_allclose(np.quantile(places, [0, 0.5, 1]), [0, 0.5, 1], atol=0.02)


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (224, 224), (1, 1), (3, 200), (9, 1)])
def test_boxes_lie_in_the_image_and_have_the_drawn_area_and_aspect(size):
    height, width = size
    drawn = crop_draws(300)
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
@pytest.mark.parametrize(
    ("interpolation", "number"),
    [("bilinear", cv2.INTER_LINEAR), ("bicubic", cv2.INTER_CUBIC), ("area", cv2.INTER_AREA)],
)
def test_resize_is_that_of_each_channel(channels, interpolation, number):
    image = np.random.default_rng(0).integers(0, 256, (30, 20, channels), np.uint8)
    resized = crop.resize(image, (12, 16), interpolation)
    for channel in range(channels):
        alone = np.ascontiguousarray(image[..., channel])
        expected = cv2.resize(alone, (16, 12), interpolation=number)
        np.testing.assert_array_equal(resized[..., channel], expected)


def triangle_filtered(image, size, axis):
    """Weighted means along an axis, with a triangle as wide as two pixels of the larger grid."""
    scale = image.shape[axis] / size
    centers = (np.arange(size) + 0.5) * scale
    places = np.arange(image.shape[axis]) + 0.5
    weights = np.maximum(0, 1 - abs(places - centers[:, None]) / max(scale, 1))
    weights /= weights.sum(1, keepdims=True)
    filtered = np.moveaxis(np.tensordot(weights, image, (1, axis)), 0, axis)
    return np.floor(filtered + 0.5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(12, 16), (13, 61), (70, 9), (60, 90)])
def test_antialiasing_is_a_triangle_filter_over_rows_and_columns(size, channels):
    image = np.random.default_rng(0).integers(0, 256, (37, 45, channels), np.uint8)
    rows, columns = size
    expected = triangle_filtered(triangle_filtered(image, columns, axis=1), rows, axis=0)
    difference = abs(crop.resize(image, size, "antialias") - expected)
    # Rows and columns are rounded each, and Pillow begins with either.
    assert difference.max() <= 1
    assert difference.mean() < 0.5


def test_center_of_the_usual_evaluation():
    """Short side to 256, then 224 × 224 from the middle; a ramp tells where pixels come from."""
    ramp = np.broadcast_to(np.arange(500, dtype=np.float32)[None, :, None], (375, 500, 3)) / 2
    image = crop.center(ramp.astype(np.uint8), (224, 224, 3), 0.875, "bilinear")
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


# RandAugment and TrivialAugment: each operation by its definition, and what is drawn.

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
    every = (*ra.OPERATIONS, *ra.INCREASING_OPERATIONS)
    rows = np.arange(len(every))[:, None]
    draws = ra.OperationDraws(rows, np.full_like(rows, 20), np.ones_like(rows))
    for row in range(len(every)):
        found = ra.apply(image, draws, row, TRIVIAL, every)
        assert (found.shape, found.dtype) == (image.shape, np.uint8)
        np.testing.assert_array_equal(image, before)


def draw(augmentation, count=4000, **fields):
    config = dataclasses.replace(default_config().data, augmentation=augmentation, **fields)
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
    draws = ra.OperationDraws(*(np.array([row]) for row in ([11, 10], [30, 15], [1, 1])))
    assert [ra.OPERATIONS[i] for i in (11, 10)] == [ra.solarize, ra.posterize]
    expected = call(ra.posterize, 15, image=call(ra.solarize, 30))
    np.testing.assert_array_equal(ra.apply(IMAGE, draws, 0, RAND, ra.OPERATIONS), expected)


def test_levels_spread_around_the_configs_and_stay_in_their_range():
    draws = draw("randaugment", randaugment_level=15, randaugment_std=3.0)
    assert draws.levels.shape == (4000, 2)
    assert abs(draws.levels.mean() - 15) < 0.2
    assert abs(draws.levels.std() - 3) < 0.2
    wide = draw("randaugment", randaugment_level=29, randaugment_std=10.0).levels
    # Half of those above 29 are above 30, but for a little.
    assert (wide.min(), wide.max()) == (0, 30)
    assert abs((wide == 30).mean() - 0.46) < 0.03


def test_deviation_changes_no_other_draws():
    plain, spread = (draw("randaugment", randaugment_std=std) for std in (0.0, 2.0))
    np.testing.assert_array_equal(plain.operations, spread.operations)
    np.testing.assert_array_equal(plain.signs, spread.signs)


def test_increasing_form_leaves_half_of_the_operations_out():
    draws = draw("randaugment_increasing", randaugment_level=18, randaugment_std=1.5)
    shares = np.bincount(draws.operations.ravel() + 1, minlength=16) / 8000
    np.testing.assert_allclose(shares, [0.5, *[0.5 / 15] * 15], atol=0.02)
    none = ra.OperationDraws(np.array([[-1, -1]]), np.array([[30, 30]]), np.array([[1, 1]]))
    increasing = ra.operations_of("randaugment_increasing")
    assert ra.apply(IMAGE, none, 0, RAND, increasing) is IMAGE


def test_increasing_form_has_the_fifteen_operations_of_timm():
    names = [operation.__name__ for operation in ra.operations_of("randaugment_increasing")]
    assert len(set(names)) == 15
    assert {"invert", "solarize_add", "posterize_more"} < set(names)
    assert not {"identity", "posterize"} & set(names)
    assert ra.ranges("randaugment_increasing", 160) == (0.3, 72, 30, 0.9, 4)
    assert ra.operations_of("randaugment") is ra.OPERATIONS


@pytest.mark.parametrize(("level", "kept"), [(0, 4), (9, 3), (18, 2), (21, 2), (29, 1), (30, 0)])
def test_stronger_posterisation_keeps_four_bits_or_less(level, kept):
    expected = IMAGE >> (8 - kept) << (8 - kept)
    np.testing.assert_array_equal(call(ra.posterize_more, level), expected)


@pytest.mark.parametrize(("level", "added"), [(0, 0), (18, 66), (21, 77), (30, 110)])
def test_dark_values_are_made_brighter(level, added):
    expected = [min(255, v + added) if v < 128 else v for v in IMAGE.ravel()]
    np.testing.assert_array_equal(call(ra.solarize_add, level).ravel(), expected)


def test_black_becomes_white():
    np.testing.assert_array_equal(call(ra.invert, 9), 255 - IMAGE)


# JPEG files that end early: the same bits above, and no file that could not be ended.

CMYK = (Path(__file__).parents[3] / "golden" / "cmyk.jpg").read_bytes()
NOISE = np.random.default_rng(0).integers(0, 256, (101, 67, 3), np.uint8)
PICTURE = cv2.GaussianBlur(NOISE, (5, 5), 0)


def encode(*options, image=PICTURE):
    return tfds_writer.encode(image, ".jpg", *options)


def pixels(encoded, channels=3):
    return decode(Record(encoded, 0, ""), channels)


KINDS = {
    **{
        name: encode(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, getattr(cv2, f"IMWRITE_JPEG_{name}"))
        for name in (f"SAMPLING_FACTOR_{n}" for n in (411, 420, 422, 440, 444))
    },
    "optimised tables": encode(cv2.IMWRITE_JPEG_OPTIMIZE, 1),
    "low quality": encode(cv2.IMWRITE_JPEG_QUALITY, 20),
    "grey": encode(image=PICTURE[..., :1]),
    "cmyk": CMYK,
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("encoded", KINDS.values(), ids=KINDS)
def test_rows_above_keep_their_bits(encoded, channels, capfd):
    whole, header = pixels(encoded, channels), partial_jpeg.header(encoded)
    assert (header.height, header.width) == whole.shape[:2]
    for bottom in range(1, header.height + 1, 3):
        ended = partial_jpeg.end_below(encoded, header, bottom)
        image = pixels(ended, channels)
        assert bottom <= len(image) <= bottom + 2 * header.block_rows
        np.testing.assert_array_equal(image[:bottom], whole[:bottom])
    assert capfd.readouterr().err == ""


def test_all_rows_are_the_file_itself():
    encoded = encode()
    assert partial_jpeg.end_below(encoded, partial_jpeg.header(encoded), len(PICTURE)) is encoded


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\xff\xd8\xff\xd9",
        tfds_writer.encode(PICTURE),
        encode(cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        encode(cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
        encode()[:-2],
        encode()[: len(encode()) // 2],
        encode()[:150] + b"\xff\xd9",
        encode() + b"trailing bytes",
        encode().replace(b"\xff\xc0", b"\xff\xfe", 1),
        encode().replace(b"\x01\x22\x00", b"\x01\x20\x00", 1),
    ],
    ids=[
        *("empty", "nothing inside", "PNG", "progressive", "restart markers", "no end", "half"),
        *("header", "more", "no frame", "no sampling"),
    ],
)
def test_other_files_are_not_ended(encoded):
    assert partial_jpeg.header(encoded) is None


def test_scan_of_one_channel_of_three_is_not_ended():
    encoded = bytearray(encode())
    encoded[encoded.index(b"\xff\xda") + 4] = 1
    assert partial_jpeg.header(bytes(encoded)) is None
