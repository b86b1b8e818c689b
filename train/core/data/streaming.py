"""The loader `streaming`: the dataset stays on disk, and its batches are made as they are needed.

`on_host.batches` makes them; here they go through the queues of the host and of the devices.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from train.core.config.fields import Config
from train.core.data.feed import Batch, Feed, epoch_orders
from train.core.data.on_host.batches import BatchMaker, HostBatch
from train.core.data.sources.records import BadRecord, BadRecords
from train.core.data.sources.split import Split
from train.core.devices.mesh import by_rows, process_rows, put_rows
from train.core.errors import ConfigError

# Batches that are ready or in the making on the host, and ready on the devices.
HOST_BATCHES = 2
DEVICE_BATCHES = 2
# The first batches that a measurement leaves out: what is ready would count as instant.
READY = HOST_BATCHES + DEVICE_BATCHES + 1


class Streaming:
    """Feeds steps with global batches, whose rows are split over the devices."""

    needs_size = False
    # Batches come one by one.
    longest_dispatch = 1
    rows_argnum = 1

    def __init__(self, config: Config, mesh: Mesh):
        self._config = config
        self._mesh = mesh

    def check_split(self, split: Split) -> None:
        """Refuses a split that is not on disk.

        Raises:
          ConfigError: it is not.
        """
        if not split.has_records:
            raise ConfigError(
                "config.data.loader: got 'streaming', but only datasets on disk can be streamed; "
                "set config.data.loader=resident."
            )

    def train_feed(
        self,
        split: Split,
        key: jax.Array,
        total_steps: int,
        dispatches: Callable[[int], Iterator[range]],
    ) -> Feed:
        """Feeds the training step with (batch,)."""
        maker = self._maker(split)
        order = epoch_orders(key, split.num_examples, self._config)
        steps_per_epoch = split.num_examples // self._config.batch_size

        def make(step: int) -> HostBatch:
            return maker.train_batch(step, order(step // steps_per_epoch))

        return self._feed(split, maker, make, total_steps)

    def eval_feed(self, split: Split) -> Feed:
        """Feeds the evaluation step with (batch,)."""
        maker = self._maker(split)
        num_batches = -(-split.num_examples // self._config.batch_size)
        return self._feed(split, maker, maker.eval_batch, num_batches)

    def example(self, split: Split) -> tuple[Batch]:
        """Shapes of (batch,)."""
        batch_size, sharding = self._config.batch_size, by_rows(self._mesh)

        def rows(shape: tuple[int, ...], dtype: Any) -> Any:
            return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=sharding)

        number = rows((), np.int32)
        return (Batch(rows(split.image_shape, np.uint8), number, rows((), np.bool_), number),)

    def batch(self, fed: Batch, index: jax.Array | None = None) -> Batch:
        """The device's rows, which are all that it is fed with."""
        return fed

    def _maker(self, split: Split) -> BatchMaker:
        rows = process_rows(self._mesh, self._config.batch_size)
        return BatchMaker(split, self._config, rows)

    def _feed(
        self, split: Split, maker: BatchMaker, make: Callable[[int], HostBatch], num_batches: int
    ) -> Feed:
        # It takes a third of a second, which resident runs need not wait.
        import grain

        bad_records = BadRecords(self._config.data.max_bad_fraction)
        options = grain.ReadOptions(num_threads=HOST_BATCHES, prefetch_buffer_size=HOST_BATCHES)

        def put(made: HostBatch) -> tuple[Batch, int, list[BadRecord]]:
            *arrays, seen, bad = made
            return Batch(*put_rows(arrays, self._mesh, self._config.batch_size)), seen, bad

        def batches(start: int) -> Generator[tuple[Batch]]:
            made = grain.MapDataset.range(start, num_batches).map(make).to_iter_dataset(options)
            on_devices = grain.experimental.ThreadPrefetchIterDataset(
                made.map(put), prefetch_buffer_size=DEVICE_BATCHES
            )
            with maker, contextlib.closing(iter(on_devices)) as iterator:
                for batch, seen, bad in iterator:
                    bad_records.add(seen, bad)
                    yield (batch,)

        return Feed(self.example(split), batches)
