"""Files of weights that fit a network here, under PyTorch's names."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from nam_jax.torch_import import names
from nam_jax.variables import abstract_variables


def save(path: Path, network: nn.Module, image_shape: tuple[int, ...], prefix: str = "") -> Any:
    """Writes random numbers as a network's weights; returns them as its variables."""
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.random(leaf.shape, np.float32),
        abstract_variables(network, (1, *image_shape)),
    )
    rules = names.rules_of(network)
    state_dict = {}
    for where, leaf in traverse_util.flatten_dict(variables).items():
        is_kernel = where[-1] == "kernel"
        value = leaf.transpose(-1, -2, *range(leaf.ndim - 2)) if is_kernel else leaf.ravel()
        state_dict[prefix + names.torch_name(where, rules)] = value.astype(np.float64)
    np.savez(path, **state_dict)
    return variables
