"""A dataset that stays on disk: threads read, decode and crop its images batch by batch.

The record in a row of a step, and its crop and augmentation, are a pure function of
(seed, step, row of the global batch). Any number of hosts and threads can so make a batch at
any time, and a run starts at any step without a replay.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
from jax.sharding import Mesh

from train.core.config.fields import Config
from train.core.data.feed import Batch, Feed, cpu_cores, epoch_orders
from train.core.data.on_host.transform import Transform, eval_transform, train_transform
from train.core.data.sources.records import BadRecord, BadRecordError, BadRecords, Record
from train.core.data.sources.registry import Split
from train.core.devices import mesh as mesh_lib
from train.core.errors import RunError

# Rows that a thread makes at a time: few enough to share a batch evenly, enough to call seldom.
ROWS_OF_A_TASK = 16
# Batches that are ready or in the making on the host, and ready on the devices.
HOST_BATCHES = 2
DEVICE_BATCHES = 2
LONGEST_SEARCH = 1000

# (index, image from a record, bad records to append to) -> image and label, None if it is bad.
Read = Callable[
    [int, Callable[[Record], np.ndarray], list[BadRecord]], tuple[np.ndarray, int] | None
]


class HostBatch(NamedTuple):
    """The rows of a global batch that one process makes.

    Attributes:
      images: (n, H, W, C) uint8.
      labels: (n,) int32.
      mask: (n,) bool, False for rows that do not count.
      bad_records: (n,) int32, that were met in making each row.
      seen: how many records were read.
      bad: those of them that could not be used.
    """

    images: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    bad_records: np.ndarray
    seen: int
    bad: list[BadRecord]


class Loader:
    """Makes batches of a split, with threads while it is entered."""

    def __init__(self, split: Split, config: Config, rows: np.ndarray):
        """Opens the split.

        Args:
          split: of a TFDS dataset.
          config: of the run.
          rows: (n,) the rows of the global batch that this process makes, ascending.
        """
        # The threads here share the cores already.
        cv2.setNumThreads(0)
        self._split = split
        self._config = config
        self._rows = rows
        self._records = split.open_records()

    def __enter__(self) -> "Loader":
        workers = self._config.data.workers or cpu_cores()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="loader")
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def train_batch(self, step: int, order: np.ndarray) -> HostBatch:
        """Makes the batch of a training step; the next record stands in for a bad one.

        Args:
          step: updates done before it.
          order: (num_examples,) of the records in the step's epoch.
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
                found = read(int(examples[place]), image_of, bad)
                bad_records[place] = len(bad) - before
                if found is not None:
                    images[place], labels[place] = found
                    mask[place] = True
            return bad

        tasks = [used[i : i + ROWS_OF_A_TASK] for i in range(0, len(used), ROWS_OF_A_TASK)]
        bad = [record for found in self._pool.map(make_rows, tasks) for record in found]
        seen = int(mask.sum()) + len(bad)
        return HostBatch(images, labels, mask, bad_records, seen, bad)

    def _read(
        self, index: int, image_of: Callable[[Record], np.ndarray], bad: list[BadRecord]
    ) -> tuple[np.ndarray, int] | None:
        try:
            record = self._records[index]
            return image_of(record), record.label
        except BadRecordError as error:
            bad.append(BadRecord(self._split.name, index, error.file_name, str(error)))
            return None

    def _read_or_next(
        self, index: int, image_of: Callable[[Record], np.ndarray], bad: list[BadRecord]
    ) -> tuple[np.ndarray, int]:
        for distance in range(LONGEST_SEARCH):
            found = self._read((index + distance) % self._split.num_examples, image_of, bad)
            if found is not None:
                return found
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


def train_feed(split: Split, config: Config, mesh: Mesh, key: jax.Array, total_steps: int) -> Feed:
    """Feeds the training step.

    Args:
      split: to train on.
      config: of the run.
      mesh: of the run.
      key: random key of the orders.
      total_steps: updates of the run.
    """
    loader = Loader(split, config, mesh_lib.process_rows(mesh, config.batch_size))
    order = epoch_orders(key, split.num_examples)
    steps_per_epoch = split.num_examples // config.batch_size

    def make(step: int) -> HostBatch:
        return loader.train_batch(step, order(step // steps_per_epoch))

    return _feed(loader, make, total_steps, split, config, mesh)


def eval_feed(split: Split, config: Config, mesh: Mesh) -> Feed:
    """Feeds the evaluation step.

    Args:
      split: to evaluate on.
      config: of the run.
      mesh: of the run.
    """
    loader = Loader(split, config, mesh_lib.process_rows(mesh, config.batch_size))
    num_batches = -(-split.num_examples // config.batch_size)
    return _feed(loader, loader.eval_batch, num_batches, split, config, mesh)


def _feed(
    loader: Loader,
    make: Callable[[int], HostBatch],
    num_batches: int,
    split: Split,
    config: Config,
    mesh: Mesh,
) -> Feed:
    # It takes a third of a second, which resident runs need not wait.
    import grain

    bad_records = BadRecords(config.data.max_bad_fraction)
    options = grain.ReadOptions(num_threads=HOST_BATCHES, prefetch_buffer_size=HOST_BATCHES)

    def put(made: HostBatch) -> tuple[Batch, int, list[BadRecord]]:
        *arrays, seen, bad = made
        return Batch(*mesh_lib.put_rows(arrays, mesh, config.batch_size)), seen, bad

    def batches(start: int) -> Generator[tuple[Batch]]:
        made = grain.MapDataset.range(start, num_batches).map(make).to_iter_dataset(options)
        on_devices = grain.experimental.ThreadPrefetchIterDataset(
            made.map(put), prefetch_buffer_size=DEVICE_BATCHES
        )
        with loader, contextlib.closing(iter(on_devices)) as iterator:
            for batch, seen, bad in iterator:
                bad_records.add(seen, bad)
                yield (batch,)

    return Feed((example(split.image_shape, config.batch_size, mesh),), batches)


def example(image_shape: tuple[int, int, int], batch_size: int, mesh: Mesh) -> Batch:
    """Shapes of a global batch.

    Args:
      image_shape: (H, W, C).
      batch_size: of the global batch.
      mesh: of the run.
    """

    def rows(shape: tuple[int, ...], dtype: Any) -> Any:
        sharding = mesh_lib.by_rows(mesh)
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=sharding)

    number = rows((), np.int32)
    return Batch(rows(image_shape, np.uint8), number, rows((), np.bool_), number)
