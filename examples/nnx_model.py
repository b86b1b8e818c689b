"""NAM in a Flax NNX model.

python examples/nnx_model.py

A small residual network on random images, trained for a few steps with the sparsity penalty.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import nam_jax
from nam_jax.nnx import NAM


class Block(nnx.Module):
    """Convolution, BatchNorm, NAM, and the addition."""

    def __init__(self, features: int, image_size: int, rngs: nnx.Rngs):
        self.conv = nnx.Conv(features, features, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(features, momentum=0.9, rngs=rngs)
        # Spatial NAM is tied to the size of its map.
        self.attention = NAM(features, (image_size, image_size), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(x + self.attention(self.norm(self.conv(x))))


class Network(nnx.Module):
    """A stem, two blocks and a classifier."""

    def __init__(self, num_classes: int, image_size: int, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, 16, (3, 3), rngs=rngs)
        self.blocks = nnx.List([Block(16, image_size, rngs) for _ in range(2)])
        self.head = nnx.Linear(16, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


@nnx.jit
def step(
    model: Network, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array
) -> jax.Array:
    """One update; returns the loss before it."""

    def loss(model: Network) -> jax.Array:
        logits = model(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, grads = nnx.value_and_grad(loss)(model)
    optimizer.update(model, grads)
    return value


def train(steps: int = 10) -> list[float]:
    """Trains the network on one random batch; returns the loss of every step."""
    model = Network(num_classes=4, image_size=16, rngs=nnx.Rngs(0))
    tx = optax.chain(nam_jax.add_sparsity_penalty(1e-4), optax.sgd(0.1, momentum=0.9))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    model.train()  # and model.eval() to evaluate
    images = jax.random.normal(jax.random.key(1), (32, 16, 16, 3))
    labels = jnp.arange(32) % 4
    return [float(step(model, optimizer, images, labels)) for _ in range(steps)]


if __name__ == "__main__":
    losses = train()
    print(f"loss {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last")
