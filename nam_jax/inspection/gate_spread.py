"""How far the gates of NAM are from a constant: their moments, and what follows from them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from nam_jax.inspection.image_gates import recorded_gates
from nam_jax.layers.batch_norm import AxisNames

# A gate is near 0.5 within this distance.
NEAR_HALF = 0.01


class GateStatistics(NamedTuple):
    """How the gates of a layer are spread.

    A unit is a channel or, of spatial attention, a pixel.

    Attributes:
      mean: Mean of all gates.
      between: Standard deviation of the units' means.
      within: Standard deviation of the gates around the mean of their unit: with the one before, by
        squares, that of all gates.
      low: Lowest gate.
      high: Highest gate.
      near_half: Share of gates within `NEAR_HALF` of 0.5, in [0, 1].
    """

    mean: float
    between: float
    within: float
    low: float
    high: float
    near_half: float


class GateMoments(NamedTuple):
    """What the statistics of a layer's gates follow from; those of many batches are merged.

    Attributes:
      counts: Numbers of the units' gates, of any shape with one for every unit.
      means: Means of the units, less 0.5, of that shape.
      squares: Sum of the squared distances of all gates from the mean of their unit.
      low: Lowest gate, less 0.5.
      high: Highest gate, less 0.5.
      near: Number of gates within `NEAR_HALF` of 0.5.
    """

    counts: Any
    means: Any
    squares: Any
    low: Any
    high: Any
    near: Any


def gate_statistics(
    module: nn.Module,
    variables: Any,
    images: jax.Array,
    *,
    mutable: str | Sequence[str] = (),
    **kwargs: Any,
) -> dict[str, GateStatistics]:
    """How far the gates of every NAM module are from a constant, for some images.

    A gate is about 0.5 + W BN(x) / 4. Where all of C scales are γ, each W is 1 / C, and for x
    that is standard normal the gates have the standard deviation γ / (4 C).

    Args:
      module: Network with NAM inside, or a NAM module itself.
      variables: Variables of the module, `params` and `batch_stats`.
      images: Input of the module, (N, H, W, channels).
      mutable: Collections that the call may change, see `gates`.
      **kwargs: Further arguments of the module's call, see `gates`.

    Returns:
      Statistics by the path of their module, such as `layer1_0/attention/channel`; empty without
      NAM.

    Raises:
      ValueError: there are no images, or see `gates`.

    Example:
      >>> import jax, nam_jax
      >>> x = jax.random.normal(jax.random.key(0), (8, 16, 16, 64))
      >>> nam = nam_jax.ChannelNAM(use_running_average=True)
      >>> found = nam_jax.gate_statistics(nam, nam.init(jax.random.key(0), x), x)
      >>> round(found[""].within, 4), round(found[""].near_half, 2)
      (0.0039, 0.99)
    """
    if not len(images):
        raise ValueError("gate_statistics takes at least one image; got none.")
    recorded = recorded_gates(module, variables, images, mutable, kwargs)
    moments = {path: _moments(kind, gates) for path, (kind, gates) in recorded}
    return statistics_of([jax.device_get(moments)])


def gate_moments(
    module: nn.Module,
    variables: Any,
    images: jax.Array,
    *,
    mask: jax.Array | None = None,
    axis_name: AxisNames | None = None,
    mutable: str | Sequence[str] = (),
    **kwargs: Any,
) -> dict[str, GateMoments]:
    """The moments of the gates of every NAM module, for some images; it can be compiled.

    Args:
      module: Network with NAM inside, or a NAM module itself.
      variables: Variables of the module, `params` and `batch_stats`.
      images: Input of the module, (N, H, W, channels).
      mask: Whether each image counts, (N,) bool (default: all do).
      axis_name: Mapped axis (or axes) of devices that share the images.
      mutable: Collections that the call may change, see `gates`.
      **kwargs: Further arguments of the module's call, see `gates`.

    Returns:
      Moments by the path of their module.
    """
    recorded = recorded_gates(module, variables, images, mutable, kwargs)
    return {path: _moments(kind, gates, mask, axis_name) for path, (kind, gates) in recorded}


def _moments(
    kind: str,
    gates: jax.Array,
    mask: jax.Array | None = None,
    axis_name: AxisNames | None = None,
) -> GateMoments:
    def over_devices(reduce: Any, value: jax.Array) -> jax.Array:
        return value if axis_name is None else reduce(value, axis_name)

    def total(value: jax.Array) -> jax.Array:
        return over_devices(jax.lax.psum, value)

    # Around 0.5, where they are: their squares would lose what is to be seen.
    offsets, last = gates - 0.5, gates.ndim - 1
    axes = (last - 3, last) if kind == "spatial" else tuple(range(last))
    where = jnp.ones((1,) * gates.ndim, bool) if mask is None else mask.reshape(-1, *[1] * last)
    counts = total(jnp.broadcast_to(where, gates.shape).sum(axes, dtype=gates.dtype))
    # Of a batch no image may count.
    means = total(offsets.sum(axes, where=where)) / jnp.maximum(counts, 1)
    around = offsets - jnp.expand_dims(means, axes)
    return GateMoments(
        counts,
        means,
        total(jnp.square(around).sum(where=where)),
        over_devices(jax.lax.pmin, offsets.min(where=where, initial=0.5)),
        over_devices(jax.lax.pmax, offsets.max(where=where, initial=-0.5)),
        total((jnp.abs(offsets) <= NEAR_HALF).sum(where=where, dtype=gates.dtype)),
    )


def statistics_of(batches: Iterable[Mapping[str, GateMoments]]) -> dict[str, GateStatistics]:
    """The statistics of the gates of several batches.

    Args:
      batches: Moments of each batch from `gate_moments`, as NumPy arrays.

    Returns:
      Statistics by the path of their module.
    """
    merged: dict[str, GateMoments] = {}
    for batch in batches:
        for path, moments in batch.items():
            new = GateMoments(*(np.asarray(value, np.float64) for value in moments))
            merged[path] = _merged(merged[path], new) if path in merged else new
    return {path: _statistics(moments) for path, moments in merged.items()}


def _merged(a: GateMoments, b: GateMoments) -> GateMoments:
    counts, apart = a.counts + b.counts, b.means - a.means
    share = b.counts / np.maximum(counts, 1)
    return GateMoments(
        counts,
        a.means + apart * share,
        a.squares + b.squares + (np.square(apart) * a.counts * share).sum(),
        np.minimum(a.low, b.low),
        np.maximum(a.high, b.high),
        a.near + b.near,
    )


def _statistics(moments: GateMoments) -> GateStatistics:
    gates = moments.counts.sum()
    return GateStatistics(
        mean=float(0.5 + moments.means.mean()),
        between=float(moments.means.std()),
        within=float(np.sqrt(moments.squares / gates)),
        low=float(0.5 + moments.low),
        high=float(0.5 + moments.high),
        near_half=float(moments.near / gates),
    )
