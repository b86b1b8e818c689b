"""PyTorch weights into Flax variables."""

from nam_jax.torch_import.convert import fresh, variables
from nam_jax.torch_import.files import read

__all__ = ["fresh", "read", "variables"]
