"""A few images to look at, as an evaluation has them."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from train.core.config.fields import DataConfig
from train.core.data.on_host.transform import eval_transform
from train.core.data.sources import registry
from train.core.data.sources.records import BadRecord, BadRecordError, Record
from train.core.data.sources.split import Split
from train.core.errors import ConfigError, UnknownSplitError, reason


class Picture(NamedTuple):
    """An image.

    Attributes:
      name: what it is called in the dataset, or its file.
      image: (H, W, C) uint8, as it is evaluated.
      label: of its class, where that is known.
    """

    name: str
    image: np.ndarray
    label: int | None = None


def of_files(files: Sequence[str], data: DataConfig, shape: tuple[int, int, int]) -> list[Picture]:
    """Reads image files, JPEG or PNG.

    Args:
      files: their names.
      data: the `data` part of a run's config.
      shape: (H, W, C) of the pictures.

    Raises:
      ConfigError: one cannot be read, or is no image.
    """
    transform = eval_transform(data, shape)
    found = []
    for file in files:
        try:
            record = Record(Path(file).expanduser().read_bytes(), label=0, file_name=file)
            found.append(Picture(Path(file).name, transform.apply(record, row=0)))
        except (OSError, BadRecordError) as error:
            raise ConfigError(f"--images: {file}: {reason(error)}") from error
    return found


def of_split(name: str, count: int, data: DataConfig, shape: tuple[int, int, int]) -> list[Picture]:
    """Reads the first images of a split, passing over bad records.

    Args:
      name: of the split.
      count: how many, if it has as many.
      data: the `data` part of a run's config.
      shape: (H, W, C) of the pictures.

    Raises:
      ConfigError: the dataset or the split is not there, or holds no image.
    """
    try:
        split = registry.open_split(data, name)
    except UnknownSplitError as error:
        raise ConfigError(f"--split: {error}") from error
    found = list(islice(_all_of(split, data, shape), count))
    if not found:
        raise ConfigError(f"--split: {name!r} of {data.name} has no image that can be read.")
    return found


def _all_of(split: Split, data: DataConfig, shape: tuple[int, int, int]) -> Iterator[Picture]:
    if not split.has_records:
        for index, (image, label) in enumerate(zip(*split.load(), strict=True)):
            yield Picture(f"{split.name} {index}", image, int(label))
        return
    records, transform = split.open_records(), eval_transform(data, shape)
    for index in range(len(records)):
        try:
            record = records[index]
            name = record.file_name or f"{split.name} {index}"
            yield Picture(name, transform.apply(record, row=0), record.label)
        except BadRecordError as error:
            bad = BadRecord(split.name, index, error.file_name, str(error))
            print(f"bad record: {bad}", file=sys.stderr)


def class_names(data: DataConfig) -> list[str] | None:
    """The names of a dataset's classes, None where it has none or is not on disk.

    Args:
      data: the `data` part of a run's config.
    """
    with contextlib.suppress(ConfigError):
        source = registry.source_of(data)
        return source.class_names if source.is_on_disk else None
    return None
