"""The maths of a training and an evaluation step: pure functions, without I/O."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from nam_jax import sparsity_penalty
from train.core.config.fields import Config, Loss
from train.core.devices.mesh import mean, total
from train.core.engine.state import TrainState

Metrics = Mapping[str, jax.Array]


def is_wrong(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Whether the label is not among the k largest logits.

    Ties and NaN count against the label, so that a collapsed network is no perfect one.

    Args:
      logits: Logits of every class, (N, classes).
      labels: Number of each row's class, (N,) integers.
      k: Number of largest logits, at least 1.

    Returns:
      (N,) bool.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    not_below = jnp.logical_not(logits < own)
    return not_below.sum(-1) > k


def cross_entropy(logits: jax.Array, targets: jax.Array, loss: Loss) -> jax.Array:
    """The cross-entropy of each row.

    softmax: −Σ t log softmax(z), over the classes
    sigmoid: −mean of t log σ(z) + (1 − t) log(1 − σ(z)), each class being a question of its own

    Args:
      logits: Logits z of every class, (N, classes).
      targets: Targets t of every class, in [0, 1], (N, classes).
      loss: Name of the loss, one of the two.

    Returns:
      (N,) losses.

    Source: L. Beyer et al., Are we done with ImageNet?, 2020, https://arxiv.org/abs/2006.07159; R.
    Wightman, H. Touvron and H. Jégou, ResNet strikes back, 2021, https://arxiv.org/abs/2110.00476.
    """
    if loss == "softmax":
        return optax.softmax_cross_entropy(logits, targets)
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)


def train_step(
    state: TrainState,
    images: jax.Array,
    targets: jax.Array,
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    config: Config,
    keys: jax.Array | None = None,
    on_cpu: bool = True,
) -> tuple[TrainState, Metrics]:
    """One update, on the rows of the batch that one device has, inside a sharded function.

    With `accumulate_steps` the rows are taken in as many parts, one after another, and their
    gradients averaged: the update is that of the whole batch, but for the BatchNorms, which
    see one part at a time. The running statistics are updated by each.

    Gradients, running statistics and metrics are averaged over the devices. The penalty
    reaches the gradients through the optax chain alone, and is reported in the loss.

    Args:
      state: State before the update.
      images: Normalised images, (n, H, W, C).
      targets: Probability of every class, (n, classes).
      model: Network; takes images and `train`.
      tx: Optax chain.
      config: Config of the run.
      keys: Random key of each row, (n,), where the network drops something.
      on_cpu: Whether it is compiled for a CPU.

    Returns:
      The state after the update, and the metrics of the batch before it.
    """

    def gradients(batch_stats: Any, images: jax.Array, targets: jax.Array, *keys: jax.Array) -> Any:
        options: Any = {"row_keys": keys[0]} if keys else {}
        apply = functools.partial(model.apply, train=True, mutable=["batch_stats"], **options)
        return _gradients(state.params, batch_stats, images, targets, apply, config)

    # On a CPU the gradient of a convolution inside a loop is 20 times slower.
    rows = (images, targets) if keys is None else (images, targets, keys)
    new = _accumulate(gradients, state.batch_stats, rows, config.accumulate_steps, unroll=on_cpu)
    batch_stats, (grads, metrics) = mean(new, at_once=on_cpu)
    penalty = sparsity_penalty(state.params, config.optimizer.sparsity)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    if config.ema_decay:
        decay = _warm_decay(config.ema_decay, state.step - 1)
        state = state.replace(ema=_average(state.ema, state.variables, decay))
    return state, {"loss": metrics["cross_entropy"] + penalty, "penalty": penalty, **metrics}


def _gradients(
    params: Any,
    batch_stats: Any,
    images: jax.Array,
    targets: jax.Array,
    apply: Callable[..., Any],
    config: Config,
) -> tuple[Any, tuple[Any, Metrics]]:
    """The running statistics after a batch, its gradients and its metrics."""

    def loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updates = apply(variables, images)
        smoothed = optax.smooth_labels(targets, config.label_smoothing)
        if config.loss_threshold:
            smoothed = (smoothed > config.loss_threshold).astype(smoothed.dtype)
        loss = cross_entropy(logits, smoothed, config.loss).mean()
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
      gradients: Takes running statistics and rows; gives new statistics, and a tree of means.
      batch_stats: Running statistics before the first part.
      rows: Tree of arrays (n, …).
      count: Number of the parts.
      unroll: Whether to do without a loop.

    Returns:
      The statistics after the last part, and the means over all of them.
    """
    if count == 1:
        return gradients(batch_stats, *rows)
    parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), rows)

    def add(carry: tuple[Any, Any], part: Any) -> tuple[tuple[Any, Any], None]:
        batch_stats, means = gradients(carry[0], *part)
        return (batch_stats, jax.tree.map(jnp.add, carry[1], means)), None

    first = gradients(batch_stats, *jax.tree.map(lambda x: x[0], parts))
    rest = jax.tree.map(lambda x: x[1:], parts)
    (batch_stats, sums), _ = jax.lax.scan(add, first, rest, unroll=unroll)
    return batch_stats, jax.tree.map(lambda x: x / count, sums)


def _warm_decay(decay: float, updates: jax.Array) -> jax.Array:
    """The decay rate after so many updates: at first the average is of the latest weights."""
    return jnp.minimum(decay, (1 + updates) / (10 + updates))


def _average(ema: Any, variables: Any, decay: jax.Array) -> Any:
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, variables)


def eval_step(
    variables: Mapping[str, Any],
    images: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    *,
    model: nn.Module,
    loss: Loss = "softmax",
) -> Metrics:
    """Sums over the rows of a batch that count, inside a sharded function.

    Args:
      variables: Parameters and running statistics of the network.
      images: Normalised images, (n, H, W, C).
      labels: Number of each image's class, (n,) integers.
      mask: Whether each row counts, (n,) bool.
      model: Network; takes images and `train`.
      loss: Which cross-entropy it is trained with.

    Returns:
      `cross_entropy`, `top1_wrong`, `top5_wrong` and `count`, summed over all devices.
    """
    logits = cast(jax.Array, model.apply(variables, images, train=False))
    if loss == "softmax":
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    else:
        losses = cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1]), loss)
    wrong = {f"top{k}_wrong": (is_wrong(logits, labels, k) & mask).sum() for k in (1, 5)}
    return total({"cross_entropy": losses.sum(where=mask), "count": mask.sum(), **wrong})
