"""What NAM has learned and what it does: saliency from parameters, gates from images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import nam_jax
from nam_jax import NAM, ChannelNAM, SpatialNAM
from nam_jax.attention import TiedNAM
from nam_jax.inspection import (
    SMALL_WEIGHT,
    count_small_weights,
    gate_moments,
    small_weight_percentage,
    statistics_of,
)
from nam_jax.models import mobilenet_v2
from nam_jax.models.mobilenet_v2 import MobileNetV2, Stage
from nam_jax.models.resnet import BasicBlock, ResNet
from tests.helpers.arrays import assert_close, formula
from tests.helpers.networks import image, random_variables

SHAPE = (4, 3, 5, 6)
IMAGES = np.random.default_rng(2).standard_normal((2, 8, 8, 3))

each_nam = pytest.mark.parametrize("attention", ["nam", "nam_channel", "nam_spatial", "nam_tied"])
each_single = pytest.mark.parametrize("module", [NAM, ChannelNAM, SpatialNAM])
each_scale = pytest.mark.parametrize("gate_scale", [1, 3])


def scales(*values):
    return {"nam_bn": {"scale": jnp.array(values), "bias": jnp.ones(len(values))}}


def resnet(attention, **fields):
    return ResNet(
        BasicBlock, (1, 2), num_classes=5, attention=attention, stem="cifar", width=8, **fields
    )


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_saliency_by_hand():
    params = {
        "layer1_0": {"attention": {"channel": scales(1.0, -3.0), "spatial": scales(0.0, 0.0)}},
        "layer2_0": {"attention": scales(2.0, 2.0, 0.0, 4.0), "bn1": {"scale": jnp.ones(3)}},
        "layer3_0": {"bn1": {"scale": jnp.ones(2)}, **scales(5.0)},
        "nam_bn": {"scale": jnp.array([[1.0, 2.0], [-1.0, 0.0]])},
    }
    found = nam_jax.saliency(params)
    assert {path: weights.tolist() for path, weights in found.items()} == {
        "layer1_0/attention/channel": [0.25, 0.75],
        "layer1_0/attention/spatial": [0.0, 0.0],
        "layer2_0/attention": [0.25, 0.25, 0.0, 0.5],
        # The tied form owns nothing: its scale is that of the block.
        "layer3_0": [1.0],
        "": [[0.25, 0.5], [0.25, 0.0]],
    }
    assert list(found) == sorted(found, key=lambda path: path or "nam_bn")


class Unnamed(nn.Module):
    """Spatial NAM under Flax's own name, after what has as many rows as its map."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), use_bias=False)(x)
        return SpatialNAM(use_running_average=True)(x)


def test_saliency_of_a_map_is_not_that_of_stacked_layers():
    params = Unnamed().init(jax.random.key(0), jnp.ones((1, 3, 3, 2)))["params"]
    np.testing.assert_allclose(nam_jax.saliency(params)["SpatialNAM_0"], 1 / 9, rtol=1e-6)


@pytest.mark.parametrize("scales", ["(", None])
def test_saliency_of_scales_that_are_no_expression(scales):
    with pytest.raises(ValueError, match="is no regular expression and no function of a path"):
        nam_jax.saliency({}, scales=scales)


def test_saliency_without_nam():
    assert nam_jax.saliency({"bn1": {"scale": jnp.ones(3)}}) == {}
    assert nam_jax.saliency({}) == {}


def test_saliency_is_computed_in_float32():
    params = {"nam_bn": {"scale": jnp.ones(3, jnp.bfloat16)}}
    assert nam_jax.saliency(params)[""].dtype == jnp.float32


def test_saliency_knows_the_layers_that_have_gates():
    model = resnet("nam")
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES, train=False))
    weights = jax.eval_shape(nam_jax.saliency, shapes["params"])
    found = jax.eval_shape(lambda v: nam_jax.gates(model, v, IMAGES, train=False), shapes)
    assert weights.keys() == found.keys()
    for path, gate in found.items():
        part = gate.shape[1:3] if path.endswith("spatial") else gate.shape[3:]
        assert weights[path].shape == part


@each_scale
@each_single
def test_gates_times_the_input_are_the_output_of_a_module(x64, module, gate_scale):
    x = image(SHAPE, dtype=np.float64)
    nam = module(use_running_average=True, gate_scale=gate_scale)
    variables = random_variables(module(), x)
    found = nam_jax.gates(nam, variables, x)
    assert list(found) == (["channel", "spatial"] if module is NAM else [""])
    product = x
    for gate in found.values():
        assert gate.dtype == np.float64
        product = product * gate * gate_scale
    assert_close(product, np.asarray(nam.apply(variables, x)))


def test_gate_of_the_tied_form(x64):
    x, scale = image(SHAPE, dtype=np.float64), np.arange(-2.0, 4.0)
    nam = TiedNAM(use_running_average=True)
    [gate] = nam_jax.gates(nam, {}, x, scale=scale).values()
    assert_close(gate, sigmoid(np.abs(scale) / np.abs(scale).sum() * x))
    assert_close(x * gate, np.asarray(nam.apply({}, x, scale=scale)))


@pytest.mark.parametrize("mutable", ["batch_stats", ["batch_stats"]])
@each_single
def test_gates_of_a_training_call_are_those_of_its_batch(x64, module, mutable):
    x = image(SHAPE, dtype=np.float64)
    variables = random_variables(module(), x)
    found = nam_jax.gates(module(), variables, x, use_running_average=False, mutable=mutable)
    product = x
    for gate in found.values():
        product = product * gate
    assert_close(product, formula(variables["params"], x))


@pytest.mark.slow
def test_gates_of_rematerialised_blocks():
    variables = random_variables(resnet("nam"), IMAGES, np.float32)
    plain, remat = (
        nam_jax.gates(resnet("nam", **fields), variables, IMAGES, train=False)
        for fields in ({}, {"remat": True})
    )
    assert len(plain) == 6
    jax.tree.map(np.testing.assert_array_equal, remat, plain)


def test_gates_are_at_least_float32():
    x = jnp.asarray(image(SHAPE), jnp.bfloat16)
    variables = random_variables(NAM(), x, np.float32)
    nam = NAM(use_running_average=True, dtype=jnp.bfloat16)
    found = nam_jax.gates(nam, variables, x)
    assert {gate.dtype for gate in found.values()} == {jnp.dtype(jnp.float32)}


def inputs_and_outputs(model, variables):
    """What every attention module of a network is given and what it makes of it."""
    seen = {}

    def record(method, args, kwargs, context):
        output = method(*args, **kwargs)
        if context.module.name == "attention" and context.method_name == "__call__":
            seen["/".join(context.module.path)] = args[0], output
        return output

    with nn.intercept_methods(record):
        logits = model.apply(variables, IMAGES, train=False)
    return seen, logits


@each_nam
def test_gates_of_a_network(x64, attention):
    model = resnet(attention)
    variables = random_variables(model, IMAGES)

    @jax.jit
    def everything(variables):
        found = nam_jax.gates(model, variables, IMAGES, train=False)
        return found, *inputs_and_outputs(model, variables)

    found, seen, _ = everything(variables)
    assert list(seen) == ["layer1_0/attention", "layer2_0/attention", "layer2_1/attention"]
    for path, (x, y) in seen.items():
        own = {name: gate for name, gate in found.items() if name.startswith(path)}
        suffixes = ["/channel", "/spatial"] if attention == "nam" else [""]
        assert list(own) == [path + suffix for suffix in suffixes]
        product = x
        for gate in own.values():
            product = product * gate
        assert_close(product, np.asarray(y))
    assert len(found) == len(seen) * (2 if attention == "nam" else 1)


@pytest.mark.slow
def test_gates_inside_and_outside_of_jit(x64):
    model = resnet("nam")
    variables = random_variables(model, IMAGES)
    eager = nam_jax.gates(model, variables, IMAGES, train=False)
    layers = ["layer1_0", "layer2_0", "layer2_1"]
    assert list(eager) == [f"{n}/attention/{k}" for n in layers for k in ("channel", "spatial")]
    compiled = jax.jit(lambda v, x: nam_jax.gates(model, v, x, train=False))(variables, IMAGES)
    assert_close(compiled, jax.tree.map(np.asarray, eager))


def test_a_look_changes_nothing():
    model = resnet("nam")
    variables = random_variables(model, IMAGES, np.float32)

    def logits():
        return jax.jit(lambda v: model.apply(v, IMAGES, train=False))(variables)

    before = logits()
    jax.eval_shape(lambda v: nam_jax.gates(model, v, IMAGES, train=False), variables)
    np.testing.assert_array_equal(logits(), before)


@pytest.mark.parametrize("attention", ["none", "se"])
def test_no_gates_without_nam(attention):
    model = resnet(attention)

    def found():
        variables = model.init(jax.random.key(0), IMAGES, train=False)
        return nam_jax.gates(model, variables, IMAGES, train=False)

    assert jax.eval_shape(found) == {}


def test_gates_of_mobilenet_are_in_the_order_of_the_call(monkeypatch):
    monkeypatch.setattr(mobilenet_v2, "STAGES", (Stage(1, 8, 11, 1),))
    model = MobileNetV2(num_classes=5, attention="nam_channel", stem="cifar", width_multiplier=0.25)
    paths = []

    def trace():
        variables = model.init(jax.random.key(0), IMAGES, train=False)
        paths.extend(nam_jax.gates(model, variables, IMAGES, train=False))

    jax.eval_shape(trace)
    assert paths == [f"block{number}/attention" for number in range(1, 12)]


# Small weights.


def attention_of(scale):
    return {"attention": {"nam_bn": {"scale": jnp.asarray(scale, jnp.float32)}}}


def test_threshold_is_a_part_of_the_mean():
    weights = (
        np.array([[0.9 * SMALL_WEIGHT, 1.1 * SMALL_WEIGHT], [1.0, 3.0 - 2 * SMALL_WEIGHT]]) / 4
    )
    assert count_small_weights(weights) == 1
    assert count_small_weights(np.full(10, 0.1)) == 0


def test_all_weights_of_a_dead_layer_are_small():
    assert count_small_weights(np.zeros((2, 3))) == 6


def test_percentage_is_of_all_weights_not_the_mean_of_the_layers():
    params = {
        "a": attention_of([1.0, -1.0]),
        "b": attention_of([[0.0, 1.0, -1.0], [1e-3, 1.0, 2.0]]),
        "bn": {"scale": jnp.zeros(5)},
    }
    assert small_weight_percentage(params) == pytest.approx(100 * 2 / 8)


def test_network_without_nam_has_none():
    assert small_weight_percentage({"bn": {"scale": jnp.zeros(5)}}) is None


# Gates and the constant 0.5.


class Masked(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        return ChannelNAM(use_running_average=True)(x * mask[:, None, None, None])


def test_statistics_leave_arguments_to_the_network():
    x, mask = jnp.asarray(image(SHAPE)), jnp.array([0.0, 1.0, 1.0, 1.0])
    variables = Masked().init(jax.random.key(0), x, mask)
    (found,) = nam_jax.gate_statistics(Masked(), variables, x, mask=mask).values()
    (expected,) = nam_jax.gates(Masked(), variables, x, mask=mask).values()
    np.testing.assert_allclose(found.low, expected.min(), rtol=1e-6)
    assert (expected[0] == 0.5).all()


@pytest.mark.parametrize("gamma", [1.0, 3.0])
def test_gates_of_equal_scales_spread_by_a_quarter_of_their_share(gamma):
    x = jax.random.normal(jax.random.key(0), (8, 32, 32, 64))
    module = nam_jax.ChannelNAM(use_running_average=True)
    variables = module.init(jax.random.key(0), x)
    variables["params"]["nam_bn"]["scale"] *= gamma
    (found,) = nam_jax.gate_statistics(module, variables, x).values()
    np.testing.assert_allclose(found.within, gamma / (4 * 64), rtol=5e-3)
    assert found.between < found.within / 50
    np.testing.assert_allclose(found.mean, 0.5, atol=1e-4)
    assert 0.4 < found.low < 0.5 < found.high < 0.6


@pytest.mark.parametrize("attention", ["nam_channel", "nam_spatial", "nam"])
def test_statistics_are_those_of_numpy(x64, attention):
    module, mode = nam_jax.attention(attention)(), {"use_running_average": True}
    x = jax.random.normal(jax.random.key(0), (3, 4, 5, 6), float)
    variables = random_variables(module, x, np.float64)
    every = nam_jax.gates(module, variables, x, **mode)
    found = nam_jax.gate_statistics(module, variables, x, **mode)
    assert found.keys() == every.keys()
    for path, values in every.items():
        is_spatial = path == "spatial" or attention == "nam_spatial"
        units = np.moveaxis(values, 3, 1) if is_spatial else values
        units = np.reshape(units, (-1, 20) if is_spatial else (-1, 6))
        expected = nam_jax.inspection.GateStatistics(
            mean=units.mean(),
            between=units.mean(0).std(),
            within=np.sqrt(units.var(0).mean()),
            low=units.min(),
            high=units.max(),
            near_half=(np.abs(units - 0.5) <= 0.01).mean(),
        )
        np.testing.assert_allclose(found[path], expected, rtol=1e-9)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
@pytest.mark.parametrize("module", [ChannelNAM, SpatialNAM])
def test_statistics_of_batches_are_those_of_the_images_that_count(x64, module, order):
    x = jax.random.normal(jax.random.key(0), (9, 3, 5, 6), float)
    nam, mode = module(), {"use_running_average": True}
    variables = random_variables(nam, x, np.float64)
    mask = np.array([[True, False, True], [True] * 3, [False] * 3])
    batches = [
        jax.device_get(gate_moments(nam, variables, x[3 * n : 3 * n + 3], mask=mask[n], **mode))
        for n in order
    ]
    expected = nam_jax.gate_statistics(nam, variables, x[mask.ravel()], **mode)
    np.testing.assert_allclose(statistics_of(batches)[""], expected[""], rtol=1e-9)


def test_half_gates_are_those_of_scales_of_zero(x64):
    model = resnet("nam")
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3), float)
    variables = random_variables(model, x, np.float64)

    def logits(variables):
        return jax.jit(lambda v: model.apply(v, x, train=False))(variables)

    zero = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if "nam_bn" in str(path) else leaf, variables["params"]
    )
    expected = logits({**variables, "params": zero})
    plain = logits(variables)
    with nam_jax.half_gates():
        actual = logits(variables)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)
    assert not np.allclose(plain, expected, rtol=1e-3)
    np.testing.assert_array_equal(logits(variables), plain)


@each_single
def test_a_look_at_half_gates_shows_halves(module):
    x, mode = image(SHAPE), {"use_running_average": True}
    variables = random_variables(module(), x, np.float32)
    with nam_jax.half_gates():
        found = nam_jax.gates(module(), variables, x, **mode)
        statistics = nam_jax.gate_statistics(module(), variables, x, **mode)
    assert found.keys() == statistics.keys() == nam_jax.gates(module(), variables, x, **mode).keys()
    for path, gates in found.items():
        np.testing.assert_array_equal(gates, 0.5)
        assert statistics[path].near_half == 1


def test_statistics_of_no_images_are_refused():
    with pytest.raises(ValueError, match="takes at least one image"):
        nam_jax.gate_statistics(NAM(), {}, np.ones((0, 4, 4, 3)), use_running_average=True)


@each_scale
@each_single
@pytest.mark.parametrize("running", [False, True])
def test_half_gates_in_both_modes(module, running, gate_scale):
    x = image(SHAPE)
    variables = random_variables(module(), x, np.float32)

    @jax.jit
    def apply(x):
        jitted = nn.jit(module)(use_running_average=running, gate_scale=gate_scale)
        return jitted.apply(variables, x, mutable="batch_stats")

    plain, update = apply(x)
    with nam_jax.half_gates():
        halved, same = apply(x)
    gates = 2 if module is NAM else 1
    np.testing.assert_allclose(halved, (gate_scale / 2) ** gates * x, rtol=1e-5)
    np.testing.assert_array_equal(apply(x)[0], plain)
    if module is not NAM:
        assert_close(same, update)
