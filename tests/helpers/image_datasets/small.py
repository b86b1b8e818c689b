"""A small dataset to break, and how another process reads it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.image_datasets import tfds_writer
from train.core.config.fields import Config, default_config, replaced
from train.core.data.on_host.transform import eval_transform, train_transform
from train.core.data.sources.records import BadRecordError, Record, decode
from train.core.data.sources.registry import source_of

COUNT, SIZE = 24, 40
SHAPE = (SIZE, SIZE, 3)
# So many random bytes fill the first 64 KB of each file; the other 64 KB are its index.
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, *SHAPE), np.uint8)
FILES = [tfds_writer.encode(image) for image in IMAGES]
LABELS = np.arange(COUNT) % 7
# The second file, with the second half of the records.
SHARD = "tiny-train.array_record-00001-of-00002"
SHARD_BYTES = 2 * 65536


def write(directory: Path, files: list[Any] = FILES, labels: Any = LABELS) -> Path:
    """Writes both splits of the dataset anew; returns the directory of its version."""
    shutil.rmtree(directory / "tiny", ignore_errors=True)
    for split in ("test", "train"):
        target = tfds_writer.write(directory, "tiny", files, labels, 7, split)
    return target


def config_of(directory: Path, **changes: Any) -> Config:
    """A config whose batches are the whole dataset."""
    data = {"name": "tiny", "dir": str(directory), "image_size": SIZE, "workers": 2}
    changes = {**{f"data.{name}": value for name, value in data.items()}, **changes}
    return replaced(default_config(), {"batch_size": COUNT, **changes})


def read_all(directory: Path) -> list[np.ndarray | str]:
    """The image of every training record, or why it is bad."""
    records = source_of(config_of(directory).data).open_split("train").open_records()
    assert len(records) == COUNT

    def read(index: int) -> np.ndarray | str:
        try:
            assert records[index].label == LABELS[index]
            return decode(records[index], 3)
        except BadRecordError as error:
            return str(error)

    return [read(index) for index in range(COUNT)]


def transformed(encoded: bytes) -> list[np.ndarray | str]:
    """The image as a training step has it and an evaluation, or why it is bad."""
    config = config_of(Path(), **{"data.crop": "resized"})
    found: list[np.ndarray | str] = []
    for transform in (train_transform(config, SHAPE, 0), eval_transform(config.data, SHAPE)):
        try:
            found.append(transform.apply(Record(encoded, 0, ""), 0))
        except BadRecordError as error:
            found.append(str(error))
    return found
