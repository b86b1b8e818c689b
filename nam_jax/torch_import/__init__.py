"""PyTorch weights into Flax variables."""

from nam_jax.torch_import.convert import fresh, variables
from nam_jax.torch_import.files import SUFFIXES, read

__all__ = ["SUFFIXES", "fresh", "read", "variables"]
