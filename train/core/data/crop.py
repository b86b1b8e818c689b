"""Crops of decoded images (H, W, C) in uint8."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from train.core.config.data_fields import Interpolation

AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
ATTEMPTS = 10
# Of a scaled image, in lengths of the crop: what is farther from the centre is not scaled.
LONGEST = 32


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class CropDraws(NamedTuple):
    """The random numbers of a batch's crops.

    Attributes:
      areas: Shares of the image, uniform in AREA, (N, ATTEMPTS).
      aspects: Width / height, log-uniform in ASPECT, (N, ATTEMPTS).
      places: Places from the top and from the left, uniform in 0 … 1, (N, 2).
    """

    areas: np.ndarray
    aspects: np.ndarray
    places: np.ndarray


def draw(generator: np.random.Generator, count: int) -> CropDraws:
    """Draws the crops of a batch; always takes the same number of random numbers."""
    low, high = np.log(ASPECT)
    return CropDraws(
        areas=generator.uniform(*AREA, (count, ATTEMPTS)),
        aspects=np.exp(generator.uniform(low, high, (count, ATTEMPTS))),
        places=generator.random((count, 2)),
    )


def random_box(height: int, width: int, draws: CropDraws, row: int) -> Box:
    """The random resized crop's part of an image: the first drawn one that fits into it.

    Where none does: the largest in the middle whose aspect is within ASPECT.

    Args:
      height: Height of the image, in pixels.
      width: Width of the image, in pixels.
      draws: Draws of the batch.
      row: Row of the image in the draws.

    Source: C. Szegedy et al., Going deeper with convolutions, 2014,
    https://arxiv.org/abs/1409.4842, section 6.
    """
    areas, aspects, place = (part[row].tolist() for part in draws)
    for area, aspect in zip(areas, aspects, strict=True):
        pixels = area * height * width
        box_height, box_width = round(math.sqrt(pixels / aspect)), round(math.sqrt(pixels * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top = int(place[0] * (height - box_height + 1))
            left = int(place[1] * (width - box_width + 1))
            return Box(top, left, box_height, box_width)
    low, high = ASPECT
    box_height = min(height, max(1, round(width / low)))
    box_width = min(width, max(1, round(height * high)))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def take(image: np.ndarray, box: Box) -> np.ndarray:
    """The part of an image (H, W, C) that lies in a box."""
    return image[box.top : box.top + box.height, box.left : box.left + box.width]


def resize(image: np.ndarray, size: tuple[int, int], interpolation: Interpolation) -> np.ndarray:
    """Scales an image.

    Args:
      image: Image, (H, W, C) uint8, of 1 or 3 channels.
      size: Height and width of the result, in pixels.
      interpolation: Name of the interpolation. Where an image shrinks, `bilinear` and `bicubic`
        skip pixels; `area` and `antialias` average them, the latter with weights that fall
        off linearly, as torchvision's transforms do.
    """
    return INTERPOLATIONS[interpolation](image, size[::-1]).reshape(*size, image.shape[2])


def _antialiased(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    # To Pillow a grey image has no axis of channels.
    plane = image[..., 0] if image.shape[2] == 1 else image
    return np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR))


# (image (H, W, C), its new width and height) -> image, without the axis of one channel.
INTERPOLATIONS: dict[Interpolation, Callable[[np.ndarray, tuple[int, int]], np.ndarray]] = {
    "bilinear": functools.partial(cv2.resize, interpolation=cv2.INTER_LINEAR),
    "bicubic": functools.partial(cv2.resize, interpolation=cv2.INTER_CUBIC),
    "area": functools.partial(cv2.resize, interpolation=cv2.INTER_AREA),
    "antialias": _antialiased,
}


def center(
    image: np.ndarray,
    shape: tuple[int, int, int],
    ratio: float = 1.0,
    interpolation: Interpolation | None = None,
) -> np.ndarray:
    """Scales an image so that the crop covers a share of it, and cuts out its centre.

    For a square crop this is the usual evaluation: the short side becomes size / ratio.

    Args:
      image: Image, (H, W, C) uint8.
      shape: (height, width, C) of the result.
      ratio: Ratio of the crop's size to the scaled short side.
      interpolation: Name of the interpolation; None: area where the image shrinks, bilinear where
        it grows.
    """
    if image.shape == shape and ratio == 1:
        return image
    height, width, _ = shape
    scale = max(height / image.shape[0], width / image.shape[1]) / ratio
    # Scaled as a whole, an image of 1 × 65,500 pixels takes gigabytes.
    longest = (math.ceil(LONGEST * side / scale) for side in (height, width))
    image = _middle(image, *map(min, image.shape, longest))
    rows = max(height, round(image.shape[0] * scale))
    columns = max(width, round(image.shape[1] * scale))
    if interpolation is None:
        interpolation = "area" if scale < 1 else "bilinear"
    return _middle(resize(image, (rows, columns), interpolation), height, width)


def _middle(image: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return take(image, Box(top, left, height, width))
