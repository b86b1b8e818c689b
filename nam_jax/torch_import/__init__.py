"""PyTorch weights into Flax variables."""

from nam_jax.torch_import.checkpoint import StateDictKeyError
from nam_jax.torch_import.convert import Plan, fresh, plan, variables
from nam_jax.torch_import.files import list_state_dicts, read
from nam_jax.torch_import.misfit import MisfitError

__all__ = [
    "MisfitError",
    "Plan",
    "StateDictKeyError",
    "fresh",
    "list_state_dicts",
    "plan",
    "read",
    "variables",
]
