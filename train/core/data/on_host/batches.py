"""Batches made on the host: threads read, decode, crop and augment their rows.

The record in a row of a step, and its crop and augmentation, are a pure function of
(seed, step, row of the global batch). Any number of hosts and threads can so make a batch at
any time, and a run starts at any step without a replay.
"""

import functools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np

from train.core.config.fields import Config
from train.core.data.feed import num_workers
from train.core.data.on_host.transform import Transform, eval_transform, train_transform
from train.core.data.sources.records import BadRecord, BadRecordError, Record
from train.core.data.sources.split import Split
from train.core.errors import RunError

# Rows that a thread makes at a time: few enough to share a batch evenly, enough to call seldom.
ROWS_OF_A_TASK = 16
LONGEST_SEARCH = 1000

# (index, image from a record, bad records to append to) -> image and label, None if it is bad.
Read = Callable[
    [int, Callable[[Record], np.ndarray], list[BadRecord]], tuple[np.ndarray, int] | None
]


class HostBatch(NamedTuple):
    """The rows of a global batch that one process makes.

    Attributes:
      images: Images of the rows, (n, H, W, C) uint8.
      labels: Their labels, (n,) int32.
      mask: Whether each row counts, (n,) bool.
      bad_records: Number of bad records met in making each row, (n,) int32.
      seen: Number of records read.
      bad: Records that could not be used.
    """

    images: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    bad_records: np.ndarray
    seen: int
    bad: list[BadRecord]


class BatchMaker:
    """Makes batches of a split, with threads while it is entered."""

    def __init__(self, split: Split, config: Config, rows: np.ndarray):
        """Opens the split.

        Args:
          split: Split that lies on disk.
          config: Config of the run.
          rows: (n,) rows of the global batch that this process makes, ascending.
        """
        # The threads here share the cores already.
        cv2.setNumThreads(0)
        self._split = split
        self._config = config
        self._rows = rows
        self._records = split.open_records()

    def __enter__(self) -> "BatchMaker":
        workers = num_workers(self._config.data)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="loader")
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def train_batch(self, step: int, order: np.ndarray) -> HostBatch:
        """Makes the batch of a training step; the next record stands in for a bad one.

        Args:
          step: Number of updates done before it.
          order: (num_examples,) order of the records in the step's epoch.
        """
        batch_size = self._config.batch_size
        index = step % (len(order) // batch_size)
        transform = train_transform(self._config, self._split.image_shape, step)
        return self._make(order[index * batch_size + self._rows], transform, self._read_or_next)

    def eval_batch(self, index: int) -> HostBatch:
        """Makes a batch of the split in its own order; bad records are masked out."""
        transform = eval_transform(self._config.data, self._split.image_shape)
        return self._make(index * self._config.batch_size + self._rows, transform, self._read)

    def _make(self, examples: np.ndarray, transform: Transform, read: Read) -> HostBatch:
        images = _aligned_zeros((len(examples), *self._split.image_shape))
        labels, bad_records = np.zeros((2, len(examples)), np.int32)
        mask = np.zeros(len(examples), bool)
        used = np.flatnonzero(examples < self._split.num_examples)

        def make_rows(places: np.ndarray) -> list[BadRecord]:
            bad: list[BadRecord] = []
            for place in places.tolist():
                before = len(bad)
                image_of = functools.partial(transform.apply, row=int(self._rows[place]))
                example = read(int(examples[place]), image_of, bad)
                bad_records[place] = len(bad) - before
                if example is not None:
                    images[place], labels[place] = example
                    mask[place] = True
            return bad

        tasks = [used[i : i + ROWS_OF_A_TASK] for i in range(0, len(used), ROWS_OF_A_TASK)]
        bad = [record for records in self._pool.map(make_rows, tasks) for record in records]
        seen = int(mask.sum()) + len(bad)
        return HostBatch(images, labels, mask, bad_records, seen, bad)

    def _read(
        self, index: int, image_of: Callable[[Record], np.ndarray], bad: list[BadRecord]
    ) -> tuple[np.ndarray, int] | None:
        try:
            record = self._records[index]
            return image_of(record), record.label
        except BadRecordError as error:
            bad.append(error.of(self._split.name, index))
            return None

    def _read_or_next(
        self, index: int, image_of: Callable[[Record], np.ndarray], bad: list[BadRecord]
    ) -> tuple[np.ndarray, int]:
        for distance in range(LONGEST_SEARCH):
            example = self._read((index + distance) % self._split.num_examples, image_of, bad)
            if example is not None:
                return example
        raise RunError(
            f"{LONGEST_SEARCH} records in a row are bad; the last: {bad[-1]}. "
            "python -m train.prepare check lists all of them."
        )


def _aligned_zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Bytes that XLA takes over as they are where the device is the CPU; others it would copy."""
    size, alignment = math.prod(shape), 64
    memory = np.zeros(size + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + size].reshape(shape)
