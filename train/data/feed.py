"""What a loader hands to the steps, and the order in which it does; both loaders share it."""

import dataclasses
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Batch(NamedTuple):
    """Rows of a batch: all of them, or those that one device has.

    Attributes:
      images: (n, H, W, C) uint8.
      labels: (n,) int32.
      mask: (n,) bool, False for rows that do not count.
    """

    images: jax.Array
    labels: jax.Array
    mask: jax.Array


class Fed(NamedTuple):
    """What one step is called with.

    Attributes:
      arguments: of the step, after the state or the variables.
      bad_records: that this process met in making the batch.
    """

    arguments: tuple[Any, ...]
    bad_records: int = 0


@dataclasses.dataclass(frozen=True)
class Feed:
    """Feeds a training or evaluation step from a split.

    Attributes:
      example: arguments of the step, or their shapes, to compile it with.
      batches: gives the batches from one on, by its number.
    """

    example: tuple[Any, ...]
    batches: Callable[[int], Generator[Fed]]


def epoch_order(key: jax.Array, epoch: jax.Array, size: int) -> jax.Array:
    """The order of all examples in an epoch: a permutation of 0 … size − 1."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), size).astype(jnp.int32)
