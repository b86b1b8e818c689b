"""Equation 4: the sparsity penalty on NAM's scales, and its optax transformations.

A NAM scale is every parameter whose path ends in `nam_bn/scale`, whatever owns it; `scales=`
selects others, such as those of a foreign model that the tied form reads.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nam_jax.attention.base import check_selector
from nam_jax.layers.dtypes import widened
from nam_jax.layers.equations import magnitude

# A schedule takes the number of updates so far.
ScalarOrSchedule = float | Callable[[jax.Array], jax.Array]
# A regular expression for the whole path of a parameter, or whether a path is meant.
Scales = str | Callable[[str], bool]

NAM_SCALES = "(.*/)?nam_bn/scale"


class ScheduleState(NamedTuple):
    """The number of updates so far, for a strength that is a schedule of it."""

    step: jax.Array


def path_names(path: tuple[Any, ...]) -> list[str]:
    """The names of modules and parameter in a key path of `jax.tree_util`."""
    # In a state of Flax NNX, the array is the attribute `value` of a variable.
    keys = [key for key in path if key != jax.tree_util.GetAttrKey("value")]
    return [str(getattr(key, "key", getattr(key, "name", key))) for key in keys]


def is_selected(path: tuple[Any, ...], scales: Scales) -> bool:
    """Whether a key path of `jax.tree_util` leads to one of these scales."""
    name = "/".join(path_names(path))
    return scales(name) if callable(scales) else re.fullmatch(scales, name, re.DOTALL) is not None


def map_scales(function: Callable[..., Any], scales: Scales, tree: Any, *rest: Any) -> Any:
    """Applies function to every selected scale (and its partners in rest), leaving all else."""

    def visit(path: tuple[Any, ...], leaf: Any, *partners: Any) -> Any:
        # As everywhere in optax: what is not trained has no gradient, and stays so.
        if leaf is None or not is_selected(path, scales):
            return leaf
        # Updates and parameters may have different dtypes, whatever JAX is told to refuse.
        with jax.numpy_dtype_promotion("standard"):
            return function(leaf, *partners)

    return jax.tree_util.tree_map_with_path(visit, tree, *rest, is_leaf=lambda leaf: leaf is None)


def nam_scales(params: optax.Params, scales: Scales = NAM_SCALES) -> list[jax.Array]:
    """All NAM scales of a parameter tree, or those selected, in the tree's order."""
    check_selector("scales", scales)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [leaf for path, leaf in leaves if is_selected(path, scales)]


def sparsity_penalty(
    params: optax.Params, strength: float | jax.Array, *, scales: Scales = NAM_SCALES
) -> jax.Array:
    """The penalty of equation 4, over all NAM scales.

    .. math::
      p (Σ|γ| + Σ|λ|)

    Args:
      params: Parameters of a model.
      strength: Strength p of the penalty, at least 0.
      scales: Scales that are penalised: a regular expression that matches all of a path such as
        `layer1_0/bn3/scale`, or a function that tells of a path whether it is meant.

    Returns:
      A scalar, at least float32; 0 where params hold no NAM scale.

    Raises:
      ValueError: strength is negative, or scales is no regular expression.

    Example:
      >>> import jax.numpy as jnp, nam_jax
      >>> params = {"attention": {"nam_bn": {"scale": jnp.array([1.0, -2.0])}}}
      >>> print(nam_jax.sparsity_penalty(params, 0.1))
      0.3

    Source: https://arxiv.org/abs/2111.12419, equation 4; p = 1e-4 in the authors' code.
    """
    _check_not_negative("The sparsity strength", strength)
    total = jnp.zeros((), jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        for scale in nam_scales(params, scales):
            total += magnitude(scale).sum()
        return strength * total


def add_sparsity_penalty(
    strength: ScalarOrSchedule, *, scales: Scales = NAM_SCALES
) -> optax.GradientTransformation:
    """Adds the penalty's gradient, p sign(scale), to the gradient of every NAM scale.

    For the front of an optax chain, before weight decay and momentum, where it is the same
    as differentiating the loss with the penalty added. Do not add it to the loss as well.

    Args:
      strength: Strength p of the penalty, at least 0, or a schedule of the number of updates.
      scales: Scales that are penalised, see `sparsity_penalty`. `optax.inject_hyperparams` takes a
        function for a schedule unless it is told otherwise, by `static_args="scales"`.

    Returns:
      A transformation whose update needs params.

    Raises:
      ValueError: strength is negative; or, at init, it is not 0 and params hold no such scale.

    Example:
      >>> import jax.numpy as jnp, nam_jax, optax
      >>> params = {"nam_bn": {"scale": jnp.array([2.0, -2.0])}}
      >>> tx = optax.chain(nam_jax.add_sparsity_penalty(0.5), optax.sgd(1.0))
      >>> grads = {"nam_bn": {"scale": jnp.zeros(2)}}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> print(updates["nam_bn"]["scale"])
      [-0.5  0.5]

    Source: https://arxiv.org/abs/2111.12419, equation 4.
    """

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError("add_sparsity_penalty needs the parameters: update(g, state, params).")
        p = _value(strength, state.step)

        def add(g: jax.Array, scale: jax.Array) -> jax.Array:
            penalised = g + p * jnp.sign(widened(scale))
            # Without a penalty, adding 0 would still make 0 of −0.
            return jnp.where(p == 0, g, penalised.astype(g.dtype))

        updates = map_scales(add, scales, updates, params)
        return updates, ScheduleState(optax.safe_increment(state.step))

    return optax.GradientTransformation(_checked_init(strength, scales), update)


def proximal_sparsity(
    strength: ScalarOrSchedule, learning_rate: ScalarOrSchedule, *, scales: Scales = NAM_SCALES
) -> optax.GradientTransformation:
    """Moves every NAM scale by the proximal step of the penalty: a soft threshold.

    .. math::
      scale ← sign(v) max(|v| − p η, 0),  v = scale + update

    For the end of an optax chain, after the learning rate. It reaches exact zeros, which
    the sign update only ever steps across. With detached weights (`weight_gradient=False`,
    the default) a scale of NAM's own BatchNorm that is zero gets no gradient, as its weight W
    is 0: once the momentum of the chain has died away it stays zero. A tied scale gets the
    gradient of the BatchNorm that it belongs to, and may come back.

    Args:
      strength: Strength p of the penalty, at least 0, or a schedule of the number of updates.
      learning_rate: Learning rate η of the chain before, at least 0, or its schedule. Behind
        momentum m, which repeats a gradient 1 / (1 − m) times in all, it is η / (1 − m): with η
        the scales would find the minimum of a penalty of strength p (1 − m). Behind Adam it would
        be η / (√v̂ + ε), which is another for every scale; `nam_jax.sparsity.soft_threshold` takes
        such.
      scales: Scales that are penalised, see `sparsity_penalty`.

    Returns:
      A transformation whose update needs params.

    Raises:
      ValueError: strength or learning rate is negative; or, at init, strength is not 0 and
        params hold no such scale.

    Example:
      >>> import jax.numpy as jnp, nam_jax, optax
      >>> params = {"nam_bn": {"scale": jnp.array([2.0, 0.1])}}
      >>> tx = optax.chain(optax.sgd(1.0), nam_jax.proximal_sparsity(0.5, 1.0))
      >>> grads = {"nam_bn": {"scale": jnp.zeros(2)}}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> print(optax.apply_updates(params, updates)["nam_bn"]["scale"])
      [1.5 0. ]

    Source: https://arxiv.org/abs/2111.12419, equation 4; N. Parikh and S. Boyd, Proximal
    Algorithms, 2014, section 6.5.2.
    """

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError("proximal_sparsity needs the parameters: update(g, state, params).")
        threshold = _value(strength, state.step) * _value(learning_rate, state.step)

        def shrink(u: jax.Array, scale: jax.Array) -> jax.Array:
            return soft_threshold(u, scale, threshold)

        updates = map_scales(shrink, scales, updates, params)
        return updates, ScheduleState(optax.safe_increment(state.step))

    _check_not_negative("The learning rate", learning_rate)
    return optax.GradientTransformation(_checked_init(strength, scales), update)


def soft_threshold(update: jax.Array, scale: jax.Array, threshold: Any) -> jax.Array:
    """The update with which a scale ends nearer to zero by a threshold, or at zero.

    .. math::
      sign(v) max(|v| − threshold, 0) − scale,  v = scale + update

    Args:
      update: Update of the scale, of any shape.
      scale: Scale before it, of the shape of the update.
      threshold: How much nearer, at least 0: a number, or one for every element.

    Returns:
      The update, of its shape, in the dtype that it has in common with the scale; the given one
      where the threshold is 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from nam_jax.sparsity import soft_threshold
      >>> scale = jnp.array([1.0, -1.0, 0.25])
      >>> print(scale + soft_threshold(jnp.zeros(3), scale, 0.5))
      [ 0.5 -0.5  0. ]

    Source: N. Parikh and S. Boyd, Proximal Algorithms, 2014, section 6.5.2.
    """
    v = scale + update
    shrunk = jnp.sign(v) * jnp.maximum(jnp.abs(v) - threshold, 0).astype(v.dtype)
    # Without a penalty the update is kept as it is, not rounded by adding the scale.
    return jnp.where(threshold == 0, update, shrunk - scale)


def _value(scalar_or_schedule: ScalarOrSchedule, count: jax.Array) -> Any:
    return scalar_or_schedule(count) if callable(scalar_or_schedule) else scalar_or_schedule


def _is_known(value: Any) -> bool:
    """Whether this is a number already; a schedule is not, nor what is traced."""
    return not callable(value) and not isinstance(value, jax.core.Tracer)


def _check_not_negative(what: str, value: Any) -> None:
    if _is_known(value) and not value >= 0:
        raise ValueError(f"{what} has to be at least 0; got {value}.")


def _checked_init(
    strength: ScalarOrSchedule, scales: Scales
) -> Callable[[optax.Params], ScheduleState]:
    _check_not_negative("The sparsity strength", strength)
    check_selector("scales", scales)
    # A traced strength may be 0.
    is_on = callable(strength) or (_is_known(strength) and strength != 0)

    def init(params: optax.Params) -> ScheduleState:
        # A tree without leaves is what optax asks with for the structure of the state.
        if is_on and jax.tree.leaves(params) and not nam_scales(params, scales):
            raise ValueError(f"The sparsity penalty would do nothing: {_nothing_found(scales)}")
        return ScheduleState(jnp.zeros((), jnp.int32))

    return init


def _nothing_found(scales: Scales) -> str:
    if scales == NAM_SCALES:
        return (
            "no parameter path ends in nam_bn/scale. Use a model with NAM attention, or set the "
            "strength to 0; scales= selects those of other names."
        )
    return f"scales={scales!r} selects no parameter. It has to match a path in full."
