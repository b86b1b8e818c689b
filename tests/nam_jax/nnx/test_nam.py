"""Native NNX modules, and linen ones as NNX modules: the numbers of linen, the ways of NNX."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import nam_jax
import nam_jax.nnx
from nam_jax.attention import TiedNAM, attention
from nam_jax.nnx import FromLinen
from tests.helpers.arrays import assert_close
from tests.helpers.networks import image, random_variables
from tests.helpers.values import with_slow

SHAPE = (4, 3, 5, 6)
OPTIONS = {"momentum": 0.8, "epsilon": 1e-3}
NATIVE = {
    "nam_channel": lambda **options: nam_jax.nnx.ChannelNAM(6, **options),
    "nam_spatial": lambda **options: nam_jax.nnx.SpatialNAM((3, 5), **options),
    "nam": lambda **options: nam_jax.nnx.NAM(6, (3, 5), **options),
}
each_native = with_slow("name", NATIVE, ("nam_channel", "nam_spatial"))


def loaded(module, variables):
    for collection in variables.values():
        nnx.update(module, collection)
    return module


def statistics(module):
    return jax.device_get(nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)))


def step(module, x, cotangent):
    """Output, gradients and new statistics of a training call."""

    def loss(module, x):
        y = module(x)
        return (y * cotangent).sum(), y

    gradients, y = nnx.jit(nnx.grad(loss, argnums=(0, 1), has_aux=True))(module, x)
    return y, nnx.to_pure_dict(gradients[0]), gradients[1], statistics(module)


def linen_step(module, variables, x, cotangent):
    def loss(params, x):
        y, update = module.apply({**variables, "params": params}, x, False, mutable="batch_stats")
        return (y * cotangent).sum(), (y, update["batch_stats"])

    gradients, (y, update) = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], x)
    return jax.device_get((y, *gradients, update))


@each_native
@pytest.mark.parametrize("weight_gradient", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_step_is_that_of_linen(x64, name, weight_gradient):
    x, cotangent = (image(SHAPE, seed, np.float64) for seed in (0, 1))
    # Each value once.
    normalization = "mean" if weight_gradient else "share"
    options = {**OPTIONS, "normalization": normalization, "weight_gradient": weight_gradient}
    linen = attention(name)(**options)
    variables = random_variables(linen, x)
    module = loaded(NATIVE[name](**options, param_dtype=jnp.float64), variables)
    expected = linen_step(linen, variables, x, cotangent)
    assert_close(step(module, x, cotangent), expected, 1e-12)
    module.eval()
    after = {**variables, "batch_stats": expected[-1]}
    assert_close(module(x), np.asarray(linen.apply(after, x, True)), 1e-12)
    jax.tree.map(np.testing.assert_array_equal, statistics(module), expected[-1])


DEAR = ["cbam", "bam", "tam", "nam", "half", "eca", "simam", "coordatt"]


@with_slow("name", ["se", *DEAR], DEAR)
def test_a_step_of_a_linen_module_is_its_own(name):
    x, cotangent = (image((2, 4, 5, 32), seed) for seed in (0, 1))
    linen = attention(name)()
    variables = random_variables(linen, x, np.float32)
    module = loaded(FromLinen(linen, x, rngs=nnx.Rngs(0)), variables)
    for collection in ("params", "batch_stats"):
        variables.setdefault(collection, {})

    def apply(params, x):
        y, update = linen.apply({**variables, "params": params}, x, False, mutable="batch_stats")
        return (y * cotangent).sum(), (y, update.get("batch_stats", {}))

    gradients, (y, update) = jax.jit(jax.grad(apply, (0, 1), has_aux=True))(variables["params"], x)
    found = step(module, x, cotangent)
    for a, b in zip(found, (y, *gradients, update), strict=True):
        if jax.tree.leaves(b):
            assert_close(a, jax.device_get(b), 1e-5)
    # No more state than linen has: Flax's bridge counts its calls in random state as well.
    assert len(jax.tree.leaves(nnx.state(module))) == len(jax.tree.leaves(variables))


def test_from_linen_follows_the_mode():
    x = image((2, 4, 5, 32))
    module = FromLinen(nam_jax.NAM(), x, rngs=nnx.Rngs(0))
    before = statistics(module)
    module.eval()
    module(x)
    nnx.view(module, use_running_average=True)(x)
    jax.tree.map(np.testing.assert_array_equal, statistics(module), before)
    module.train()
    module(x)
    assert not np.allclose(jax.tree.leaves(statistics(module))[0], jax.tree.leaves(before)[0])


def test_initial_parameters_are_those_of_linen():
    x = image((2, 4, 5, 32))
    module = FromLinen(nam_jax.CBAM(), x, rngs=nnx.Rngs(params=jax.random.key(3)))
    key = nnx.Rngs(params=jax.random.key(3)).params()
    expected = jax.jit(lambda: nam_jax.CBAM().init(key, x, True))()["params"]
    actual = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"normalization": "mean"},
        {"weight_gradient": True},
        {"gate_scale": 2.0},
        {"dtype": "float32"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_tied_form_is_that_of_linen(x64, options):
    x, cotangent = (image(SHAPE, seed, np.float64) for seed in (0, 1))
    module, linen = nam_jax.nnx.TiedNAM(**options), TiedNAM(**options)
    assert not jax.tree.leaves(nnx.state(module))

    def result(call):
        def loss(x, scale):
            y = call(x, scale)
            return (y * cotangent).sum(), y

        gradients, y = jax.grad(loss, (0, 1), has_aux=True)(x, np.arange(-2.0, 4.0))
        return jax.device_get((y, gradients))

    actual = result(lambda x, scale: module(x, scale=scale))
    expected = result(lambda x, scale: linen.apply({}, x, True, scale=scale))
    # Through the weights alone does the scale have a gradient.
    assert expected[1][1].any() == options.get("weight_gradient", False)
    assert actual[0].dtype == expected[0].dtype == options.get("dtype", np.float64)
    assert_close(actual, expected)


# The ways of NNX.


def test_mode_is_followed():
    module, x = NATIVE["nam"](), image(SHAPE)
    module.eval()
    before = statistics(module)
    assert np.array_equal(module(x), nnx.view(module, use_running_average=True)(x))
    jax.tree.map(np.testing.assert_array_equal, statistics(module), before)
    trained = module(x, use_running_average=False)
    after = statistics(module)
    assert not np.allclose(after["channel"]["nam_bn"]["mean"], before["channel"]["nam_bn"]["mean"])
    module.train()
    assert np.array_equal(module(x), trained)


def test_split_and_merge():
    module, x = NATIVE["nam"](), image(SHAPE)
    graph, params, rest = nnx.split(module, nnx.Param, nnx.BatchStat)
    assert {"/".join(path) for path, _ in nnx.to_flat_state(params)} == {
        f"{part}/nam_bn/{name}" for part in ("channel", "spatial") for name in ("bias", "scale")
    }
    merged = nnx.merge(graph, params, rest)
    np.testing.assert_array_equal(merged(x), module(x))
    assert nnx.graphdef(NATIVE["nam"]()) == nnx.graphdef(NATIVE["nam"]())


@pytest.mark.parametrize("proximal", [False, True])
def test_optimizer_with_the_penalty(proximal):
    module, x = NATIVE["nam"](), image(SHAPE)
    tx = [optax.sgd(0.1)]
    if proximal:
        tx.append(nam_jax.proximal_sparsity(0.5, 0.1))
    else:
        tx.insert(0, nam_jax.add_sparsity_penalty(0.5))
    optimizer = nnx.Optimizer(module, optax.chain(*tx), wrt=nnx.Param)

    @nnx.jit
    def update(module, optimizer):
        optimizer.update(module, nnx.grad(lambda module: 0.0 * module(x).sum())(module))

    update(module, optimizer)
    params = nnx.state(module, nnx.Param)
    for path, leaf in nnx.to_flat_state(params):
        expected = np.float32(0.95) if path[-1] == "scale" else 0  # 1 − 0.5 · 0.1
        np.testing.assert_allclose(leaf[...], np.full(leaf.shape, expected), rtol=1e-6)
    np.testing.assert_allclose(nam_jax.sparsity_penalty(params, 1.0), 0.95 * (6 + 15), rtol=1e-6)
    assert list(nam_jax.saliency(params)) == ["channel", "spatial"]


@pytest.mark.slow
def test_orbax_brings_everything_back(tmp_path):
    module, x = NATIVE["nam"](), image(SHAPE)
    module(x)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state(module))
    with ocp.StandardCheckpointer() as checkpointer:
        other = NATIVE["nam"]()
        blank = jax.tree.map(jnp.zeros_like, nnx.state(other))
        nnx.update(other, checkpointer.restore(tmp_path / "state", blank))
    jax.tree.map(np.testing.assert_array_equal, nnx.state(other), nnx.state(module))


def test_bfloat16():
    x = jnp.asarray(image(SHAPE), jnp.bfloat16)
    assert NATIVE["nam"](dtype=jnp.bfloat16)(x).dtype == jnp.bfloat16
    assert NATIVE["nam"]()(x).dtype == jnp.float32
    assert NATIVE["nam"](param_dtype=jnp.bfloat16)(x).dtype == jnp.bfloat16


def test_gate_scale():
    module, x = NATIVE["nam"](gate_scale=2.0), image(SHAPE)
    np.testing.assert_allclose(module(x), 4 * NATIVE["nam"]()(x), rtol=1e-6)
    for wrong in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="gate_scale has to be above 0 and finite"):
            NATIVE["nam"](gate_scale=wrong)(x)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="ChannelNAM is for 6 channels; got 7"):
        NATIVE["nam_channel"]()(jnp.ones((2, 3, 5, 7)))
    for shape in ((2, 5, 3, 6), (2, 3, 6)):
        with pytest.raises(ValueError, match=r"is for \(N, 3, 5, C\) arrays; got the shape"):
            NATIVE["nam_spatial"]()(jnp.ones(shape))
    for wrong in (6, (3, 5, 6)):
        with pytest.raises(ValueError, match=r"map_size has to be \(height, width\)"):
            nam_jax.nnx.SpatialNAM(wrong)
    with pytest.raises(ValueError, match=r"of the shape \(6,\); got \(1,\)"):
        nam_jax.nnx.TiedNAM()(jnp.ones((2, 3, 5, 6)), scale=jnp.ones(1))
    with pytest.raises(ValueError, match="normalization has to be one of share, mean"):
        NATIVE["nam"](normalization="sum")
    with pytest.raises(ValueError, match=r"FromLinen takes an attention module .* got 'cbam'"):
        FromLinen("cbam", jnp.ones((2, 3, 5, 6)), rngs=nnx.Rngs(0))


def test_a_refused_call_changes_nothing():
    module = NATIVE["nam"]()
    before = statistics(module)
    with pytest.raises(ValueError, match="got the shape"):
        module(jnp.ones((2, 5, 3, 6)))
    jax.tree.map(np.testing.assert_array_equal, statistics(module), before)


@pytest.mark.parametrize(
    "module",
    [NATIVE["nam"](), FromLinen(nam_jax.BAM(), jnp.ones((2, 3, 5, 32)), rngs=nnx.Rngs(0))],
    ids=["native", "linen"],
)
def test_the_mode_is_listed_with_what_it_is(module):
    assert "Whether to normalise with the running statistics" in nnx.view_info(module)


@pytest.mark.slow
def test_four_devices_are_one_batch(x64):
    x = image((8, 3, 5, 6), dtype=np.float64)
    one, four = (NATIVE["nam"](axis_name=axis) for axis in (None, "data"))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec, none = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    graph, state = nnx.split(four)

    def call(state, x):
        module = nnx.merge(graph, state)
        return module(x), nnx.state(module)

    run = jax.shard_map(
        call, mesh=mesh, in_specs=(none, spec), out_specs=(spec, none), check_vma=False
    )
    y, after = jax.jit(run)(state, x)
    assert_close(y, np.asarray(one(x)))
    # The running statistics stay float32.
    assert_close(nnx.to_pure_dict(after), jax.device_get(nnx.to_pure_dict(nnx.state(one))), 1e-6)
