"""What strict settings of JAX, transformations of Flax and optax, and foreign models ask of us."""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import nam_jax
from nam_jax.attention import attention
from tests.helpers.arrays import assert_close
from tests.helpers.networks import MODULES, Block, image, random_variables, train_step
from tests.helpers.values import with_slow

HERE = Path(__file__).parent
STRICT = {
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_DEBUG_NANS": "1",
    "JAX_CHECK_TRACER_LEAKS": "1",
    "JAX_ENABLE_CHECKS": "1",
}

each_transformation = pytest.mark.parametrize(
    "tx",
    [
        optax.chain(nam_jax.add_sparsity_penalty(0.1), optax.sgd(0.1, momentum=0.9)),
        optax.chain(optax.sgd(0.1, momentum=0.9), nam_jax.proximal_sparsity(0.1, 0.1)),
    ],
    ids=["add", "proximal"],
)


@pytest.mark.long
@pytest.mark.parametrize(
    "suite", ["attention/test_every_module.py", "models/test_every_network.py"]
)
def test_every_module_and_network_under_all_strict_flags(suite):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / suite)]
    environment = {**os.environ, **STRICT}
    result = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True)
    assert result.returncode == 0, result.stdout.decode()[-3000:]


@with_slow("name", MODULES, MODULES.keys() - {"nam", "nam_tied", "se"})
def test_gradient_under_shard_map_as_it_is_by_default(name):
    """With parameters that are the same everywhere, their gradients are sums over devices."""
    x = image((4, 5, 5, 6))
    variables = random_variables(Block(name), x, np.float32)
    module = Block(name)

    def gradient(params, x):
        def loss(params, x):
            everything = {**variables, "params": params}
            y, _ = module.apply(everything, x, use_running_average=False, mutable="batch_stats")
            return jnp.sin(y).sum()

        return jax.grad(loss, argnums=(0, 1))(params, x)

    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    data, everywhere = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    spread = jax.shard_map(
        gradient, mesh=mesh, in_specs=(everywhere, data), out_specs=(everywhere, data)
    )
    params = variables.get("params", {})
    halves = jax.device_get([jax.jit(gradient)(params, part) for part in (x[:2], x[2:])])
    expected = (
        jax.tree.map(np.add, halves[0][0], halves[1][0]),
        np.concatenate([halves[0][1], halves[1][1]]),
    )
    assert_close(jax.device_get(jax.jit(spread)(params, x)), expected, 1e-4)


def test_nnx_is_there_when_it_is_asked_for():
    assert nam_jax.__getattr__("nnx") is sys.modules["nam_jax.nnx"] is nam_jax.nnx
    with pytest.raises(AttributeError, match="'nam_jax' has no attribute 'spam'"):
        nam_jax.spam  # noqa: B018


@with_slow("name", MODULES, MODULES.keys() - {"nam_channel"})
def test_strict_promotion_changes_not_a_bit(name):
    x, cotangent = image(), image(seed=1)
    variables = random_variables(Block(name), x, np.float32)
    # A step each, for compiled programs are kept for each setting.
    expected = train_step(Block(name), variables, x, cotangent)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        actual = train_step(Block(name), variables, x, cotangent)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


# optax.


PARAMS = {"nam_bn": {"scale": np.array([1.0, -2.0], np.float32)}, "k": np.ones(3, np.float32)}


@each_transformation
def test_the_parameters_of_an_optimiser_state_are_mapped(tx):
    state = optax.tree_map_params(tx, lambda leaf: leaf.astype(jnp.bfloat16), tx.init(PARAMS))
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(state)}
    assert dtypes == {jnp.dtype(jnp.bfloat16), jnp.dtype(np.int32)}  # the momentum, and the step


@pytest.mark.parametrize(
    ("make", "options"),
    [(nam_jax.add_sparsity_penalty, {}), (nam_jax.proximal_sparsity, {"learning_rate": 0.1})],
)
def test_injected_strengths_are_looked_at_as_far_as_they_are_known(make, options):
    plain = {"k": PARAMS["k"]}

    def init(strength):
        return optax.inject_hyperparams(make)(strength=strength, **options).init

    for params in (plain, PARAMS):
        init(0.0)(params)
        jax.jit(init(0.0))(params)
    with pytest.raises(ValueError, match="no parameter path ends in nam_bn/scale"):
        init(0.1)(plain)
    with pytest.raises(ValueError, match="has to be at least 0"):
        init(-0.1)(PARAMS)


@each_transformation
def test_parameters_without_a_gradient_stay(tx):
    expected, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    for name, nothing in (("nam_bn", {"scale": None}), ("k", None)):
        gradients = {**PARAMS, name: nothing}
        updates, _ = tx.update(gradients, tx.init(PARAMS), PARAMS)
        assert updates.pop(name) == nothing
        expected_rest = {other: leaf for other, leaf in expected.items() if other != name}
        jax.tree.map(np.testing.assert_array_equal, updates, expected_rest)


@pytest.mark.parametrize(
    "tx", [nam_jax.add_sparsity_penalty(0.1), nam_jax.proximal_sparsity(0.1, 0.1)]
)
@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_strict_promotion_changes_no_update(tx, dtypes):
    gradients, params = (
        {"nam_bn": {"scale": jnp.array([0.5, -0.25], dtype)}, "k": jnp.ones(3, jnp.float32)}
        for dtype in dtypes
    )
    state = tx.init(params)
    expected, _ = tx.update(gradients, state, params)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        actual, _ = tx.update(gradients, state, params)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


# Scales of other names.

FOREIGN = {
    "block1": {"bn3": {"scale": jnp.array([1.0, -3.0]), "bias": jnp.ones(2)}},
    "block2": {"bn3": {"scale": jnp.array([2.0, 2.0])}, "nam_bn": {"scale": jnp.array([5.0])}},
}
each_selector = pytest.mark.parametrize(
    "scales", [r".*bn3/scale", lambda path: path.split("/")[1:] == ["bn3", "scale"]]
)


@each_selector
def test_selected_scales_are_penalised_and_weigh(scales):
    assert nam_jax.sparsity_penalty(FOREIGN, 0.5, scales=scales) == 0.5 * 8
    found = nam_jax.saliency(FOREIGN, scales=scales)
    assert {path: weights.tolist() for path, weights in found.items()} == {
        "block1/bn3": [0.25, 0.75],
        "block2/bn3": [0.5, 0.5],
    }
    zeros = jax.tree.map(jnp.zeros_like, FOREIGN)
    add = nam_jax.add_sparsity_penalty(0.5, scales=scales)
    updates, _ = add.update(zeros, add.init(FOREIGN), FOREIGN)
    gradient = jax.grad(functools.partial(nam_jax.sparsity_penalty, scales=scales))(FOREIGN, 0.5)
    jax.tree.map(np.testing.assert_array_equal, updates, gradient)
    proximal = nam_jax.proximal_sparsity(0.5, 1.0, scales=scales)
    updates, _ = proximal.update(zeros, proximal.init(FOREIGN), FOREIGN)
    jax.tree.map(np.testing.assert_array_equal, updates, jax.tree.map(jnp.negative, gradient))


def test_a_selector_of_nothing_is_refused():
    tx = nam_jax.add_sparsity_penalty(0.1, scales="bn3/scale")  # not in full
    with pytest.raises(ValueError, match="'bn3/scale' selects no parameter"):
        tx.init(FOREIGN)


# Stacked layers, and modules that are called twice.


class Layer(nn.Module):
    name_: str

    @nn.compact
    def __call__(self, x, _):
        x = nn.Conv(x.shape[-1], (1, 1))(x)
        return attention(self.name_)(use_running_average=True, name="attention")(x), None


class Stack(nn.Module):
    name_: str
    axes: dict[str, int]

    @nn.compact
    def __call__(self, x, _=None):
        scan = nn.scan(Layer, variable_axes=self.axes, split_rngs={"params": True}, length=3)
        return scan(self.name_, name="layers")(x, None)[0]


@with_slow("name", ["nam_channel", "nam_spatial", "nam"], ("nam_spatial", "nam"))
def test_stacked_layers_are_refused_or_looked_at_one_by_one(name):
    x, axes = image((2, 4, 5, 6)), {"params": 0, "batch_stats": 0}
    variables = random_variables(Stack(name, axes), x, np.float32)
    params = variables["params"]["layers"]
    with pytest.raises(ValueError, match=r"layers/attention.*call jax\.vmap\(nam_jax\.saliency\)"):
        nam_jax.saliency(variables["params"])
    for layer in range(3):
        alone = nam_jax.saliency(jax.tree.map(lambda leaf, n=layer: leaf[n], params))
        together = jax.vmap(nam_jax.saliency)(params)
        assert_close({path: w[layer] for path, w in together.items()}, jax.device_get(alone), 1e-6)
    with pytest.raises(ValueError, match='add "nam_gates": 0 to its variable_axes'):
        nam_jax.gates(Stack(name, axes), variables, x)
    found = nam_jax.gates(Stack(name, {**axes, "nam_gates": 0}), variables, x)
    for layer in range(3):
        of_layer = jax.tree.map(lambda leaf, n=layer: leaf[n], variables)
        of_layer = {collection: tree["layers"] for collection, tree in of_layer.items()}
        alone = nam_jax.gates(Layer(name), of_layer, x, _=None)
        stacked = {path.removeprefix("layers/"): m[layer] for path, m in found.items()}
        assert_close(stacked, jax.device_get(alone), 1e-5)
        x, _ = Layer(name).apply(of_layer, x, None)


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        module = nam_jax.ChannelNAM(use_running_average=True, name="attention")
        return module(module(x))


def test_every_call_has_its_gates():
    x = image((2, 4, 5, 6))
    variables = random_variables(Twice(), x, np.float32)
    found = nam_jax.gates(Twice(), variables, x)
    assert list(found) == ["attention/0", "attention/1"]
    y = x * found["attention/0"] * found["attention/1"]
    assert_close(y, np.asarray(Twice().apply(variables, x)), 1e-6)


# Partitioned parameters.


class Tied(nn.Module):
    norm: type[nn.Module]
    partitioned: bool

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.uniform(1.0)
        init = nn.with_partitioning(init, (None,)) if self.partitioned else init
        bn = self.norm(use_running_average=False, scale_init=init, name="nam_bn")
        return nam_jax.ChannelNAM()(bn(x), scale=bn.variables["params"]["scale"])


@pytest.mark.parametrize("norm", [nn.BatchNorm, nam_jax.BatchNorm])
def test_partitioned_scales_are_the_plain_ones(norm):
    x = image((2, 4, 5, 6))

    def everything(module):
        variables = module.init(jax.random.key(0), x)
        y, _ = module.apply(variables, x, mutable="batch_stats")
        params = variables["params"]
        return y, nam_jax.sparsity_penalty(params, 0.5), nam_jax.saliency(params)

    jax.tree.map(
        np.testing.assert_array_equal, *(everything(Tied(norm, boxed)) for boxed in (False, True))
    )


def test_partitioned_nam_is_resized():
    module = nam_jax.NAM(use_running_average=True)
    plain = random_variables(nam_jax.NAM(), image((2, 3, 4, 6)), np.float32)
    boxed = jax.tree.map(lambda leaf: nn.Partitioned(leaf, (None,) * leaf.ndim), plain)
    larger = image((2, 6, 4, 6))
    expected, actual = (
        nam_jax.resize_spatial(variables, module, larger.shape) for variables in (plain, boxed)
    )
    assert isinstance(actual["params"]["spatial"]["nam_bn"]["scale"], nn.Partitioned)
    np.testing.assert_array_equal(module.apply(actual, larger), module.apply(expected, larger))


def test_fields_of_flax_that_batch_norm_lacks():
    missing = {"use_bias", "use_scale", "use_fast_variance", "axis_index_groups"}
    missing |= {"force_float32_reductions"}
    fields = [{f.name for f in dataclasses.fields(m)} for m in (nn.BatchNorm, nam_jax.BatchNorm)]
    assert fields[0] - fields[1] == missing
    assert fields[1] <= fields[0]
    assert all(f"`{name}`" in nam_jax.BatchNorm.__doc__ for name in missing)


# Maps whose size is not known yet.


@with_slow("name", [n for n in MODULES if n not in ("nam", "nam_spatial")], ("bam", "tam", "cbam"))
def test_maps_of_any_size_are_exported(name):
    block, x = Block(name), image()
    variables = random_variables(block, x, np.float32)
    evaluate = jax.jit(lambda x: block.apply(variables, x, True))
    shape = jax.export.symbolic_shape("n, h, w, 32")
    exported = jax.export.export(evaluate)(jax.ShapeDtypeStruct(shape, np.float32))
    for size in (x.shape, (3, 2, 7, 32)):
        assert_close(exported.call(image(size)), evaluate(image(size)), 1e-5)
