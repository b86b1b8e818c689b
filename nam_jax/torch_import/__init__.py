"""PyTorch weights into Flax variables."""

from nam_jax.torch_import.convert import Plan, fresh, plan, variables
from nam_jax.torch_import.files import SUFFIXES, read
from nam_jax.torch_import.misfit import MisfitError

__all__ = ["SUFFIXES", "MisfitError", "Plan", "fresh", "plan", "read", "variables"]
