"""A few images to look at, as an evaluation has them."""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from train.core.config.data_fields import DataConfig
from train.core.data.on_host.transform import eval_transform
from train.core.data.sources.image_files import read_file
from train.core.data.sources.records import BadRecordError, Record
from train.core.data.sources.split import Split
from train.core.errors import ConfigError, named_by, reason

# Laying out the gallery of more would take minutes.
MOST_IMAGES = 100
# Of a split, where no number is asked for.
COUNT = 16


class Image(NamedTuple):
    """An image.

    Attributes:
      name: Name in the dataset, or of its file.
      pixels: Array (H, W, C) uint8, as it is evaluated.
      label: Index of its class, where that is known.
    """

    name: str
    pixels: np.ndarray
    label: int | None = None


@dataclasses.dataclass(frozen=True)
class Asked:
    """What to draw.

    Attributes:
      files: Names of image files.
      split: Name of the split of which images are drawn where there are no files.
      count: Number of its images; None: `COUNT`.
      layer: Path of the layer whose gates are drawn; None: the last one with NAM.
    """

    files: Sequence[str] = ()
    split: str | None = None
    count: int | None = None
    layer: str | None = None

    def check(self) -> None:
        """Checks what --images, --split and --count ask for.

        Raises:
          ConfigError: it is neither files nor a split, or both; too many files, or one without a
            name; or --count beside --images.
        """
        if not all(self.files):
            raise ConfigError(
                f"--images: got {','.join(self.files)!r}; allowed: files, with commas between."
            )
        if bool(self.files) == (self.split is not None):
            raise ConfigError("give --images or --split, one of the two.")
        if self.files and self.count is not None:
            raise ConfigError("--count is of --split; all files of --images are drawn.")
        if len(self.files) > MOST_IMAGES:
            raise ConfigError(f"--images: {len(self.files)} files; at most {MOST_IMAGES}.")


def chosen(
    asked: Asked,
    open_split: Callable[[str], Split],
    data: DataConfig,
    shape: tuple[int, int, int],
) -> list[Image]:
    """The images that are asked for.

    Args:
      asked: What to draw.
      open_split: Opens a split by its name.
      data: The `data` part of a run's config.
      shape: Shape (H, W, C) of the images.

    Raises:
      ConfigError: one cannot be read, or the split is not there or holds none.
    """
    if asked.split is None:
        return of_files(asked.files, data, shape)
    with named_by("--split"):
        split = open_split(asked.split)
    return of_split(split, asked.count or COUNT, data, shape)


def of_files(files: Sequence[str], data: DataConfig, shape: tuple[int, int, int]) -> list[Image]:
    """Reads image files, upright as their metadata say.

    Args:
      files: Names of the files.
      data: The `data` part of a run's config.
      shape: Shape (H, W, C) of the images.

    Raises:
      ConfigError: one cannot be read, or is no image.
    """
    transform = eval_transform(data, shape)
    images = []
    for file in files:
        try:
            encoded = read_file(os.path.expanduser(file))
            record = Record(encoded, label=0, file_name=file, upright=True)
            images.append(Image(Path(file).name, transform.apply(record, row=0)))
        except (OSError, ValueError) as error:
            raise ConfigError(f"--images: {file}: {reason(error)}") from error
    return images


def of_split(
    split: Split, count: int, data: DataConfig, shape: tuple[int, int, int]
) -> list[Image]:
    """Reads some images of a split, passing over bad records.

    The first ones; of files, which come class by class, some at equal distances.

    Args:
      split: The split.
      count: Number of images, if it has as many.
      data: The `data` part of a run's config.
      shape: Shape (H, W, C) of the images.

    Raises:
      ConfigError: it holds no image that can be read.
    """
    stride = max(1, split.num_examples // count) if split.files else 1
    images = list(islice(_all_of(split, data, shape, stride), count))
    if not images:
        raise ConfigError(
            f"--split: {split.name!r} of {data.name} has no image that can be read; python -m "
            "train.prepare check says why."
        )
    return images


def _all_of(
    split: Split, data: DataConfig, shape: tuple[int, int, int], stride: int
) -> Iterator[Image]:
    if not split.has_records:
        for index, (pixels, label) in enumerate(zip(*split.load(), strict=True)):
            yield Image(f"{split.name} {index}", pixels, int(label))
        return
    records, transform = split.open_records(), eval_transform(data, shape)
    starts = range(stride)
    for index in chain.from_iterable(range(start, len(records), stride) for start in starts):
        try:
            record = records[index]
            name = record.file_name or f"{split.name} {index}"
            yield Image(name, transform.apply(record, row=0), record.label)
        except BadRecordError as error:
            print(f"bad record: {error.of(split.name, index)}", file=sys.stderr)
