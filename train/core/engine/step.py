"""The maths of a training and an evaluation step: pure functions, without I/O."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from nam_jax import sparsity_penalty
from train.core.config.fields import Config
from train.core.devices import mesh as mesh_lib

Metrics = Mapping[str, jax.Array]


class TrainState(struct.PyTreeNode):
    """All that a run has to remember.

    Attributes:
      step: number of updates so far, a scalar.
      params: of the model.
      batch_stats: running statistics of the model's BatchNorms.
      opt_state: of the optax chain.
      ema: the exponential moving average of params and batch_stats, or None.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """What the model is applied with."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_state(
    variables: Mapping[str, Any], tx: optax.GradientTransformation, *, with_ema: bool = False
) -> TrainState:
    """The state before the first update.

    Args:
      variables: parameters and running statistics of the model.
      tx: the optax chain.
      with_ema: keep an average of the weights.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(variables["params"]),
        ema=jax.tree.map(jnp.copy, dict(variables)) if with_ema else None,
    )


def is_wrong(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Whether the label is not among the k largest logits.

    Ties and NaN count against the label, so that a collapsed network is no perfect one.

    Args:
      logits: (N, classes).
      labels: (N,) integers.
      k: at least 1.

    Returns:
      (N,) bool.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    not_below = jnp.logical_not(logits < own)
    return not_below.sum(-1) > k


def train_step(
    state: TrainState,
    images: jax.Array,
    targets: jax.Array,
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    config: Config,
    on_cpu: bool = True,
) -> tuple[TrainState, Metrics]:
    """One update, on the rows of the batch that one device has, inside a sharded function.

    With `accumulate_steps` the rows are taken in as many parts, one after another, and their
    gradients averaged: the update is that of the whole batch, but for the BatchNorms, which
    see one part at a time. The running statistics are updated by each.

    Gradients, running statistics and metrics are averaged over the devices. The penalty
    reaches the gradients through the optax chain alone, and is reported in the loss.

    Args:
      state: before the update.
      images: (n, H, W, C), normalised.
      targets: (n, classes), the probability of every class.
      model: takes images and `train`.
      tx: the optax chain.
      config: of the run.
      on_cpu: whether it is compiled for a CPU.

    Returns:
      The state after the update, and the metrics of the batch before it.
    """

    def gradients(batch_stats: Any, images: jax.Array, targets: jax.Array) -> Any:
        return _gradients(state.params, batch_stats, images, targets, model, config.label_smoothing)

    # On a CPU the gradient of a convolution inside a loop is 20 times slower.
    new = _accumulate(
        gradients, state.batch_stats, (images, targets), config.accumulate_steps, unroll=on_cpu
    )
    batch_stats, (grads, metrics) = mesh_lib.mean(new, at_once=on_cpu)
    penalty = sparsity_penalty(state.params, config.optimizer.sparsity)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    if config.ema_decay:
        state = state.replace(ema=_average(state.ema, state.variables, config.ema_decay))
    return state, {"loss": metrics["cross_entropy"] + penalty, "penalty": penalty, **metrics}


def _gradients(
    params: Any,
    batch_stats: Any,
    images: jax.Array,
    targets: jax.Array,
    model: nn.Module,
    label_smoothing: float,
) -> tuple[Any, tuple[Any, Metrics]]:
    """The running statistics after a batch, its gradients and its metrics."""

    def loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        variables = {"params": params, "batch_stats": batch_stats}
        output = model.apply(variables, images, train=True, mutable=["batch_stats"])
        logits, updates = cast(tuple[jax.Array, Any], output)
        smoothed = optax.smooth_labels(targets, label_smoothing)
        loss = optax.softmax_cross_entropy(logits, smoothed).mean()
        return loss, (logits, updates["batch_stats"])

    (value, (logits, new_stats)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    labels = targets.argmax(-1)
    errors = {f"top{k}_error": 100 * is_wrong(logits, labels, k).mean() for k in (1, 5)}
    return new_stats, (grads, {"cross_entropy": value, **errors})


def _accumulate(
    gradients: Callable[..., tuple[Any, Any]],
    batch_stats: Any,
    rows: Any,
    count: int,
    *,
    unroll: bool,
) -> tuple[Any, Any]:
    """Calls gradients with one part of the rows after another.

    Args:
      gradients: of running statistics and rows; gives new statistics, and a tree of means.
      batch_stats: running statistics before the first part.
      rows: a tree of arrays (n, …).
      count: of the parts.
      unroll: without a loop.

    Returns:
      The statistics after the last part, and the means over all of them.
    """
    if count == 1:
        return gradients(batch_stats, *rows)
    parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), rows)

    def add(carry: tuple[Any, Any], part: Any) -> tuple[tuple[Any, Any], None]:
        batch_stats, found = gradients(carry[0], *part)
        return (batch_stats, jax.tree.map(jnp.add, carry[1], found)), None

    first = gradients(batch_stats, *jax.tree.map(lambda x: x[0], parts))
    rest = jax.tree.map(lambda x: x[1:], parts)
    (batch_stats, sums), _ = jax.lax.scan(add, first, rest, unroll=unroll)
    return batch_stats, jax.tree.map(lambda x: x / count, sums)


def _average(ema: Any, variables: Any, decay: float) -> Any:
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, variables)


def eval_step(
    variables: Mapping[str, Any],
    images: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    *,
    model: nn.Module,
) -> Metrics:
    """Sums over the rows of a batch that count, inside a sharded function.

    Args:
      variables: parameters and running statistics of the model.
      images: (n, H, W, C), normalised.
      labels: (n,) integers.
      mask: (n,) bool, False for rows that do not count.
      model: takes images and `train`.

    Returns:
      `cross_entropy`, `top1_wrong`, `top5_wrong` and `count`, summed over all devices.
    """
    logits = cast(jax.Array, model.apply(variables, images, train=False))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    wrong = {f"top{k}_wrong": (is_wrong(logits, labels, k) & mask).sum() for k in (1, 5)}
    return mesh_lib.total({"cross_entropy": losses.sum(where=mask), "count": mask.sum(), **wrong})


@jax.jit
def is_finite(state: TrainState) -> jax.Array:
    """Whether no array of the state holds NaN or an infinity."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]).all()


def streams(seed: int) -> dict[str, jax.Array]:
    """The independent random keys of a run."""
    names = ("init", "order", "augment")
    return dict(zip(names, jax.random.split(jax.random.key(seed), len(names)), strict=True))
