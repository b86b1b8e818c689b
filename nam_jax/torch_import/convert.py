"""State dicts into variables: names, layouts, and what is fresh."""

import logging
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from nam_jax.torch_import import names
from nam_jax.variables import abstract_variables, initial_variables, is_attention

_log = logging.getLogger(__name__)

Path = tuple[str, ...]


def variables(
    module: nn.Module,
    state_dict: Mapping[str, Any],
    input_shape: tuple[int, ...],
    *,
    new_head: bool = False,
    key: jax.Array | None = None,
) -> dict[str, Any]:
    """Turns a PyTorch state dict into the variables of a Flax module.

    Convolutions (O, I, H, W) become (H, W, I, O), linear layers (O, I) become (I, O), and
    the scales of pixels (H·W,) become (H, W). Entries `num_batches_tracked` and a prefix
    `module.` of all names are ignored. Running variances are taken as they are: PyTorch's
    are unbiased, Flax's are not.

    Names are those of torchvision's ResNet and MobileNetV2, and of the reference code of
    each attention. If a state dict has no entry of the network's attention at all, the
    attention keeps its fresh initialisation; `fresh` lists it, and so does a warning of the
    logger `nam_jax.torch_import`. Such a network has to be trained before it is of use: its
    fresh gates are near 0.5, where the weights were trained without any.

    Args:
      module: Network of `nam_jax.models`, or attention module with parameters.
      state_dict: Arrays by PyTorch's names, such as from `read`; anything that NumPy takes for an
        array.
      input_shape: Shape (N, H, W, C) of the module's input, such as (1, 224, 224, 3).
      new_head: Whether the classifier is fresh too, whatever the state dict has: for another
        number of classes.
      key: Random key of what is fresh (default: that of seed 0).

    Returns:
      {"params": …, "batch_stats": …}: NumPy arrays in the dtypes of the state dict, and
      float32 arrays where it is fresh.

    Raises:
      ValueError: Entries are missing, left over, of another shape, or no real numbers; all
        are listed.
      TypeError: there is no naming for this kind of module.

    Example:
      >>> import nam_jax, numpy as np
      >>> names = "bn2.weight", "bn2.bias", "bn2.running_mean", "bn2.running_var"
      >>> state_dict = {name: np.ones(8, np.float32) for name in names}
      >>> variables = nam_jax.torch_import.variables(
      ...     nam_jax.ChannelNAM(), state_dict, input_shape=(1, 4, 4, 8)
      ... )
      >>> sorted(variables)
      ['batch_stats', 'params']
    """
    plan = _plan(module, state_dict, input_shape, new_head)
    leaves: dict[Path, Any] = {
        path: _from_torch(path, *source) for path, source in plan.imported.items()
    }
    if plan.fresh:
        _log.warning("fresh, not from the state dict: %s", ", ".join(_modules(plan.fresh)))
        leaves |= _initial(module, input_shape, key, plan.fresh)
    return traverse_util.unflatten_dict(leaves)


def fresh(
    module: nn.Module,
    state_dict: Mapping[str, Any],
    input_shape: tuple[int, ...],
    *,
    new_head: bool = False,
) -> list[str]:
    """The modules that `variables` initialises afresh, such as `layer1_0/attention` and `fc`.

    Args:
      module: Network or attention module, as for `variables`.
      state_dict: Arrays by PyTorch's names.
      input_shape: Shape (N, H, W, C) of the module's input.
      new_head: Whether the classifier is fresh too.

    Returns:
      Paths of modules, each once.

    Raises:
      ValueError: the state dict does not fit, as for `variables`.
      TypeError: there is no naming for this kind of module.
    """
    return _modules(_plan(module, state_dict, input_shape, new_head).fresh)


class _Plan(NamedTuple):
    """Where the variables come from.

    Attributes:
      imported: PyTorch's array and the shape here, by path.
      fresh: Paths of all others.
    """

    imported: dict[Path, tuple[np.ndarray, tuple[int, ...]]]
    fresh: list[Path]


def _plan(
    module: nn.Module, state_dict: Mapping[str, Any], input_shape: tuple[int, ...], new_head: bool
) -> _Plan:
    rules = names.rules_of(module)
    wanted = traverse_util.flatten_dict(abstract_variables(module, input_shape))
    torch_names = {path: names.torch_name(path, rules) for path in wanted}
    state = _entries(state_dict)
    head = [path for path in wanted if new_head and path[1] == "fc"]
    for path in head:
        state.pop(torch_names[path], None)
    attention = [path for path in wanted if any(map(is_attention, path))]
    if any(torch_names[path] in state for path in attention):
        attention = []
    without_source = {*head, *attention}
    imported = [path for path in wanted if path not in without_source]
    _check(state, {torch_names[path]: _torch_shape(path, wanted[path]) for path in imported})
    sources = {path: (state[torch_names[path]], wanted[path].shape) for path in imported}
    return _Plan(sources, head + attention)


def _entries(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    prefix = "module."
    is_parallel = bool(state_dict) and all(name.startswith(prefix) for name in state_dict)
    return {
        name.removeprefix(prefix) if is_parallel else name: np.asarray(value)
        for name, value in state_dict.items()
        if not name.endswith("num_batches_tracked")
    }


def _modules(paths: list[Path]) -> list[str]:
    """The attention modules and classifiers that the variables belong to, each once."""

    def module(path: Path) -> str:
        last = next((i for i, name in enumerate(path) if is_attention(name)), 1)
        return "/".join(path[1 : last + 1])

    return list(dict.fromkeys(map(module, paths)))


def _initial(
    module: nn.Module, input_shape: tuple[int, ...], key: jax.Array | None, paths: list[Path]
) -> dict[Path, jax.Array]:
    def init(key: jax.Array) -> list[jax.Array]:
        every = traverse_util.flatten_dict(initial_variables(module, key, jnp.zeros(input_shape)))
        return [every[path] for path in paths]

    # Compiled, so that the forward pass and the other variables cost nothing.
    leaves = jax.jit(init)(jax.random.key(0) if key is None else key)
    return dict(zip(paths, leaves, strict=True))


def _torch_shape(path: Path, leaf: Any) -> tuple[int, ...]:
    if path[-1] != "kernel":
        return (math.prod(leaf.shape),)
    *spatial, inputs, outputs = leaf.shape
    return (outputs, inputs, *spatial)


def _from_torch(path: Path, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if path[-1] == "kernel":
        value = value.transpose(*range(2, value.ndim), 1, 0)
    if "gate_h" in path and path[-1] == "kernel":
        # The reference turns this plane: (C, W), where it is (W, C) here.
        value = value.swapaxes(0, 1)
    return np.array(value, order="C").reshape(shape)


def _is_real(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def _check(state: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]]) -> None:
    actual = {name: value.shape for name, value in state.items()}
    listed = {
        "missing": [f"{name} {wanted[name]}" for name in wanted.keys() - actual.keys()],
        "left over": [f"{name} {actual[name]}" for name in actual.keys() - wanted.keys()],
        "misshapen": [
            f"{name} {actual[name]} instead of {wanted[name]}"
            for name in wanted.keys() & actual.keys()
            if actual[name] != wanted[name]
        ],
        "not real numbers": [
            f"{name} {value.dtype}" for name, value in state.items() if not _is_real(value.dtype)
        ],
    }
    problems = [f"{kind}: {', '.join(sorted(them))}" for kind, them in listed.items() if them]
    if problems:
        raise ValueError(
            f"The state dict does not fit the module. {'; '.join(problems)}. "
            "Check the network's name, attention, stem and input size; new_head=True leaves a "
            "classifier for another number of classes out."
        )
