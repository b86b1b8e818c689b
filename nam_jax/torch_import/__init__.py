"""PyTorch weights into Flax variables."""

from nam_jax.torch_import.checkpoint import StateDictKeyError
from nam_jax.torch_import.convert import fresh, variables
from nam_jax.torch_import.files import list_state_dicts, read

__all__ = ["StateDictKeyError", "fresh", "list_state_dicts", "read", "variables"]
