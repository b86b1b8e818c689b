"""PyTorch state dicts, in the naming of the authors' code, into Flax variables."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from nam_jax.models.resnet import Bottleneck, ResNet
from nam_jax.nam import NAM, ChannelNAM, SpatialNAM

# PyTorch's name of every kind of leaf.
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}

# Paths of Flax modules to PyTorch names: patterns applied one after another.
_NAM_RULES = [(r"channel/nam_bn", "Channel_Att.bn2"), (r"spatial/nam_bn", "Spatial_Att.bn")]
_RESNET_RULES = [
    (r"layer(\d)_(\d+)", r"layer\1.\2"),
    (r"downsample_conv", "downsample.0"),
    (r"downsample_bn", "downsample.1"),
]


def variables(
    module: nn.Module, state_dict: Mapping[str, Any], input_shape: tuple[int, ...]
) -> dict[str, Any]:
    """Turns a PyTorch state dict into the variables of a Flax module.

    Convolutions (O, I, H, W) become (H, W, I, O), linear layers (O, I) become (I, O), and
    the scales of pixels (H·W,) become (H, W). Entries `num_batches_tracked` are ignored.
    Running variances are taken as they are: PyTorch's are unbiased, Flax's are not.

    Args:
      module: a ResNet of `nam_jax.models`, with or without NAM, or a module of NAM.
      state_dict: name to array; anything that NumPy takes for an array.
      input_shape: shape of the module's input, NHWC, such as (1, 224, 224, 3).

    Returns:
      {"params": …, "batch_stats": …} of NumPy arrays in the dtypes of the state dict.

    Raises:
      ValueError: entries are missing, left over, or of another shape (all are listed), or
        there is no naming for the network's attention.
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
    rules = _rules(module)
    state = {
        name: np.asarray(value)
        for name, value in state_dict.items()
        if not name.endswith("num_batches_tracked")
    }
    wanted = traverse_util.flatten_dict(_abstract_variables(module, input_shape))
    names = {path: _torch_name(path, rules) for path in wanted}
    shapes = {names[path]: _torch_shape(path[-1], leaf.shape) for path, leaf in wanted.items()}
    _check(state, shapes)
    leaves = {
        path: _from_torch(path[-1], state[names[path]], leaf.shape) for path, leaf in wanted.items()
    }
    return traverse_util.unflatten_dict(leaves)


def _rules(module: nn.Module) -> list[tuple[str, str]]:
    if isinstance(module, NAM):
        return _NAM_RULES
    if isinstance(module, ChannelNAM):
        return [(r"nam_bn", "bn2")]
    if isinstance(module, SpatialNAM):
        return [(r"nam_bn", "bn")]
    if not isinstance(module, ResNet):
        raise TypeError(
            "A state dict can be imported for a ResNet, NAM, ChannelNAM or SpatialNAM; "
            f"got {type(module).__name__}."
        )
    last_norm = "bn3" if module.block is Bottleneck else "bn2"
    attention = {
        "none": [],
        "nam": [(r"attention/", "nam/"), *_NAM_RULES],
        "nam_channel": [(r"attention/nam_bn", "nam/Channel_Att.bn2")],
        "nam_spatial": [(r"attention/nam_bn", "nam/Spatial_Att.bn")],
        "nam_tied": [(r"nam_bn", last_norm)],
    }
    if module.attention not in attention:
        raise ValueError(
            f"A state dict can be imported with the attentions {', '.join(attention)}; "
            f"got {module.attention!r}."
        )
    return _RESNET_RULES + attention[module.attention]


def _abstract_variables(module: nn.Module, input_shape: tuple[int, ...]) -> Any:
    x = jax.ShapeDtypeStruct(input_shape, jnp.float32)
    if isinstance(module, ResNet):
        return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    module = module.clone(use_running_average=True)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x), x)


def _torch_name(path: tuple[str, ...], rules: list[tuple[str, str]]) -> str:
    _, *modules, leaf = path
    name = "/".join(modules)
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return f"{name.replace('/', '.')}.{_LEAVES[leaf]}"


def _torch_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if leaf != "kernel":
        return (int(np.prod(shape)),)
    *spatial, inputs, outputs = shape
    return (outputs, inputs, *spatial)


def _from_torch(leaf: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if leaf == "kernel":
        value = value.transpose(*range(2, value.ndim), 1, 0)
    return np.ascontiguousarray(value).reshape(shape)


def _check(state: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    missing = [f"{name} {shapes[name]}" for name in shapes.keys() - state.keys()]
    left_over = [f"{name} {state[name].shape}" for name in state.keys() - shapes.keys()]
    misshapen = [
        f"{name} {state[name].shape} instead of {shapes[name]}"
        for name in shapes.keys() & state.keys()
        if state[name].shape != shapes[name]
    ]
    found = {"missing": missing, "left over": left_over, "misshapen": misshapen}
    problems = [f"{kind}: {', '.join(sorted(them))}" for kind, them in found.items() if them]
    if problems:
        raise ValueError(
            f"The state dict does not fit the module. {'; '.join(problems)}. "
            "Check the network's name, attention, stem, number of classes and input size."
        )
