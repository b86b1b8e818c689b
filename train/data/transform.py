"""What the host does to the decoded images of a batch."""

from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from train.data import crop, random_augment

Shape = tuple[int, int, int]
# (decoded image, row of the global batch) -> image of the row.
Transform = Callable[[np.ndarray, int], np.ndarray]


def train_transform(config: ConfigDict, shape: Shape, step: int) -> Transform:
    """The crop and the augmentation of every row of a training step.

    Args:
      config: of the run.
      shape: (H, W, C) of the rows.
      step: updates done before it.
    """
    data, count = config.data, config.batch_size
    # One generator for the batch: one for each image costs a tenth of its crop.
    generator = np.random.Generator(np.random.Philox(key=[config.seed, step]))
    cut = _center(shape)
    if data.crop == "resized":
        cut = _random(shape, crop.draw(generator, count), crop.INTERPOLATIONS[data.interpolation])
    if data.augmentation == "none":
        return cut
    draws = random_augment.draw(generator, count, data)
    ranges = random_augment.ranges(data.augmentation, shape[0])
    return lambda image, row: random_augment.apply(cut(image, row), draws, row, ranges)


def eval_transform(data: ConfigDict, shape: Shape) -> Transform:
    """The crop of an evaluation.

    Args:
      data: the `data` part of a run's config.
      shape: (H, W, C) of the rows.
    """
    if data.crop == "pad":
        return _center(shape)
    return _center(shape, data.eval_crop_ratio, crop.INTERPOLATIONS[data.interpolation])


def _center(shape: Shape, ratio: float = 1.0, interpolation: int | None = None) -> Transform:
    return lambda image, row: crop.center(image, shape, ratio, interpolation)


def _random(shape: Shape, draws: crop.Draws, interpolation: int) -> Transform:
    def cut(image: np.ndarray, row: int) -> np.ndarray:
        top, left, height, width = crop.random_box(image.shape[0], image.shape[1], draws, row)
        box = image[top : top + height, left : left + width]
        return crop.resize(box, shape[:2], interpolation)

    return cut
