"""The examples run as they stand, and learn."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import nam_jax
from examples import linen_model, nnx_model, pretrained_model
from nam_jax.attention import NAMES
from tests.helpers.values import with_slow

LISTED = [name for name in NAMES if name != "nam_tied"]


@with_slow("attention", LISTED, set(LISTED) - {"nam"})
def test_linen_model_learns(attention: str) -> None:
    losses = linen_model.train(attention, steps=5)
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_nnx_model_learns() -> None:
    losses = nnx_model.train(steps=5)
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_nnx_model_is_nam() -> None:
    block = nnx_model.Block(8, 6, nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 6, 6, 8))
    block.eval()
    y = block.norm(block.conv(x))
    module = nam_jax.NAM(use_running_average=True)
    expected = nnx.relu(x + module.apply(module.init(jax.random.key(0), y), y))
    np.testing.assert_allclose(block(x), expected, atol=1e-6)


@pytest.mark.slow
def test_nnx_statistics_run_in_training_only() -> None:
    block = nnx_model.Block(8, 6, nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 6, 6, 8))

    def statistics() -> list[np.ndarray]:
        state = nnx.state(block.attention, nnx.BatchStat)
        return [np.array(leaf) for leaf in jax.tree.leaves(state)]

    before = statistics()
    block.eval()
    block(x)
    assert all(np.array_equal(a, b) for a, b in zip(statistics(), before, strict=True))
    block.train()
    block(x)
    assert not any(np.array_equal(a, b) for a, b in zip(statistics(), before, strict=True))


def test_penalty_finds_the_scales_of_an_nnx_model() -> None:
    block = nnx_model.Block(8, 6, nnx.Rngs(0))
    params = nnx.state(block, nnx.Param)
    # |γ| = |λ| = 1 at the start: 8 channels and 36 pixels.
    assert nam_jax.sparsity_penalty(params, 0.5) == jnp.float32(0.5 * (8 + 36))


@pytest.mark.long
def test_pretrained_network_keeps_its_error() -> None:
    data = Path(os.environ.get("NAM_JAX_TEST_DATA", ""))
    weights = data / "weights/mobilenet_v2-b0353104.pth"
    if not weights.exists():
        pytest.skip("NAM_JAX_TEST_DATA has no weights/mobilenet_v2-b0353104.pth")
    images, classes = data / "imagenet_samples", data / "imagenet_classes.txt"
    plain, once, twice = pretrained_model.main(str(weights), str(images), str(classes)).values()
    assert plain == 16.5
    assert once > 95
    assert abs(twice - plain) <= 1
