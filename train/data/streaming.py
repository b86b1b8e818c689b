"""A dataset that stays on disk: threads read, decode and crop its images batch by batch.

The record in a row of a step, and its crop and augmentation, are a pure function of
(seed, step, row of the global batch). Any number of hosts and threads can so make a batch at
any time, and a run starts at any step without a replay.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import grain
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from train import mesh as mesh_lib
from train.data import crop, random_augment
from train.data.feed import Batch, Fed, Feed, epoch_order
from train.data.records import BadRecord, BadRecordError, BadRecords, decode
from train.data.sources import Split
from train.errors import RunError

# Rows that a thread makes at a time: few enough to share a batch evenly, enough to call seldom.
ROWS_OF_A_TASK = 16
# Batches that are ready or in the making on the host, and ready on the devices.
HOST_BATCHES = 2
DEVICE_BATCHES = 2
LONGEST_SEARCH = 1000

# (decoded image, row of the global batch) -> image of the row.
Transform = Callable[[np.ndarray, int], np.ndarray]
# (index, bad records that it appends to) -> image and label, None if there are none to use.
Read = Callable[[int, list[BadRecord]], tuple[np.ndarray, int] | None]


class HostBatch(NamedTuple):
    """The rows of a global batch that one process makes.

    Attributes:
      images: (n, H, W, C) uint8.
      labels: (n,) int32.
      mask: (n,) bool, False for rows that do not count.
      seen: how many records were read.
      bad: those of them that could not be used.
    """

    images: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    seen: int
    bad: list[BadRecord]


class Loader:
    """Makes batches of a split, with threads while it is entered."""

    def __init__(self, split: Split, config: ConfigDict, rows: np.ndarray):
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
        workers = self._config.data.workers or len(os.sched_getaffinity(0))
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
        images = np.zeros((len(examples), *self._split.image_shape), np.uint8)
        labels, mask = np.zeros(len(examples), np.int32), np.zeros(len(examples), bool)
        used = np.flatnonzero(examples < self._split.num_examples)

        def make_rows(places: np.ndarray) -> list[BadRecord]:
            bad: list[BadRecord] = []
            for place in places.tolist():
                found = read(int(examples[place]), bad)
                if found is not None:
                    image, labels[place] = found
                    images[place] = transform(image, int(self._rows[place]))
                    mask[place] = True
            return bad

        tasks = [used[i : i + ROWS_OF_A_TASK] for i in range(0, len(used), ROWS_OF_A_TASK)]
        bad = [record for found in self._pool.map(make_rows, tasks) for record in found]
        return HostBatch(images, labels, mask, int(mask.sum()) + len(bad), bad)

    def _read(self, index: int, bad: list[BadRecord]) -> tuple[np.ndarray, int] | None:
        try:
            record = self._records[index]
            return decode(record, self._split.image_shape[-1]), record.label
        except BadRecordError as error:
            bad.append(BadRecord(self._split.name, index, error.file_name, str(error)))
            return None

    def _read_or_next(self, index: int, bad: list[BadRecord]) -> tuple[np.ndarray, int]:
        for distance in range(LONGEST_SEARCH):
            found = self._read((index + distance) % self._split.num_examples, bad)
            if found is not None:
                return found
        raise RunError(
            f"{LONGEST_SEARCH} records in a row are bad; the last: {bad[-1]}. "
            "python -m train.prepare check lists all of them."
        )


def train_transform(config: ConfigDict, shape: tuple[int, int, int], step: int) -> Transform:
    """The crop and the augmentation of every row of a training step.

    Args:
      config: of the run.
      shape: (H, W, C) of the rows.
      step: updates done before it.
    """
    data, count = config.data, config.batch_size
    # A generator for each image would cost as much as a tenth of its crop.
    generator = np.random.Generator(np.random.Philox(key=[config.seed, step]))
    cut: Transform = lambda image, row: crop.center(image, shape)  # noqa: E731
    if data.crop == "resized":
        cut = _random_crop(crop.draw(generator, count), shape, data.interpolation)
    if data.augmentation == "none":
        return cut
    draws = random_augment.draw(generator, count, data)
    ranges = random_augment.ranges(data.augmentation, shape[0])
    return lambda image, row: random_augment.apply(cut(image, row), draws, row, ranges)


def _random_crop(draws: crop.Draws, shape: tuple[int, int, int], interpolation: str) -> Transform:
    def cut(image: np.ndarray, row: int) -> np.ndarray:
        top, left, height, width = crop.random_box(image.shape[0], image.shape[1], draws, row)
        box = image[top : top + height, left : left + width]
        return crop.resize(box, shape[:2], crop.INTERPOLATIONS[interpolation])

    return cut


def eval_transform(data: ConfigDict, shape: tuple[int, int, int]) -> Transform:
    """The crop of an evaluation.

    Args:
      data: the `data` part of a run's config.
      shape: (H, W, C) of the rows.
    """
    if data.crop == "pad":
        return lambda image, row: crop.center(image, shape)
    interpolation = crop.INTERPOLATIONS[data.interpolation]
    return lambda image, row: crop.center(image, shape, data.eval_crop_ratio, interpolation)


def host_order(key: jax.Array, size: int) -> Callable[[int], np.ndarray]:
    """Gives the order of an epoch, as the resident loader has it, on the host.

    Args:
      key: random key of the orders.
      size: number of examples.
    """
    cpu = jax.local_devices(backend="cpu")[0]
    jitted = jax.jit(epoch_order, static_argnums=2)
    on_cpu = jax.random.wrap_key_data(
        jax.device_put(jax.random.key_data(key), cpu), impl=jax.random.key_impl(key)
    )

    # Batches in the making belong to two epochs at most.
    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        with jax.default_device(cpu):
            return np.asarray(jitted(on_cpu, epoch, size))

    return order


def train_feed(
    split: Split, config: ConfigDict, mesh: Mesh, key: jax.Array, total_steps: int
) -> Feed:
    """Feeds the training step.

    Args:
      split: to train on.
      config: of the run.
      mesh: of the run.
      key: random key of the orders.
      total_steps: updates of the run.
    """
    loader = Loader(split, config, mesh_lib.process_rows(mesh, config.batch_size))
    order = host_order(key, split.num_examples)
    steps_per_epoch = split.num_examples // config.batch_size

    def make(step: int) -> HostBatch:
        return loader.train_batch(step, order(step // steps_per_epoch))

    return _feed(loader, make, total_steps, split, config, mesh)


def eval_feed(split: Split, config: ConfigDict, mesh: Mesh) -> Feed:
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
    config: ConfigDict,
    mesh: Mesh,
) -> Feed:
    bad_records = BadRecords(config.data.max_bad_fraction)
    options = grain.ReadOptions(num_threads=HOST_BATCHES, prefetch_buffer_size=HOST_BATCHES)

    def put(made: HostBatch) -> tuple[Batch, int, list[BadRecord]]:
        *arrays, seen, bad = made
        return Batch(*mesh_lib.put_rows(arrays, mesh, config.batch_size)), seen, bad

    def batches(start: int) -> Generator[Fed]:
        made = grain.MapDataset.range(start, num_batches).map(make).to_iter_dataset(options)
        on_devices = grain.experimental.ThreadPrefetchIterDataset(
            made.map(put), prefetch_buffer_size=DEVICE_BATCHES
        )
        with loader, contextlib.closing(iter(on_devices)) as iterator:
            for batch, seen, bad in iterator:
                bad_records.add(seen, bad)
                yield Fed((batch,), len(bad))

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

    return Batch(rows(image_shape, np.uint8), rows((), np.int32), rows((), np.bool_))
