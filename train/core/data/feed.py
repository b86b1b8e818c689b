"""What a loader hands to the steps, and the order in which it does; both loaders share it."""

import dataclasses
import functools
import os
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train.core.config.data_fields import DataConfig
from train.core.config.fields import Config


class Batch(NamedTuple):
    """Rows of a batch: all of them, or those that one device has.

    Attributes:
      images: Images of the rows, (n, H, W, C) uint8.
      labels: Their labels, (n,) int32.
      mask: Whether each row counts, (n,) bool.
      bad_records: Number of bad records met in making each row, (n,) int32.
    """

    images: jax.Array
    labels: jax.Array
    mask: jax.Array
    bad_records: jax.Array


@dataclasses.dataclass(frozen=True)
class Feed:
    """Feeds a training or evaluation step from a split.

    Attributes:
      example: Arguments of the step after the state or the variables, or their shapes, to
        compile it with.
      batches: Gives such arguments, one dispatch after another, by the number of updates (of an
        evaluation: of batches) done so far.
    """

    example: tuple[Any, ...]
    batches: Callable[[int], Generator[tuple[Any, ...]]]


def epoch_orders(key: jax.Array, size: int, config: Config) -> Callable[[int], np.ndarray]:
    """Gives the order of all examples in an epoch, a permutation of 0 … size − 1.

    With `augment_repeats` every image comes so often, and an epoch has as many batches as ever: it
    sees a part of the images. Compiles at once. Each process makes the same orders by itself.

    Args:
      key: Random key of the orders.
      size: Number of examples.
      config: Config of the run.

    Returns:
      A function of the number of the epoch; it gives (size,) int32.

    Source: E. Hoffer et al., Augment your batch, 2019, https://arxiv.org/abs/1901.09335; M. Berman
    et al., MultiGrain (repeated augmentation), 2019, https://arxiv.org/abs/1902.05509.
    """

    def permutation(key: jax.Array, epoch: jax.Array) -> jax.Array:
        return jax.random.permutation(jax.random.fold_in(key, epoch), size).astype(jnp.int32)

    compiled = jax.jit(permutation).lower(key, np.int32(0)).compile()

    # Batches in the making belong to two epochs at most.
    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        whole = np.asarray(compiled(key, np.int32(epoch)))
        return _repeated(whole, config.batch_size, config.data.augment_repeats)

    return order


def _repeated(order: np.ndarray, batch_size: int, repeats: int) -> np.ndarray:
    """The order in which every image comes so often, if it can be in one batch."""
    if repeats == 1:
        return order
    rows = np.repeat(order, repeats)[: len(order)]
    # Far apart: neighbours are mixed with one another.
    place = np.concatenate([np.arange(first, batch_size, repeats) for first in range(repeats)])
    whole = len(rows) // batch_size * batch_size
    rows[:whole] = rows[:whole].reshape(-1, batch_size)[:, place].reshape(-1)
    return rows


def cpu_cores() -> int:
    """The CPU cores that this process may use."""
    # macOS and Windows do not tell which.
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    return len(os.sched_getaffinity(0))


def num_workers(config: DataConfig) -> int:
    """The threads that read images: `config.workers`, or one for each core.

    Args:
      config: The `data` part of a run's config.
    """
    return config.workers or cpu_cores()
