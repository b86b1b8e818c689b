"""The variables that a module starts with, whatever it has to be called with, and their paths."""

import inspect
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

# Where a module or a variable stands, the names from the root on.
TreePath = tuple[str, ...]


def is_attention(name: str) -> bool:
    """Whether networks give this name to attention: in a block, or between blocks (BAM)."""
    return re.fullmatch(r"attention|bam\d+", name) is not None


def initial_variables(module: nn.Module, key: jax.Array, x: Any) -> Any:
    """Initialises a module for evaluation, whether it takes `train`, `use_running_average` or none.

    Args:
      module: Attention module, or network that is called with x, and with `train` if it takes it.
      key: Random key.
      x: Input of the module.
    """
    if hasattr(module, "use_running_average"):
        return module.clone(use_running_average=True).init(key, x)
    mode: dict[str, Any] = {"train": False} if _takes_train(module) else {}
    return module.init(key, x, **mode)


def _takes_train(module: Any) -> bool:
    """Whether a module can be called with `train`: one of Flax's own need not."""
    if isinstance(module, nn.Sequential):
        return bool(module.layers) and _takes_train(module.layers[0])
    parameters = inspect.signature(type(module).__call__).parameters.values()
    return any(each.name == "train" or each.kind is each.VAR_KEYWORD for each in parameters)


def abstract_variables(module: nn.Module, input_shape: tuple[int, ...]) -> Any:
    """Shapes and dtypes of a module's variables.

    Args:
      module: Attention module, or network, see `initial_variables`.
      input_shape: Shape of its input, (N, H, W, C).
    """
    x = jax.ShapeDtypeStruct(input_shape, jnp.float32)
    return jax.eval_shape(lambda x: initial_variables(module, jax.random.key(0), x), x)
