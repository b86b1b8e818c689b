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
    """Initialises a module for evaluation, whether it takes `train` or `use_running_average`.

    Args:
      module: Attention module, or network that is called with x and `train`.
      key: Random key.
      x: Input of the module.
    """
    if hasattr(module, "use_running_average"):
        return module.clone(use_running_average=True).init(key, x)
    # A module of Flax's own, as attention may be attached to, need not take it.
    takes_train = "train" in inspect.signature(type(module).__call__).parameters
    mode: dict[str, Any] = {"train": False} if takes_train else {}
    return module.init(key, x, **mode)


def abstract_variables(module: nn.Module, input_shape: tuple[int, ...]) -> Any:
    """Shapes and dtypes of a module's variables.

    Args:
      module: Attention module, or network that is called with images and `train`.
      input_shape: Shape of its input, (N, H, W, C).
    """
    x = jax.ShapeDtypeStruct(input_shape, jnp.float32)
    return jax.eval_shape(lambda x: initial_variables(module, jax.random.key(0), x), x)
