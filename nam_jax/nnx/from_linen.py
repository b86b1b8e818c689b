"""A linen attention module as an NNX one."""

from typing import Any

import jax
from flax import nnx
from flax.nnx import bridge

from nam_jax.attention import AttentionModule

_COLLECTIONS = {"params": nnx.Param, "batch_stats": nnx.BatchStat}


class FromLinen(nnx.Module):
    """A linen attention module, such as `nam_jax.CBAM()`, as an NNX one.

    What NAM is compared with stays in linen. Flax's own bridge, `nnx.bridge.ToNNX`, takes it too,
    with three traps that this class avoids: without `mutable=["batch_stats"]` at every call running
    statistics stay as they are; `train()` and `eval()` do not reach the module; and it counts its
    calls in random state, which is one more thing to split, to save and to broadcast.

    Variables are the module's attributes, with the paths that they have in linen.

    Args:
      module: Attention module, without `use_running_average`.
      x: Input of it, (N, H, W, C), for the shapes of its parameters; also a `ShapeDtypeStruct`.
      rngs: Random keys for the parameters.

    Raises:
      ValueError: it is no attention module, or one with `use_running_average`.

    Example:
      >>> import jax.numpy as jnp, nam_jax
      >>> from flax import nnx
      >>> from nam_jax.nnx import FromLinen
      >>> x = jnp.ones((2, 4, 4, 32))
      >>> module = FromLinen(nam_jax.SqueezeExcite(reduction=8), x, rngs=nnx.Rngs(0))
      >>> module(x).shape, module.mlp["fc1"]["kernel"].shape
      ((2, 4, 4, 32), (32, 4))
    """

    def __init__(self, module: AttentionModule, x: Any, *, rngs: nnx.Rngs):
        if not isinstance(module, AttentionModule) or module.use_running_average is not None:
            raise ValueError(
                "FromLinen takes an attention module without use_running_average, such as "
                f"nam_jax.CBAM(); got {' '.join(repr(module).split())}."
            )
        self.linen = module
        self.use_running_average = False
        self.dtype = module.dtype
        shape, dtype = x.shape, x.dtype
        init = jax.jit(lambda key: module.init(key, jax.numpy.zeros(shape, dtype), True))
        variables = bridge.variables.linen_vars_to_nnx_attrs(init(rngs.params()))
        for name, value in variables.items():
            setattr(self, name, nnx.data(value))

    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Gates x, (N, H, W, C); the mode is the attribute unless it is given."""
        if use_running_average is None:
            use_running_average = self.use_running_average
        variables = {
            collection: nnx.to_pure_dict(nnx.state(self, kind))
            for collection, kind in _COLLECTIONS.items()
        }
        y, update = self.linen.apply(variables, x, use_running_average, mutable=["batch_stats"])
        if not use_running_average:
            nnx.update(self, update.get("batch_stats", {}))
        return y

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Sets the mode; what `nnx.view` calls, and reads for `nnx.view_info`.

        Args:
          use_running_average: Whether to normalise with the running statistics; None: as before.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average
