"""A dataset that lies on every device: no transfers while training.

The order of the examples is a pure function of (seed, epoch), and an example's place in it
one of the step.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from train.core.data.feed import Batch, Feed, epoch_orders
from train.core.data.sources.registry import Split
from train.core.devices import mesh as mesh_lib
from train.core.errors import ConfigError


class ResidentSplit(NamedTuple):
    """A split on the devices, with the order in which it is read.

    Attributes:
      images: (N, H, W, C) uint8.
      labels: (N,) int32.
      order: (N,) int32, the examples in the order of this pass.
    """

    images: jax.Array
    labels: jax.Array
    order: jax.Array


def check_size(split: Split, limit_gb: float) -> None:
    """Refuses a split that takes more memory than a device may give it.

    Raises:
      ConfigError: naming both sizes.
    """
    size_gb = split.num_examples * float(np.prod(split.image_shape)) / 1e9
    if size_gb > limit_gb:
        raise ConfigError(
            f"config.data.resident_limit_gb: the split {split.name} takes {size_gb:.3g} GB on each "
            f"device; the limit is {limit_gb:g} GB. Raise it if the devices have the memory, or "
            "set a smaller config.data.image_size."
        )


def put(split: Split, mesh: Mesh) -> ResidentSplit:
    """Reads a split and lays it whole on every device, in its own order."""
    images, labels = split.load()
    order = np.arange(len(labels), dtype=np.int32)
    return ResidentSplit(*mesh_lib.put_whole((images, labels, order), mesh_lib.replicated(mesh)))


def example(split: Split, mesh: Mesh) -> ResidentSplit:
    """Shapes of what `put` gives; reads no images."""

    def whole(shape: tuple[int, ...], dtype: Any) -> Any:
        shape = (split.num_examples, *shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=mesh_lib.replicated(mesh))

    return ResidentSplit(
        whole(split.image_shape, np.uint8), whole((), np.int32), whole((), np.int32)
    )


def in_epoch_orders(
    split: ResidentSplit, key: jax.Array, dispatches: Iterable[range], steps_per_epoch: int
) -> Iterator[tuple[ResidentSplit, range]]:
    """For every dispatch: the split in the order of its epoch, and the dispatch.

    Args:
      split: on the devices.
      key: random key of the orders.
      dispatches: numbers of updates, from 1 on, each within an epoch.
      steps_per_epoch: updates of an epoch.
    """
    # Once an epoch, not in the step: a permutation of 50,000 takes 25 ms on a CPU.
    order = epoch_orders(key, len(split.labels))

    def ordered() -> Iterator[tuple[ResidentSplit, range]]:
        current, current_epoch = split, -1
        for steps in dispatches:
            epoch = (steps[0] - 1) // steps_per_epoch
            if epoch != current_epoch:
                on_devices = mesh_lib.put_whole(order(epoch), split.order.sharding)
                current, current_epoch = split._replace(order=on_devices), epoch
            yield current, steps

    return ordered()


def take(split: ResidentSplit, index: jax.Array, batch_size: int, rows: jax.Array) -> Batch:
    """Rows of the batch at an index of the split's order, inside the jitted step.

    Args:
      split: on the devices.
      index: of the batch; the last one may be incomplete.
      batch_size: of the global batch.
      rows: (n,) positions in the global batch.
    """
    size = len(split.labels)
    positions = index * batch_size + rows
    examples = split.order[jnp.minimum(positions, size - 1)]
    none = jnp.zeros(len(rows), jnp.int32)
    return Batch(split.images[examples], split.labels[examples], positions < size, none)


def train_feed(
    split: Split,
    mesh: Mesh,
    key: jax.Array,
    steps_per_epoch: int,
    dispatches: Callable[[int], Iterator[range]],
    *,
    is_grouped: bool,
) -> Feed:
    """Feeds the training step.

    Args:
      split: to train on.
      mesh: of the run.
      key: random key of the orders.
      steps_per_epoch: updates of an epoch.
      dispatches: numbers of updates by the updates done so far.
      is_grouped: the step is told how many updates to make.
    """
    resident = put(split, mesh)

    def arguments(start: int) -> Generator[tuple[Any, ...]]:
        for ordered, steps in in_epoch_orders(resident, key, dispatches(start), steps_per_epoch):
            yield (ordered, np.int32(len(steps))) if is_grouped else (ordered,)

    return Feed((resident, np.int32(0)) if is_grouped else (resident,), arguments)


def eval_feed(split: Split, mesh: Mesh, batch_size: int) -> Feed:
    """Feeds the evaluation step.

    Args:
      split: to evaluate on.
      mesh: of the run.
      batch_size: of the global batch.
    """
    resident = put(split, mesh)

    def indices(start: int) -> Generator[tuple[ResidentSplit, np.int32]]:
        num_batches = -(-split.num_examples // batch_size)
        return ((resident, np.int32(index)) for index in range(start, num_batches))

    return Feed((resident, np.int32(0)), indices)
