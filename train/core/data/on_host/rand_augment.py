"""RandAugment and TrivialAugment on the host, of images (H, W, C) in uint8.

They differ in how many operations an image gets, how strong those are, in their ranges, and what
is drawn from. Pixels that come from outside of the image are black.

`randaugment_increasing` is the form of timm's recipes, `rand-m6-mstd0.5-inc1` and its like, in
which every operation grows with its level, as here those of the others do as well: without the
identity, with two operations more and stronger posterisation, and each operation of an image left
out with probability 1/2. timm's levels are of 10, and these of 30; its pixels from outside are of
the mean colour.

Sources: E. Cubuk et al., RandAugment, 2019, https://arxiv.org/abs/1909.13719; S. Müller and
F. Hutter, TrivialAugment (its wide ranges), 2021, https://arxiv.org/abs/2103.10158; R. Wightman,
timm, https://github.com/huggingface/pytorch-image-models.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from train.core.config.data_fields import LEVELS, DataConfig

# (image, level in 0 … 1, sign, ranges) -> image
Operation = Callable[[np.ndarray, float, int, "Ranges"], np.ndarray]


class OperationDraws(NamedTuple):
    """The random numbers of a batch.

    Attributes:
      operations: Places in `operations_of`, (N, n); −1: none.
      levels: Strengths from 0 to LEVELS, (N, n).
      signs: Directions, −1 or 1, of operations that have two, (N, n).
    """

    operations: np.ndarray
    levels: np.ndarray
    signs: np.ndarray


class Ranges(NamedTuple):
    """The strength of the operations at the highest level.

    Attributes:
      shear: Tangent of the angle.
      translate: Distance, in pixels.
      rotate: Angle, in degrees.
      enhance: Difference of the factor of a colour operation from 1.
      posterize: Number of bits that are dropped.
    """

    shear: float
    translate: float
    rotate: float
    enhance: float
    posterize: float


def draw(generator: np.random.Generator, count: int, config: DataConfig) -> OperationDraws:
    """Draws the operations of a batch.

    Args:
      generator: Generator of the batch.
      count: Number of images of the batch.
      config: The `data` part of a run's config.
    """
    name = config.augmentation
    is_trivial = name == "trivialaugment"
    shape = (count, 1 if is_trivial else config.randaugment_operations)
    levels = np.full(shape, config.randaugment_level)
    draws = OperationDraws(
        operations=generator.integers(0, len(operations_of(name)), shape),
        levels=generator.integers(0, LEVELS, shape, endpoint=True) if is_trivial else levels,
        signs=generator.choice((-1, 1), shape),
    )
    if config.randaugment_std and not is_trivial:
        spread = generator.normal(0, config.randaugment_std, shape)
        draws = draws._replace(levels=np.clip(levels + spread, 0, LEVELS))
    if name == "randaugment_increasing":
        left_out = generator.random(shape) < 0.5
        draws = draws._replace(operations=np.where(left_out, -1, draws.operations))
    return draws


def ranges(name: str, size: int) -> Ranges:
    """The ranges of an augmentation for images of a size."""
    if name == "trivialaugment":
        return Ranges(shear=0.99, translate=32, rotate=135, enhance=0.99, posterize=6)
    if name == "randaugment_increasing":
        return Ranges(0.3, 0.45 * size, 30, enhance=0.9, posterize=4)
    return Ranges(shear=0.3, translate=150 / 331 * size, rotate=30, enhance=0.9, posterize=4)


def operations_of(name: str) -> tuple[Operation, ...]:
    """The operations that an augmentation draws from."""
    return INCREASING_OPERATIONS if name == "randaugment_increasing" else OPERATIONS


def apply(
    image: np.ndarray,
    draws: OperationDraws,
    row: int,
    limits: Ranges,
    operations: tuple[Operation, ...],
) -> np.ndarray:
    """Applies a row's operations to its image, one after the other.

    Args:
      image: Image, (H, W, C) uint8.
      draws: Draws of the batch.
      row: Row of the image in the draws.
      limits: Ranges of the augmentation.
      operations: Operations that the draws choose from.
    """
    for operation, level, sign in zip(*(part[row].tolist() for part in draws), strict=True):
        if operation >= 0:
            changed = operations[operation](image, level / LEVELS, sign, limits)
            image = changed.reshape(image.shape)
    return image


def _warp(image: np.ndarray, matrix: list[list[float]]) -> np.ndarray:
    """Pixel (x, y) of the result is the one at matrix · (x, y, 1)."""
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, np.array(matrix, np.float64), image.shape[1::-1], flags=flags)


def _blend(base: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    """Base + factor · (image − base), rounded and clipped."""
    return cv2.addWeighted(image, factor, base, 1 - factor, 0)


def _grey(image: np.ndarray) -> np.ndarray:
    if image.shape[2] == 1:
        return image
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _of_channels(image: np.ndarray, table: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Maps the values of every channel by a table made from its histogram."""
    channels = range(image.shape[2])
    counts = (cv2.calcHist([image], [c], None, [256], (0, 256)).ravel() for c in channels)
    tables = [table(count.astype(np.int64)) for count in counts]
    return cv2.LUT(image, np.stack(tables, -1).astype(np.uint8)[None])


def identity(image: np.ndarray, level: float, sign: int, limits: Ranges) -> np.ndarray:
    """The image itself."""
    return image


def shear_x(image: np.ndarray, level: float, sign: int, limits: Ranges) -> np.ndarray:
    """Moves each row sideways, by its distance from the top."""
    return _warp(image, [[1, sign * level * limits.shear, 0], [0, 1, 0]])


def shear_y(image: np.ndarray, level: float, sign: int, limits: Ranges) -> np.ndarray:
    """Moves each column up or down, by its distance from the left."""
    return _warp(image, [[1, 0, 0], [sign * level * limits.shear, 1, 0]])


def translate_x(image: np.ndarray, level: float, sign: int, limits: Ranges) -> np.ndarray:
    """Moves the image sideways, by whole pixels."""
    return _warp(image, [[1, 0, sign * int(level * limits.translate)], [0, 1, 0]])


def translate_y(image: np.ndarray, level: float, sign: int, limits: Ranges) -> np.ndarray:
    """Moves the image up or down, by whole pixels."""
    return _warp(image, [[1, 0, 0], [0, 1, sign * int(level * limits.translate)]])


def rotate(image: np.ndarray, level: float, sign: int, limits: Ranges) -> np.ndarray:
    """Turns the image around its centre."""
    height, width, _ = image.shape
    middle = ((width - 1) / 2, (height - 1) / 2)
    matrix = cv2.getRotationMatrix2D(middle, sign * level * limits.rotate, 1.0)
    return _warp(image, matrix.tolist())


def brightness(image: np.ndarray, level: float, sign: int, limits: Ranges) -> np.ndarray:
    """Away from black or towards it."""
    return _blend(np.zeros_like(image), image, 1 + sign * level * limits.enhance)


def color(image: np.ndarray, level: float, sign: int, limits: Ranges) -> np.ndarray:
    """Away from grey or towards it."""
    return _blend(_grey(image), image, 1 + sign * level * limits.enhance)


def contrast(image: np.ndarray, level: float, sign: int, limits: Ranges) -> np.ndarray:
    """Away from the mean grey or towards it."""
    mean = np.full_like(image, int(_grey(image).mean() + 0.5))
    return _blend(mean, image, 1 + sign * level * limits.enhance)


def sharpness(image: np.ndarray, level: float, sign: int, limits: Ranges) -> np.ndarray:
    """Away from a smoothed image or towards it; the border stays."""
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    smooth = image.copy()
    filtered = cv2.filter2D(image, -1, kernel).reshape(image.shape)
    smooth[1:-1, 1:-1] = filtered[1:-1, 1:-1]
    return _blend(smooth, image, 1 + sign * level * limits.enhance)


def posterize(image: np.ndarray, level: float, sign: int, limits: Ranges) -> np.ndarray:
    """Sets the lowest bits to zero."""
    return image & np.uint8(256 - 2 ** round(level * limits.posterize))


def posterize_more(image: np.ndarray, level: float, sign: int, limits: Ranges) -> np.ndarray:
    """Sets the lowest bits to zero, from four on; at the highest level all."""
    return image & np.uint8(256 - 2 ** (4 + int(level * limits.posterize)))


def solarize(image: np.ndarray, level: float, sign: int, limits: Ranges) -> np.ndarray:
    """Inverts the values that are not below a threshold."""
    values = np.arange(256)
    table = np.where(values >= 255 * (1 - level), 255 - values, values)
    return cv2.LUT(image, table.astype(np.uint8))


def solarize_add(image: np.ndarray, level: float, sign: int, limits: Ranges) -> np.ndarray:
    """Makes the darker half of the values brighter, by at most 110."""
    values = np.arange(256)
    table = np.where(values < 128, np.minimum(values + int(level * 110), 255), values)
    return cv2.LUT(image, table.astype(np.uint8))


def invert(image: np.ndarray, level: float, sign: int, limits: Ranges) -> np.ndarray:
    """Makes black white."""
    return 255 - image


def autocontrast(image: np.ndarray, level: float, sign: int, limits: Ranges) -> np.ndarray:
    """Stretches the values of every channel to 0 … 255."""

    def table(histogram: np.ndarray) -> np.ndarray:
        values = np.arange(256)
        low, high = np.flatnonzero(histogram)[[0, -1]]
        return values if low == high else np.clip((values - low) * 255 / (high - low), 0, 255)

    return _of_channels(image, table)


def equalize(image: np.ndarray, level: float, sign: int, limits: Ranges) -> np.ndarray:
    """Spreads the values of every channel so that all are about equally frequent."""

    def table(histogram: np.ndarray) -> np.ndarray:
        step = (histogram.sum() - histogram[np.flatnonzero(histogram)[-1]]) // 255
        if step == 0:
            return np.arange(256)
        below = np.cumsum(histogram) - histogram
        return np.minimum((below + step // 2) // step, 255)

    return _of_channels(image, table)


OPERATIONS: tuple[Operation, ...] = (
    *(identity, shear_x, shear_y, translate_x, translate_y, rotate, brightness, color),
    *(contrast, sharpness, posterize, solarize, autocontrast, equalize),
)
INCREASING_OPERATIONS: tuple[Operation, ...] = (
    *(operation for operation in OPERATIONS if operation not in (identity, posterize)),
    *(posterize_more, solarize_add, invert),
)
