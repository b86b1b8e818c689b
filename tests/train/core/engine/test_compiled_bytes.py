"""How often attention makes a compiled training step read or write the map that it gates."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.sharding import SingleDeviceSharding

from nam_jax.models import blocks
from train.core.devices import scheduled_program, topologies

# Larger than a v5e's VMEM, as the first stages of ResNet-50 are: every pass is one over HBM.
MAP = (128, 56, 56, 256)
ONE = 2 * MAP[0] * MAP[1] * MAP[2] * MAP[3]


class Block(nn.Module):
    """The end of a residual block and the convolution after it."""

    attention: str

    @nn.compact
    def __call__(self, x: jax.Array, shortcut: jax.Array) -> jax.Array:
        options = blocks.shared_options(train=True, dtype=jnp.bfloat16, axis_name=None)
        y = blocks.conv(MAP[-1], 1, dtype=jnp.bfloat16, name="conv3")(x)
        y = blocks.norm_and_attention(y, blocks.Attention(self.attention), options, norm_name="bn3")
        return blocks.conv(64, 1, dtype=jnp.bfloat16, name="next")(blocks.relu(y + shortcut))


@functools.cache
def compiled(topology: str, attention: str) -> jax.stages.Compiled:
    """The block's forward and backward pass for one device."""
    block = Block(attention)
    narrow, wide = (jax.ShapeDtypeStruct((*MAP[:3], n), jnp.bfloat16) for n in (64, MAP[-1]))
    variables = jax.eval_shape(block.init, jax.random.key(0), narrow, wide)

    def gradients(variables, x, shortcut, cotangent):
        def apply(params, x, shortcut):
            return block.apply({**variables, "params": params}, x, shortcut, mutable="batch_stats")

        _, pull, statistics = jax.vjp(apply, variables["params"], x, shortcut, has_aux=True)
        return pull(cotangent), statistics

    sharding = SingleDeviceSharding(topologies.devices(topology)[0])
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        (variables, narrow, wide, narrow),
    )
    return jax.jit(gradients).lower(*arguments).compile()


def tpu_bytes(attention: str) -> float:
    return compiled("v5e:1x1", attention).cost_analysis()["bytes accessed"]


def gpu_figures(attention: str) -> dict[str, float]:
    return scheduled_program.figures(compiled("h100", attention).as_text())


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize(
    ("attention", "passes"),
    [
        ("nam_channel", 0.1),
        ("nam_spatial", 2.1),
        ("nam", 2.1),
        ("se", 2.1),
        ("cbam", 5.1),
        ("half", 0.1),
        ("eca", 2.1),
        ("simam", 2.1),
        ("coordatt", 7.1),
    ],
)
def test_passes_over_the_map_that_attention_adds(attention: str, passes: float) -> None:
    assert tpu_bytes(attention) <= tpu_bytes("none") + passes * ONE


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    ("attention", "passes", "tanh"),
    [("nam_channel", 0.7, 4), ("nam_spatial", 3.5, 4), ("nam", 3.8, 11)],
)
def test_passes_on_a_gpu_and_how_often_they_compute_a_gate(
    attention: str, passes: float, tanh: int
) -> None:
    figures, none = gpu_figures(attention), gpu_figures("none")
    assert figures["bytes_accessed"] <= none["bytes_accessed"] + passes * ONE
    # Of an element; the few others are square roots of variances.
    assert figures["transcendentals"] <= 1.01 * tanh * ONE / 2
    # Sums of a few rows alone.
    assert figures["float32_map_bytes"] < 0.1 * ONE
