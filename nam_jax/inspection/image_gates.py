"""What NAM does: its gates by image, and a network with the constant 0.5 in their place."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

from nam_jax.attention.nam import ChannelNAM, SpatialNAM
from nam_jax.layers.dtypes import widened
from nam_jax.layers.gating import gate, normalized

# The collection, and the variable in every module, that hold the gates of a call.
_GATES = "nam_gates"
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

    .. math::
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
    recorded = recorded_gates(module, variables, x, mutable, kwargs)
    return {path: values for path, (_, values) in recorded}


def recorded_gates(
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
            # What half_gates does around this call comes after it.
            if _halved.value:
                output = jax.tree.map(jnp.zeros_like, output)
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
