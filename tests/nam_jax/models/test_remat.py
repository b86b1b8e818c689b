"""Blocks that are computed anew in the backward pass: the same numbers from less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nam_jax.models import mobilenet_v2
from nam_jax.models.mobilenet_v2 import MobileNetV2, Stage
from nam_jax.models.resnet import BasicBlock, ResNet
from tests.helpers.arrays import assert_close

FAMILIES = {
    "resnet": lambda **fields: ResNet(BasicBlock, (2, 1), width=8, **fields),
    "mobilenet_v2": lambda **fields: MobileNetV2(width_multiplier=0.25, **fields),
}
IMAGES = np.random.default_rng(0).standard_normal((4, 8, 8, 3))


@pytest.fixture(autouse=True)
def short_mobilenet(monkeypatch):
    monkeypatch.setattr(mobilenet_v2, "STAGES", (Stage(6, 16, 2, 1), Stage(6, 32, 1, 2)))


def gradients(family, attention, remat):
    """A function of variables that gives gradients, logits and new statistics."""
    model = FAMILIES[family](num_classes=5, attention=attention, stem="cifar", remat=remat)

    def loss(params, variables):
        logits, update = model.apply(
            {**variables, "params": params}, IMAGES, train=True, mutable="batch_stats"
        )
        return jnp.square(logits).sum(), (logits, update)

    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES, train=False))
    return jax.grad(loss, has_aux=True), variables


def drawn(shapes):
    """Positive random values, which suit kernels, scales and variances alike."""
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.uniform(0.1, 1, leaf.shape) / 10, shapes)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("family", "attention"), [("resnet", "nam"), ("mobilenet_v2", "se")])
def test_same_variables_gradients_and_statistics(family, attention):
    kept, shapes = gradients(family, attention, remat=False)
    anew, same_shapes = gradients(family, attention, remat=True)
    assert shapes == same_shapes
    variables = drawn(shapes)
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    results = [
        jax.jit(function, compiler_options=options)(variables["params"], variables)
        for function in (kept, anew)
    ]
    assert_close(results[1], jax.tree.map(np.asarray, results[0]))


@pytest.mark.parametrize("family", FAMILIES)
def test_less_is_kept_for_the_backward_pass(family):
    def residual_bytes(remat):
        function, shapes = gradients(family, "nam", remat)

        def pullback(variables):
            return jax.vjp(lambda p: function.__wrapped__(p, variables)[0], variables["params"])[1]

        kept = jax.tree.leaves(jax.eval_shape(pullback, shapes))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in kept)

    assert residual_bytes(remat=True) < 0.6 * residual_bytes(remat=False)
