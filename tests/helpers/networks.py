"""Attention modules and networks to be built and called alike, and the vectors of their reference.

The formats of the vectors are those of the files in `golden/`: arrays NCHW, names and weight
layouts PyTorch's. Everything is returned NHWC and in float64, as NumPy arrays.
"""

import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

import nam_jax
from nam_jax.attention import NAMES, attention

GOLDEN = Path(__file__).parents[1] / "golden"

# How many elements stand behind each running statistic, by the module that has it: a sum of
# products of axes.
ELEMENTS = {
    "channel_bn": "n",
    "spatial_reduce_bn": "nhw",
    "spatial_dilated0_bn": "nhw",
    "spatial_dilated1_bn": "nhw",
    "spatial": "nhw",
    "gate_h": "nwc",
    "gate_w": "nhc",
    "gate_c": "nhw",
    "bn1": "nh nw",
}


MODULES = {name: attention(name) for name in NAMES if name != "none"}
each_name = pytest.mark.parametrize("name", MODULES)
each_mode = pytest.mark.parametrize("train", [False, True])

SHAPE = (4, 5, 3, 32)


class Block(nn.Module):
    """A module that is called alike whatever its name; nam_tied gets its scale."""

    name_: str
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        options = {"dtype": self.dtype, "axis_name": self.axis_name, "name": "attention"}
        call = {}
        if self.name_ == "nam_tied":
            call = {"scale": self.param("scale", nn.initializers.ones, x.shape[-1:])}
        module = attention(self.name_)(**options)
        return module(x, use_running_average=use_running_average, moments=None, **call)


class End(nn.Module):
    """The end of a network's block: a BatchNorm, and attention over its output."""

    name_: str
    hand_on: bool = True
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        options = {"use_running_average": use_running_average, "axis_name": self.axis_name}
        tied = self.name_ == "nam_tied"
        bn = nam_jax.BatchNorm(**options, momentum=0.9, name="nam_bn" if tied else "bn")
        x, moments = bn(x, return_moments=True)
        call = {"scale": bn.variables["params"]["scale"]} if tied else {}
        module = attention(self.name_)(**options, name="attention")
        return module(x, moments=moments if self.hand_on else None, **call)


def further_arguments(name: str, channels: int = SHAPE[-1]) -> dict[str, np.ndarray]:
    """What a module is called with beside x and what all are called with."""
    return {"scale": np.ones(channels, np.float32)} if name == "nam_tied" else {}


def owns_parameters(name: str) -> bool:
    if name == "none":
        return False
    init = functools.partial(
        attention(name)(use_running_average=True).init, **further_arguments(name)
    )
    return "params" in jax.eval_shape(init, jax.random.key(0), image())


def image(shape: tuple[int, ...] = SHAPE, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return (0.5 + 2 * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


class Network(NamedTuple):
    """A whole network, one batch, and what the reference made of them."""

    module: Any
    variables: dict[str, Any]
    x: np.ndarray
    labels: np.ndarray
    eval_logits: np.ndarray
    losses: np.ndarray
    train_logits_after: np.ndarray


class Step(NamedTuple):
    """A training call: its output, new running statistics, and gradients of sum(y cotangent)."""

    y: Any
    statistics: Any
    dparams: Any
    dx: Any


class Vectors(NamedTuple):
    """A module's input and weights, and what the reference made of them."""

    variables: dict[str, Any]
    x: np.ndarray
    cotangent: np.ndarray
    eval_y: np.ndarray
    step: Step


def network(tag: str) -> Network:
    """One network of networks.npz, such as `cifar_resnet18_nam`, with its weights redrawn."""
    stem, name, attention = tag.split("_", 2)
    with np.load(GOLDEN / "networks.npz") as file:
        stored = {key.split(":")[1]: file[key] for key in file.files if key.startswith(tag + ":")}
    x, eval_logits = nhwc(stored["x"]), stored["eval_logits"]
    module = nam_jax.models.create(
        name, num_classes=eval_logits.shape[1], attention=attention, stem=stem, dtype=None
    )
    state_dict = draw_state_dict(stored["names"], stored["shapes"], int(stored["seed"]))
    variables = nam_jax.torch_import.variables(module, state_dict, x.shape)
    rest = (stored[field] for field in ("losses", "train_logits_after"))
    return Network(module, variables, x, stored["labels"], eval_logits, *rest)


def draw_state_dict(names: Any, shapes: Any, seed: int) -> dict[str, np.ndarray]:
    """The weights behind networks.npz, drawn one after another from one generator."""
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: list[int]) -> np.ndarray:
        if name.endswith("num_batches_tracked"):
            return np.zeros(shape)
        if name.endswith("running_var"):
            return 0.5 + rng.random(shape)
        normal = rng.standard_normal(shape)
        if name.endswith(("running_mean", "bias")):
            return 0.1 * normal
        if len(shape) >= 3:  # a convolution, He-normal over its fan-in
            return normal * np.sqrt(2.0 / np.prod(shape[1:]))
        return 0.05 * normal if len(shape) == 2 else 1.0 + 0.3 * normal

    pairs = zip(names, shapes, strict=True)
    return {str(name): draw(str(name), json.loads(str(shape))) for name, shape in pairs}


def vectors(name: str, module: Any) -> Vectors:
    """The vectors of one attention module, by its name."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        stored = dict(file)
    x = nhwc(stored["x"])

    def load(params: str, statistics: str) -> Any:
        state_dict = {
            key.removeprefix(prefix): value
            for prefix in (params, statistics)
            for key, value in stored.items()
            if key.startswith(prefix)
        }
        return nam_jax.torch_import.variables(module, state_dict, x.shape)

    before = load("param:", "buffer:")
    after = load("train:grad:", "train:buffer:")

    def biased(path: Any, new: np.ndarray, old: np.ndarray) -> np.ndarray:
        if path[-1].key != "var":
            return new
        n, kept = _elements(path, x, new), module.momentum * old
        return kept + (new - kept) * (n - 1) / n

    statistics = jax.tree_util.tree_map_with_path(
        biased, after.get("batch_stats", {}), before.get("batch_stats", {})
    )
    dparams = after.get("params", {})
    step = Step(nhwc(stored["train:y"]), statistics, dparams, nhwc(stored["train:dx"]))
    return Vectors(before, x, nhwc(stored["cotangent"]), nhwc(stored["eval:y"]), step)


def _elements(path: Any, x: np.ndarray, statistic: np.ndarray) -> int:
    owner = path[0].key
    if path[-2].key == "nam_bn":
        return x.size // statistic.size
    sizes = dict(zip("nhwc", x.shape, strict=True))
    return sum(math.prod(sizes[axis] for axis in axes) for axes in ELEMENTS[owner].split())


def nhwc(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 3, 1)


def random_variables(module: Any, x: Any, dtype: Any = np.float64, **call: Any) -> dict[str, Any]:
    """Variables of a module with scales of both signs and positive running variances."""
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False, **call), x)
    rng = np.random.default_rng(1)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        positive = path[-1].key == "var"
        value = 0.5 + rng.random(leaf.shape) if positive else rng.standard_normal(leaf.shape)
        return value.astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def train_step(module: Any, variables: Any, x: Any, cotangent: Any) -> Step:
    """Applies a module with use_running_average=False and differentiates it."""
    return jax.jit(lambda *args: _step(module, *args))(variables, x, cotangent)


def sharded_train_step(module: Any, variables: Any, x: Any, cotangent: Any) -> Step:
    """The same with the batch spread over four devices and the module's axis_name "data".

    The statistics have one more axis in front: what each of the devices holds.
    """

    def local(variables: Any, x: Any, cotangent: Any) -> Step:
        step = _step(module, variables, x, cotangent)
        statistics = jax.tree.map(lambda value: value[None], step.statistics)
        return step._replace(statistics=statistics, dparams=jax.lax.psum(step.dparams, "data"))

    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    data, everywhere = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(everywhere, data, data),
        out_specs=Step(y=data, statistics=data, dparams=everywhere, dx=data),
        check_vma=False,
    )
    return jax.jit(mapped)(variables, x, cotangent)


def _step(module: Any, variables: Any, x: Any, cotangent: Any) -> Step:
    def loss(params: Any, x: Any) -> Any:
        y, update = module.apply(
            {**variables, "params": params}, x, use_running_average=False, mutable="batch_stats"
        )
        return (y * cotangent).sum(), (y, update.get("batch_stats", {}))

    params = variables.get("params", {})
    grads, (y, statistics) = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    return Step(y, statistics, *grads)


def reductions(function: Any, *args: Any, larger_than: int = 0) -> int:
    """How many reductions of arrays of more than so many values a function has."""
    sizes = [
        max(value.aval.size for value in equation.invars)
        for equation in _equations(jax.make_jaxpr(function)(*args).jaxpr)
        if equation.primitive.name.startswith("reduce_")
        and equation.primitive.name != "reduce_precision"
    ]
    return sum(size > larger_than for size in sizes)


def _equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a jaxpr and of its inner ones; where platforms differ, those of a CPU."""
    for equation in jaxpr.eqns:
        yield equation
        for name, value in equation.params.items():
            several = value if isinstance(value, (tuple, list)) else (value,)
            for inner in several[-1:] if name == "branches" else several:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _equations(inner)
