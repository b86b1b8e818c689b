"""Attention by name in a linen model that has BatchNorms of its own.

python examples/linen_model.py [ATTENTION]

A small residual network on random images, trained for a few steps with the sparsity penalty.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import nam_jax
from nam_jax.attention import NAMES, has_nam_scales


class Block(nn.Module):
    """Convolution, BatchNorm, attention, and the addition."""

    features: int
    attention: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = nn.Conv(self.features, (3, 3), use_bias=False)(x)
        # flax's own BatchNorm: the attention looks at its output, and needs nothing else.
        y = nn.BatchNorm(use_running_average=not train, momentum=0.9)(y)
        attention = nam_jax.attention(self.attention)
        if attention is not None:
            y = attention(use_running_average=not train)(y)
        return nn.relu(x + y)


class Network(nn.Module):
    """A stem, a few blocks and a classifier."""

    num_classes: int
    attention: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Conv(16, (3, 3))(x)
        for _ in range(3):
            x = Block(16, self.attention)(x, train)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


def train(attention: str, steps: int = 10) -> list[float]:
    """Trains the network on one random batch; returns the loss of every step."""
    model = Network(num_classes=4, attention=attention)
    images = jax.random.normal(jax.random.key(1), (32, 16, 16, 3))
    labels = jnp.arange(32) % 4
    variables = model.init(jax.random.key(0), images, train=False)
    params, batch_stats = variables["params"], variables["batch_stats"]
    # The penalty goes first: before momentum, and refused where there are no NAM scales.
    penalty = [nam_jax.add_sparsity_penalty(1e-4)] if has_nam_scales(attention) else []
    tx = optax.chain(*penalty, optax.sgd(0.1, momentum=0.9))
    opt_state = tx.init(params)

    @jax.jit
    def step(params: Any, batch_stats: Any, opt_state: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, updates = model.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updates["batch_stats"]

        (value, batch_stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return value, optax.apply_updates(params, updates), batch_stats, opt_state

    losses = []
    for _ in range(steps):
        value, params, batch_stats, opt_state = step(params, batch_stats, opt_state)
        losses.append(float(value))
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    # nam_tied is called with the scale of the BatchNorm before it: docs/library/your_model.md.
    choices = [name for name in NAMES if name != "nam_tied"]
    parser.add_argument("attention", nargs="?", default="nam", choices=choices)
    losses = train(parser.parse_args().attention)
    print(f"loss {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last")
