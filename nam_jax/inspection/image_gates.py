"""What NAM does: its gates by image, and how far they are from the constant 0.5."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

from nam_jax.attention.nam import ChannelNAM, SpatialNAM
from nam_jax.layers.dtypes import widened
from nam_jax.layers.gating import gate, normalized

# The collection, and the variable in every module, that hold the gates of a call.
_GATES = "nam_gates"
# A gate is near 0.5 within this distance.
NEAR_HALF = 0.01
_halved = jax.make_user_context(False)


def gates(
    module: nn.Module,
    variables: Any,
    x: jax.Array,
    *,
    mutable: str | Sequence[str] = (),
    **kwargs: Any,
) -> dict[str, jax.Array]:
    """The gates of every NAM module in a network, for some images.

    M = sigmoid(W BN(x))

    Args:
      module: Network with NAM inside, or a NAM module itself.
      variables: Variables of the module, `params` and `batch_stats`.
      x: Input of the module, (N, H, W, channels).
      mutable: Collections that the call may change: `"batch_stats"` in training.
      **kwargs: Further arguments of the module's call: `train=False` for the networks of
        `nam_jax.models`, `use_running_average=True` for a NAM module.

    Returns:
      Gates M, in [0, 1], not times `gate_scale`, by the path of their module, such as
      `layer1_0/attention/channel`: (N, H', W', C'), of the shape of what it gates, at least
      float32. Empty without NAM. Of a module that is called several times, each call has its
      number: `attention/0`.

    Raises:
      ValueError: gates are inside a lifted transformation that does not hand them on.

    Example:
      >>> import jax, jax.numpy as jnp, nam_jax
      >>> x = jnp.ones((2, 4, 4, 8))
      >>> nam = nam_jax.NAM(use_running_average=True)
      >>> gates = nam_jax.gates(nam, nam.init(jax.random.key(0), x), x)
      >>> {path: gate.shape for path, gate in gates.items()}
      {'channel': (2, 4, 4, 8), 'spatial': (2, 4, 4, 8)}

    Source: https://arxiv.org/abs/2111.12419, equations 2 and 3.
    """
    return {path: values for path, (_, values) in _recorded(module, variables, x, mutable, kwargs)}


def _recorded(
    module: nn.Module,
    variables: Any,
    x: jax.Array,
    mutable: str | Sequence[str],
    kwargs: dict[str, Any],
) -> Iterator[tuple[str, tuple[str, jax.Array]]]:
    """The gates of every call by path, with what they are of: `channel` or `spatial`."""
    called = set()

    def record(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = method(*args, **kwargs)
        owner = context.module
        if isinstance(owner, ChannelNAM | SpatialNAM) and context.method_name == "affine":
            called.add("/".join(owner.path))
            kind = "spatial" if isinstance(owner, SpatialNAM) else "channel"
            # A variable, for values cannot leave a rematerialised block in another way.
            owner.sow(_GATES, kind, gate(widened(args[0]), *output))
        return output

    changed = [mutable] if isinstance(mutable, str) else mutable
    with nn.intercept_methods(record):
        _, state = module.apply(variables, x, mutable=[_GATES, *changed], **kwargs)
    found = flatten_dict(state.get(_GATES, {}))
    if missing := sorted(called - {"/".join(path[:-1]) for path in found}):
        raise ValueError(
            f"The gates of {', '.join(missing)} do not leave the nn.scan or nn.vmap around them: "
            f'add "{_GATES}": 0 to its variable_axes, for an axis of layers in front.'
        )
    for (*owner, kind), calls in found.items():
        path = "/".join(owner)
        for number, values in enumerate(calls):
            yield path if len(calls) == 1 else f"{path}/{number}", (kind, values)


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


def gate_statistics(
    module: nn.Module, variables: Any, images: jax.Array, **kwargs: Any
) -> dict[str, GateStatistics]:
    """How far the gates of every NAM module are from a constant, for some images.

    With W = |γ| / Σ|γ| a gate is about 0.5 + W BN(x) / 4: where all scales are γ and x is standard
    normal, the gates of C channels have the standard deviation γ / (4 C).

    Args:
      module: Network with NAM inside, or a NAM module itself.
      variables: Variables of the module, `params` and `batch_stats`.
      images: Input of the module, (N, H, W, channels).
      **kwargs: Further arguments of the module's call, see `gates`.

    Returns:
      Statistics by the path of their module, such as `layer1_0/attention/channel`; empty without
      NAM.

    Raises:
      ValueError: see `gates`.

    Example:
      >>> import jax, nam_jax
      >>> x = jax.random.normal(jax.random.key(0), (8, 16, 16, 64))
      >>> nam = nam_jax.ChannelNAM(use_running_average=True)
      >>> found = nam_jax.gate_statistics(nam, nam.init(jax.random.key(0), x), x)
      >>> round(found[""].within, 4), round(found[""].near_half, 2)
      (0.0039, 0.99)
    """
    mutable = kwargs.pop("mutable", ())
    statistics = {}
    for path, (kind, values) in _recorded(module, variables, images, mutable, kwargs):
        last = values.ndim - 1
        axes = (last - 3, last) if kind == "spatial" else tuple(range(last))
        statistics[path] = GateStatistics(*map(float, jax.device_get(_statistics(values, axes))))
    return statistics


@jax.jit(static_argnums=1)
def _statistics(values: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    # Around 0.5, where they are: their squares would lose what is to be seen.
    offsets = values - 0.5
    means = offsets.mean(axes, keepdims=True)
    within = jnp.sqrt(jnp.square(offsets - means).mean())
    near = (jnp.abs(offsets) <= NEAR_HALF).mean(dtype=values.dtype)
    return 0.5 + means.mean(), means.std(), within, values.min(), values.max(), near


@contextlib.contextmanager
def half_gates() -> Iterator[None]:
    """Makes every gate of NAM the constant 0.5, in linen modules that are called inside.

    It is what scales of 0 do; `gate_scale` multiplies the constant too.

    Example:
      >>> import jax, jax.numpy as jnp, nam_jax
      >>> x = jnp.ones((2, 4, 4, 8))
      >>> nam = nam_jax.ChannelNAM(use_running_average=True)
      >>> variables = nam.init(jax.random.key(0), x)
      >>> with nam_jax.half_gates():
      ...     y = nam.apply(variables, x)
      >>> print(y.min(), y.max())
      0.5 0.5
    """

    def halved(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = method(*args, **kwargs)
        is_nam = isinstance(context.module, ChannelNAM | SpatialNAM)
        if is_nam and context.method_name == "affine":
            return jax.tree.map(jnp.zeros_like, output)
        # In training the gate of pixels is made together with its moments.
        if is_nam and context.method_name == "gated":
            x, affines, *_ = args
            return 0.5 * normalized(x, *affines)
        return output

    # Part of the key of JAX's caches: what was traced without it is not taken.
    with _halved(True), nn.intercept_methods(halved):
        yield
