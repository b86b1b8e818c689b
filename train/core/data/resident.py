"""The loader `resident`: the dataset lies on every device, with no transfers while training.

The order of the examples is a pure function of (seed, epoch), and an example's place in it
one of the step.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from train.core.config.fields import Config
from train.core.data.feed import Batch, Feed, epoch_orders
from train.core.data.sources.split import Split
from train.core.devices.mesh import is_cpu, local_rows, put_whole, replicated
from train.core.errors import ConfigError

# As many as make the time of a dispatch not count; a signal is heard after a few dispatches.
LONGEST_DISPATCH = 16


class ResidentSplit(NamedTuple):
    """A split on the devices, with the order in which it is read.

    Attributes:
      images: All images, (N, H, W, C) uint8.
      labels: Their labels, (N,) int32.
      order: Positions of the examples in the order of this pass, (N,) int32.
    """

    images: jax.Array
    labels: jax.Array
    order: jax.Array


class Resident:
    """Feeds steps with the whole split, of which they take the rows themselves."""

    needs_size = True
    rows_argnum = -1

    def __init__(self, config: Config, mesh: Mesh):
        self._config = config
        self._mesh = mesh

    @property
    def longest_dispatch(self) -> int:
        """How many updates are dispatched at once, at most."""
        # On a CPU the gradient of a convolution inside a loop is 20 times slower.
        return 1 if is_cpu(self._mesh) else LONGEST_DISPATCH

    def check_split(self, split: Split) -> None:
        """Refuses a split that takes more memory than a device may give it.

        Raises:
          ConfigError: naming both sizes.
        """
        size_gb = split.num_examples * float(np.prod(split.image_shape)) / 1e9
        limit_gb = self._config.data.resident_limit_gb
        if size_gb > limit_gb:
            streaming = ", or config.data.loader=streaming" if split.has_records else ""
            raise ConfigError(
                f"config.data.resident_limit_gb: the split {split.name} takes {size_gb:.3g} GB on "
                f"each device; the limit is {limit_gb:g} GB. Raise it if the devices have the "
                "memory, or set a smaller config.data.image_size or config.data.eval_image_size"
                f"{streaming}."
            )

    def train_feed(
        self,
        split: Split,
        key: jax.Array,
        total_steps: int,
        dispatches: Callable[[int], Iterator[range]],
    ) -> Feed:
        """Feeds the training step with (split,), or with (split, number of updates)."""
        resident = put(split, self._mesh)
        # Once an epoch, not in the step: a permutation of 50,000 takes 25 ms on a CPU.
        order = epoch_orders(key, split.num_examples, self._config)
        steps_per_epoch = split.num_examples // self._config.batch_size

        def arguments(start: int) -> Generator[tuple[Any, ...]]:
            orders = in_epoch_orders(resident, order, dispatches(start), steps_per_epoch)
            return (self._arguments(ordered, np.int32(len(steps))) for ordered, steps in orders)

        return Feed(self._arguments(resident, np.int32(0)), arguments)

    def eval_feed(self, split: Split) -> Feed:
        """Feeds the evaluation step with (split, index of the batch)."""
        resident = put(split, self._mesh)
        num_batches = -(-split.num_examples // self._config.batch_size)

        def indices(start: int) -> Generator[tuple[ResidentSplit, np.int32]]:
            return ((resident, np.int32(index)) for index in range(start, num_batches))

        return Feed((resident, np.int32(0)), indices)

    def example(self, split: Split) -> tuple[Any, ...]:
        """Shapes of (split,), or of (split, number of updates)."""

        def whole(shape: tuple[int, ...], dtype: Any) -> Any:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(self._mesh))

        count = split.num_examples
        number = whole((count,), np.int32)
        images = whole((count, *split.image_shape), np.uint8)
        return self._arguments(ResidentSplit(images, number, number), whole((), np.int32))

    def batch(self, fed: ResidentSplit, index: jax.Array) -> Batch:
        """The device's rows of the batch at an index of the split's order."""
        batch_size = self._config.batch_size
        return take(fed, index, batch_size, local_rows(self._mesh, batch_size))

    def _arguments(self, split: ResidentSplit, count: Any) -> tuple[Any, ...]:
        return (split, count) if self.longest_dispatch > 1 else (split,)


def put(split: Split, mesh: Mesh) -> ResidentSplit:
    """Reads a split and lays it whole on every device, in its own order."""
    images, labels = split.load()
    order = np.arange(len(labels), dtype=np.int32)
    return ResidentSplit(*put_whole((images, labels, order), replicated(mesh)))


def in_epoch_orders(
    split: ResidentSplit,
    order: Callable[[int], np.ndarray],
    dispatches: Iterable[range],
    steps_per_epoch: int,
) -> Iterator[tuple[ResidentSplit, range]]:
    """For every dispatch: the split in the order of its epoch, and the dispatch.

    Args:
      split: Split on the devices.
      order: Order of an epoch, from `epoch_orders`.
      dispatches: Numbers of the updates of each dispatch, from 1 on, all within an epoch.
      steps_per_epoch: Number of updates of an epoch.
    """

    def ordered() -> Iterator[tuple[ResidentSplit, range]]:
        current, current_epoch = split, -1
        for steps in dispatches:
            epoch = (steps[0] - 1) // steps_per_epoch
            if epoch != current_epoch:
                on_devices = put_whole(order(epoch), split.order.sharding)
                current, current_epoch = split._replace(order=on_devices), epoch
            yield current, steps

    return ordered()


def take(split: ResidentSplit, index: jax.Array, batch_size: int, rows: jax.Array) -> Batch:
    """Rows of the batch at an index of the split's order, inside the jitted step.

    Args:
      split: Split on the devices.
      index: Number of the batch; the last one may be incomplete.
      batch_size: Number of rows of the global batch.
      rows: (n,) positions in the global batch.
    """
    size = len(split.labels)
    positions = index * batch_size + rows
    examples = split.order[jnp.minimum(positions, size - 1)]
    none = jnp.zeros(len(rows), jnp.int32)
    return Batch(split.images[examples], split.labels[examples], positions < size, none)
