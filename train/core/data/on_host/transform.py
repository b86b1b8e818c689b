"""What the host makes of the records of a batch."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from train.core.config.data_fields import DataConfig, Interpolation
from train.core.config.fields import Config
from train.core.data import crop
from train.core.data.on_host import partial_jpeg, rand_augment
from train.core.data.sources.records import BadRecordError, Record, decode

Shape = tuple[int, int, int]


class Transform(NamedTuple):
    """Makes the image of a row of the global batch from a record.

    Attributes:
      decode: Gives the part of a record's image that a row needs; raises BadRecordError.
      finish: Gives the image of a row from that part.
    """

    decode: Callable[[Record, int], np.ndarray]
    finish: Callable[[np.ndarray, int], np.ndarray]

    def apply(self, record: Record, row: int) -> np.ndarray:
        """The image of a row."""
        return self.finish(self.decode(record, row), row)


def train_transform(config: Config, shape: Shape, step: int) -> Transform:
    """The crop and the augmentation of every row of a training step.

    Args:
      config: Config of the run.
      shape: (H, W, C) of the rows.
      step: Number of updates done before it.
    """
    data, count = config.data, config.batch_size
    # One generator for the batch: one for each image costs a tenth of its crop.
    generator = np.random.Generator(np.random.Philox(key=[config.seed, step]))
    cut = _center(shape)
    if data.crop == "resized":
        cut = _random(shape, crop.draw(generator, count), data.interpolation)
    if data.augmentation == "none":
        return cut
    draws = rand_augment.draw(generator, count, data)
    ranges = rand_augment.ranges(data.augmentation, shape[0])
    operations = rand_augment.operations_of(data.augmentation)
    return Transform(
        cut.decode,
        lambda part, row: rand_augment.apply(cut.finish(part, row), draws, row, ranges, operations),
    )


def eval_transform(data: DataConfig, shape: Shape) -> Transform:
    """The crop of an evaluation.

    Args:
      data: The `data` part of a run's config.
      shape: (H, W, C) of the rows.
    """
    if data.crop == "pad":
        return _center(shape)
    return _center(shape, data.eval_crop_ratio, data.interpolation)


def _center(
    shape: Shape, ratio: float = 1.0, interpolation: Interpolation | None = None
) -> Transform:
    return Transform(
        lambda record, row: decode(record, shape[-1]),
        lambda image, row: crop.center(image, shape, ratio, interpolation),
    )


def _random(shape: Shape, draws: crop.CropDraws, interpolation: Interpolation) -> Transform:
    def decode_part(record: Record, row: int) -> np.ndarray:
        header = partial_jpeg.header(record.encoded)
        if header is not None and not (record.upright and header.is_turned):
            box = crop.random_box(header.height, header.width, draws, row)
            ended = partial_jpeg.end_below(record.encoded, header, box.top + box.height)
            part = record._replace(encoded=ended, upright=False)
            try:
                return crop.take(decode(part, shape[-1]), box)
            # What is odd about the file may be in the way of ending it.
            except BadRecordError:
                pass
        image = decode(record, shape[-1])
        return crop.take(image, crop.random_box(image.shape[0], image.shape[1], draws, row))

    return Transform(decode_part, lambda part, row: crop.resize(part, shape[:2], interpolation))
