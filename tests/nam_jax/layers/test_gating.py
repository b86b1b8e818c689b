"""NAM in the form that GPUs get: the numbers of the plain one, whatever is made of it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nam_jax.layers import gating
from tests.helpers.arrays import assert_close
from tests.helpers.networks import (
    MODULES,
    End,
    image,
    random_variables,
    sharded_train_step,
    train_step,
    vectors,
)
from tests.helpers.values import with_slow

NAMES = ["nam_channel", "nam_tied", "nam_spatial", "nam"]
# As many pixels as channels: neither is taken for the other.
SHAPE = (4, 2, 3, 6)
each_name = with_slow("name", NAMES, ("nam_tied", "nam_channel", "nam_spatial"))


@pytest.fixture
def in_both_forms(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Calls a function with the plain form and with that of GPUs."""

    def both(function: Callable[[], Any]) -> tuple[Any, Any]:
        plain = jax.device_get(function())
        with monkeypatch.context() as patch:
            patch.setattr(gating, "_by_platform", lambda plain, joint, *of: joint(*of))
            jax.clear_caches()
            joint = jax.device_get(function())
        jax.clear_caches()
        return joint, plain

    return both


def loss_of(name: str, x: np.ndarray, *, train: bool) -> tuple[Callable[..., jax.Array], Any]:
    """A loss of the parameters and of x, and the parameters."""
    variables = random_variables(End(name), x)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        y, _ = End(name).apply({**variables, "params": params}, x, not train, mutable="batch_stats")
        return jnp.sin(y).sum()

    return loss, variables["params"]


@each_name
def test_training(x64, in_both_forms, name):
    x, cotangent = (image(SHAPE, seed, np.float64) for seed in (0, 1))
    variables = random_variables(End(name), x)
    assert_close(*in_both_forms(lambda: train_step(End(name), variables, x, cotangent)))


@with_slow("name", ["nam_channel", "nam_spatial", "nam"], ("nam_spatial", "nam_channel"))
def test_numbers_of_the_reference(x64, in_both_forms, name):
    module = MODULES[name]()
    golden = vectors(name, module)
    actual, _ = in_both_forms(
        lambda: train_step(module, golden.variables, golden.x, golden.cotangent)
    )
    assert_close(actual.y, golden.step.y)
    assert_close((actual.dx, actual.dparams), (golden.step.dx, golden.step.dparams))
    assert_close(actual.statistics, golden.step.statistics)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nam_tied", "nam"])
@pytest.mark.parametrize("train", [False, True])
def test_second_derivatives_and_those_forward(x64, in_both_forms, name, train):
    x, direction = (image(SHAPE, seed, np.float64) for seed in (0, 1))
    loss, params = loss_of(name, x, train=train)
    gradient = jax.grad(loss, (0, 1))

    def derivatives() -> Any:
        tangents = jax.tree.map(np.cos, params), direction
        forward = jax.jit(lambda *p: jax.jvp(gradient, p, tangents))(params, x)

        def square(*point: Any) -> jax.Array:
            return sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(gradient(*point)))

        return forward, jax.jit(jax.grad(square, (0, 1)))(params, x)

    assert_close(*in_both_forms(derivatives))


@with_slow("name", NAMES, ("nam", "nam_tied", "nam_spatial"))
def test_vmap_and_remat(x64, in_both_forms, name):
    x = image(SHAPE, dtype=np.float64)
    loss, params = loss_of(name, x, train=True)
    several = jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf, -leaf]), params)
    each = jax.vmap(jax.grad(jax.checkpoint(loss), (0, 1)), (0, None))
    assert_close(*in_both_forms(lambda: jax.jit(each)(several, x)))


@with_slow("name", NAMES, ("nam", "nam_tied", "nam_spatial"))
def test_four_devices(x64, in_both_forms, name):
    x, cotangent = (image((8, *SHAPE[1:]), seed, np.float64) for seed in (0, 1))
    variables, module = random_variables(End(name), x), End(name, axis_name="data")
    assert_close(*in_both_forms(lambda: sharded_train_step(module, variables, x, cotangent)))


@pytest.mark.parametrize("name", ["nam_channel", "nam"])
def test_only_gpus_get_it(name):
    x = image(SHAPE)
    loss, params = loss_of(name, x, train=True)
    traced = jax.jit(jax.grad(loss)).trace(params, x)
    for platform, copies in (("cpu", False), ("tpu", False), ("cuda", True)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("optimization_barrier" in text) is copies


def test_rows_that_are_not_known_are_not_divided():
    (rows,) = jax.export.symbolic_shape("n")
    gradient = jax.grad(lambda a, x: gating.gated_channels(x, a, a, a, a).sum())
    arguments = jax.ShapeDtypeStruct((6,), np.float32), jax.ShapeDtypeStruct((rows, 6), np.float32)
    jax.export.export(jax.jit(gradient), platforms=["cuda"])(*arguments)
