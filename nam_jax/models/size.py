"""The size of a network: parameters and multiply-adds, of the whole and of every layer."""

import collections
import math
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta
from flax.traverse_util import flatten_dict

from nam_jax.variables import TreePath, is_attention


class Size(NamedTuple):
    """Trained parameters, and multiply-adds of convolutions and linear layers for one image."""

    parameters: int
    multiply_adds: int


class Layer(NamedTuple):
    """A module with a size of its own, or a whole attention module.

    Attributes:
      path: Names of the modules from the network down to this one; () is the network.
      shape: Shape of its output for one image, (H, W, C) or (features,).
      size: Size without that of other layers inside it.
    """

    path: TreePath
    shape: tuple[int, ...]
    size: Size


def parameters(params: Any) -> int:
    """Number of trained parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def multiply_adds(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply-adds of all convolutions and linear layers for one image.

    Args:
      model: Network that is called with images (N, H, W, C) and `train`.
      image_shape: Shape of one image, (H, W, C).
    """
    return total(layers(model, image_shape)).multiply_adds


def total(network: Sequence[Layer], attention_only: bool = False) -> Size:
    """The size of all layers together, or of the attention modules alone."""
    sizes = [x.size for x in network if _is_attention(x.path) or not attention_only]
    return Size(sum(x.parameters for x in sizes), sum(x.multiply_adds for x in sizes))


def layers(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Layer]:
    """The layers of a network in the order in which they run. Traces it, computes nothing.

    It is traced while it initialises: products within initialisers count as well.

    Args:
      model: Network that is called with images (N, H, W, C) and `train`.
      image_shape: Shape of one image, (H, W, C).
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)

    def initialised(x: jax.Array) -> Any:
        return model.init_with_output(jax.random.key(0), x, train=False)

    shapes: dict[TreePath, tuple[int, ...]] = {}
    with nn.intercept_methods(_recorder(shapes)):
        closed, (_, variables) = jax.make_jaxpr(initialised, return_shape=True)(images)
    params, products = collections.Counter[TreePath](), collections.Counter[TreePath]()
    for path, leaf in flatten_dict(meta.unbox(variables.get("params", {}))).items():
        params[_owner(path, shapes)] += leaf.size
    for scopes, count in _products(closed.jaxpr):
        products[_owner(scopes, shapes)] += count
    every = [Layer(x, shape, Size(params[x], products[x])) for x, shape in shapes.items()]
    return [layer for layer in every if any(layer.size) or _is_attention(layer.path)]


def _recorder(shapes: dict[TreePath, tuple[int, ...]]) -> Callable[..., Any]:
    """A method interceptor that notes the shape of what every module returns."""

    def record(method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        output = method(*args, **kwargs)
        if context.method_name == "__call__":
            arrays = jax.tree.leaves(output)
            shapes[context.module.path] = jnp.shape(arrays[0])[1:] if arrays else ()
        return output

    return record


def _is_attention(path: TreePath) -> bool:
    return bool(path) and is_attention(path[-1])


def _owner(names: Sequence[str], modules: Container[TreePath]) -> TreePath:
    """The innermost module that the names lead to; what is inside attention belongs to it."""
    path: TreePath = ()
    for name in names:
        if (*path, name) in modules and not _is_attention(path):
            path = (*path, name)
    return path


def _products(jaxpr: Any, outer: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yields the multiply-adds of every equation, with the names of the scopes around it.

    Flax opens one for each module, called like it, and one for each of its other methods.
    """
    for equation in jaxpr.eqns:
        # Inside a compiled function the stack starts anew.
        scopes = (*outer, *str(equation.source_info.name_stack).split("/"))
        # The first scope is that of the network, which paths leave out.
        yield scopes[1:], _count(equation)
        values = equation.params.values()
        if equation.params.get("branches_platforms"):
            # Of the forms of a computation for several platforms, the last is that of the others.
            values = equation.params["branches"][-1:]
        for value in values:
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _products(inner, scopes)


def _count(equation: Any) -> int:
    outputs = equation.outvars[0].aval.size if equation.outvars else 0
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        out_features = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
        return outputs * kernel.size // out_features
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return outputs * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return 0
