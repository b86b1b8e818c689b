"""Grad-CAM: where in an image what speaks for a class is."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend import core

from nam_jax.layers.dtypes import widened


def grad_cam(
    network: Callable[[jax.Array], jax.Array], images: jax.Array, classes: jax.Array
) -> jax.Array:
    """Where in every image what speaks for a class is.

    map = relu(Σ_k α_k A_k),  α_k = mean over the map of ∂ logit / ∂ A_k

    A is the last array (N, H', W', C') that the logits are computed from: in the networks of
    `nam_jax.models` what their global average pooling takes, behind the last ReLU.

    Args:
      network: Function that gives logits (N, classes), those of an image by that image alone, as in
        evaluation.
      images: Images (N, H, W, channels), its input.
      classes: Indices (N,) of the class to look for in each image.

    Returns:
      Maps (N, H', W'), at least 0, at least float32.

    Raises:
      ValueError: the network computes no such array.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from train.visualize.grad_cam import grad_cam
      >>> images = jnp.array([[2.0, -3.0], [0.0, 1.0]]).reshape(1, 2, 2, 1)
      >>> network = lambda x: jax.nn.relu(x).mean((1, 2)) @ jnp.array([[4.0, -4.0]])
      >>> grad_cam(network, images, jnp.array([0]))[0].tolist()
      [[2.0, 0.0], [0.0, 1.0]]

    Source: R. R. Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via
    Gradient-based Localization, 2017, https://arxiv.org/abs/1610.02391, section 3.
    """
    features, logits_of = _split(network, images)

    def score(features: jax.Array) -> jax.Array:
        return jnp.take_along_axis(logits_of(features), classes[:, None], axis=-1).sum()

    weights = widened(jax.grad(score)(features)).mean((1, 2))
    return nn.relu(jnp.einsum("nhwc,nc->nhw", widened(features), weights))


def _split(
    network: Callable[[jax.Array], jax.Array], images: jax.Array
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """The last map that the logits are computed from, and the rest of the network after it.

    It is looked for in the traced computation: the outputs of modules are not all there is, the
    last ReLU of a network may belong to none.
    """
    traced = jax.make_jaxpr(network)(images)
    jaxpr = traced.jaxpr
    place, features, needed = _last_map(jaxpr, len(images))
    before = jaxpr.replace(eqns=jaxpr.eqns[: place + 1], outvars=needed)
    after = jaxpr.replace(constvars=[], invars=needed, eqns=jaxpr.eqns[place + 1 :])
    values = core.jaxpr_as_fun(core.ClosedJaxpr(before, traced.consts))(images)
    index = needed.index(features)

    def rest(features: jax.Array) -> jax.Array:
        arguments = [*values[:index], features, *values[index + 1 :]]
        return core.jaxpr_as_fun(core.ClosedJaxpr(after, []))(*arguments)[0]

    return values[index], rest


def _last_map(jaxpr: core.Jaxpr, count: int) -> tuple[int, core.Var, list[core.Var]]:
    """The equation that makes it, the map itself, and all that is read after that equation."""
    needed = dict.fromkeys(_variables(jaxpr.outvars))
    for place, equation in reversed(list(enumerate(jaxpr.eqns))):
        made = [variable for variable in equation.outvars if variable in needed]
        for variable in made:
            if _is_map(variable.aval, count):
                return place, variable, list(needed)
        if made:
            others = [variable for variable in needed if variable not in made]
            needed = dict.fromkeys([*others, *_variables(equation.invars)])
    raise ValueError("Grad-CAM needs a network that computes an array (N, H, W, C).")


def _variables(atoms: Iterable[Any]) -> list[core.Var]:
    return [atom for atom in atoms if not isinstance(atom, core.Literal)]


def _is_map(value: Any, count: int) -> bool:
    is_floating = jnp.issubdtype(value.dtype, jnp.floating)
    return is_floating and len(value.shape) == 4 and value.shape[0] == count
