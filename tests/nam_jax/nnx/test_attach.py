"""Attention in NNX models that nobody edits: a ResNet, and one with attention by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import nam_jax
from nam_jax.nnx import NAM, ChannelNAM, FromLinen, TiedNAM, attach
from tests.helpers.arrays import assert_close
from tests.helpers.networks import image
from tests.helpers.values import with_slow

NORMS = r"blocks/\d/bn2"


class Block(nnx.Module):
    def __init__(self, features, rngs, by_hand=None):
        self.conv1 = nnx.Conv(features, features, (3, 3), use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(features, rngs=rngs)
        self.conv2 = nnx.Conv(features, features, (1, 1), use_bias=False, rngs=rngs)
        self.bn2 = nnx.BatchNorm(features, rngs=rngs)
        self.attention = nnx.data(by_hand() if by_hand else None)

    def __call__(self, x):
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if isinstance(self.attention, TiedNAM):
            y = self.attention(y, scale=self.bn2.scale[...])
        elif self.attention is not None:
            y = self.attention(y)
        return nnx.relu(x + y)


class ResNet(nnx.Module):
    def __init__(self, by_hand=None):
        rngs = nnx.Rngs(0)
        self.stem = nnx.Conv(3, 6, (3, 3), strides=2, rngs=rngs)
        self.blocks = nnx.List([Block(6, rngs, by_hand) for _ in range(2)])
        self.head = nnx.Linear(6, 5, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


X = image((2, 6, 10, 3))
BY_HAND = {
    "nam_tied": TiedNAM,
    "nam_channel": lambda: ChannelNAM(6),
    "nam": lambda: NAM(6, (3, 5)),
    "se": lambda: FromLinen(nam_jax.SqueezeExcite(), jnp.ones((2, 3, 5, 6)), rngs=nnx.Rngs(0)),
}


def paths(model):
    return ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model))]


def redrawn(model):
    """The model with other values, drawn by path: those of one without attention are the same."""
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        name = "/".join(map(str, path)).replace("bn2/attention", "attention")
        rng = np.random.default_rng(list(name.encode()))
        value = (
            rng.random(leaf.shape) + 0.5 if path[-1] == "var" else rng.standard_normal(leaf.shape)
        )
        leaf[...] = value.astype(np.float32)
        nnx.update(model, nnx.from_flat_state([(path, leaf)]))
    return model


@nnx.jit
def evaluated(model):
    return model(X)


def step(model):
    gradients, y = nnx.jit(nnx.grad(lambda model: ((y := model(X)).sum(), y), has_aux=True))(model)
    found = [*nnx.to_flat_state(gradients), *nnx.to_flat_state(nnx.state(model, nnx.BatchStat))]
    named = {"/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in found}
    return y, {name.replace("bn2/attention", "attention"): leaf for name, leaf in named.items()}


@with_slow("name", BY_HAND, ("nam_tied", "nam", "se"))
def test_equal_to_attention_by_hand(name):
    hand = redrawn(ResNet(BY_HAND[name]))
    attached = redrawn(attach(ResNet(), name, after=NORMS, example=X))
    expected, actual = step(hand), step(attached)
    assert sorted(actual[1]) == sorted(expected[1])
    assert_close(actual, jax.device_get(expected), 1e-5)
    hand.eval()
    attached.eval()
    assert_close(evaluated(attached), np.asarray(evaluated(hand)), 1e-5)
    # And it does something.
    plain = redrawn(ResNet())
    plain.eval()
    assert not np.allclose(evaluated(attached), evaluated(plain), rtol=1e-2)


def test_what_was_there_stays():
    plain = ResNet()
    attached = attach(plain, "nam", after=NORMS, example=X)
    assert isinstance(attached, ResNet)
    assert isinstance(attached.blocks[0].bn2, nnx.BatchNorm)
    assert not hasattr(plain.blocks[0].bn2, "attention")
    own = set(paths(attached)) - set(paths(plain))
    assert set(paths(plain)) < set(paths(attached))
    assert {path.rsplit("/", 2)[0] for path in own} == {
        f"blocks/{n}/bn2/attention/{part}" for n in (0, 1) for part in ("channel", "spatial")
    }
    for path, leaf in nnx.to_flat_state(nnx.state(plain)):
        np.testing.assert_array_equal(
            dict(nnx.to_flat_state(nnx.state(attached)))[path][...], leaf[...]
        )


def test_tied_form_adds_nothing():
    plain, attached = ResNet(), attach(ResNet(), "nam_tied", after=NORMS)
    assert paths(attached) == paths(plain)
    nnx.update(attached, nnx.state(plain))


@pytest.mark.parametrize("name", ["none", "nam_tied", "nam", "se"])
def test_graph_definitions_of_clones_are_equal(name):
    one, other = (attach(ResNet(), name, after=NORMS, example=X) for _ in range(2))
    assert nnx.graphdef(one) == nnx.graphdef(other)
    graph, state = nnx.split(one)
    assert nnx.graphdef(nnx.merge(graph, state)) == graph


def test_a_configured_module_and_a_predicate():
    template = nam_jax.ChannelNAM(momentum=0.5, epsilon=0.1)
    model = attach(ResNet(), template, after=lambda path, module: isinstance(module, nnx.BatchNorm))
    found = [module for _, module in nnx.iter_modules(model) if isinstance(module, ChannelNAM)]
    assert [(module.momentum, module.epsilon) for module in found] == [(0.5, 0.1)] * 4


@pytest.mark.parametrize("name", ["nam_tied", "nam_channel", "nam_spatial", "nam"])
def test_options_of_a_template_reach_native_modules(name):
    options = {"normalization": "mean", "weight_gradient": True, "gate_scale": 2.0}
    options["dtype"] = jnp.bfloat16
    if name != "nam_tied":
        options |= {"momentum": 0.5, "epsilon": 0.1, "axis_name": "data"}
    template = nam_jax.attention(name)(**options, param_dtype=jnp.float16)
    attention = attach(ResNet(), template, after=NORMS, example=X).blocks[0].bn2.attention
    for part in (attention.channel, attention.spatial) if name == "nam" else (attention,):
        assert {key: getattr(part, key) for key in options} == options
    params = jax.tree.leaves(nnx.state(attention, nnx.Param))
    # The tied form owns none.
    dtypes = set() if name == "nam_tied" else {jnp.dtype(jnp.float16)}
    assert {leaf.dtype for leaf in params} == dtypes


def test_two_attentions_after_one_module():
    first = attach(ResNet(), "nam_tied", after=NORMS)
    both = attach(first, "nam_channel", after=NORMS, name="second")
    y = both.blocks[0].bn2(X[..., [0, 1, 2, 0, 1, 2]])
    assert y.shape == (2, 6, 10, 6)
    assert "blocks/0/bn2/second/nam_bn/scale" in paths(both)


class ByCall(nnx.Module):
    """Its mode is an argument of its calls."""

    def __init__(self):
        self.bn = nnx.BatchNorm(3, rngs=nnx.Rngs(0))

    def __call__(self, x, train):
        return self.bn(x, use_running_average=not train)


def test_mode_and_dtype_follow_the_call():
    model = attach(ByCall(), "nam", after="bn", example=lambda model: model(X, train=True))
    before = jax.device_get(nnx.state(model, nnx.BatchStat))
    model(X, train=False)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model, nnx.BatchStat), before)
    model(X, train=True)
    changed = jax.tree.map(
        lambda a, b: not np.array_equal(a, b), nnx.state(model, nnx.BatchStat), before
    )
    assert all(jax.tree.leaves(changed))
    half = ByCall()
    half.bn.dtype = jnp.bfloat16
    assert attach(half, "nam_channel", after="bn")(X, train=True).dtype == jnp.bfloat16


@with_slow("module", [nam_jax.ChannelNAM, nam_jax.CBAM], [nam_jax.CBAM])
@pytest.mark.parametrize("running", [True, False])
def test_a_mode_of_its_own_stays(module, running):
    template = module(use_running_average=running)
    model = attach(ByCall(), template, after="bn", example=lambda model: model(X, train=False))
    before = jax.device_get(nnx.state(model.bn.attention, nnx.BatchStat))
    model(X, train=running)
    after = jax.device_get(nnx.state(model.bn.attention, nnx.BatchStat))
    same = jax.tree.map(np.array_equal, before, after)
    assert jax.tree.leaves(same) == [running] * 2


@with_slow("name", ["nam_channel", "cbam"], ["cbam"])
def test_axis_follows(name):
    def attached(axis_name=None):
        plain = ByCall()
        plain.bn.axis_name = axis_name
        return attach(plain, name, after="bn", example=lambda model: model(X, train=False))

    graph, state = nnx.split(attached("data"))
    together = attached()(np.concatenate([X, 3 * X]), train=True)

    def call(state, x):
        return nnx.merge(graph, state)(x, train=True)

    devices = jax.vmap(call, (None, 0), axis_name="data")
    apart = jax.jit(devices)(state, np.stack([X, 3 * X]))
    np.testing.assert_allclose(apart.reshape(together.shape), together, rtol=1e-4, atol=1e-5)


def test_the_penalty_finds_scales_and_selected_ones():
    params = nnx.state(attach(ResNet(), "nam", after=NORMS, example=X), nnx.Param)
    assert nam_jax.sparsity_penalty(params, 1.0) == 2 * (6 + 15)
    tied = nnx.state(attach(ResNet(), "nam_tied", after=NORMS), nnx.Param)
    assert nam_jax.sparsity_penalty(tied, 1.0) == 0
    assert nam_jax.sparsity_penalty(tied, 1.0, scales=rf"{NORMS}/scale") == 2 * 6
    assert list(nam_jax.saliency(tied, scales=rf"{NORMS}/scale")) == [
        "blocks/0/bn2",
        "blocks/1/bn2",
    ]


class Pair(nnx.Module):
    def __call__(self, x):
        return x, x


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attach(ResNet(), "nam", after="bn2"), r"selects no module.*\nblocks/0/bn1: Batch"),
        (
            lambda: attach(ResNet(), "nam", after=NORMS),
            r"after blocks/0/bn2: NAM depends.*example=",
        ),
        (
            lambda: attach(ResNet(), "nam_tied", after="stem"),
            "after stem: nam_tied needs the scale",
        ),
        (
            lambda: attach(ResNet(), "se", after=NORMS, name="scale"),
            "has something called 'scale' already",
        ),
        (lambda: attach(nn.Dense(3), "nam", after="x"), "takes an NNX model; got Dense"),
        (lambda: attach(ResNet(), NAM, after=NORMS), "a name or an unbound attention module"),
        (lambda: attach(ResNet(), "spam", after=NORMS), "no attention 'spam'"),
        (
            lambda: attach(ByCall(), "nam", after="bn", example=lambda model: model.bn.scale + 0),
            "the example does not call bn",
        ),
        (
            lambda: attach(nnx.Sequential(Pair()), "nam_channel", after="layers/0"),
            "after layers/0: ChannelNAM depends.*example=",
        ),
        (
            lambda: attach(nnx.Sequential(Pair()), "se", after="layers/0", example=X),
            "takes an array; Pair returns tuple",
        ),
        (
            lambda: attach(
                nnx.Sequential(nnx.Linear(3, 8, rngs=nnx.Rngs(0))),
                "nam",
                after="layers/0",
                example=jnp.ones((2, 3)),
            ),
            r"after layers/0: NAM takes \(N, H, W, C\) arrays; .* the shape \(2, 8\)",
        ),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make()


def test_stacked_layers_are_refused():
    @nnx.vmap(in_axes=0, out_axes=0)
    def stacked(key):
        return nnx.BatchNorm(3, use_scale=False, rngs=nnx.Rngs(key))

    model = nnx.Sequential(stacked(jax.random.split(jax.random.key(0), 4)))
    with pytest.raises(ValueError, match=r"the shape \(4, 3\), that of several layers, stacked by"):
        attach(model, "nam_channel", after="layers/0")


@pytest.mark.parametrize("fields", [{"momentum": 2.0}, {"epsilon": -1.0}])
def test_fields_out_of_their_range_are_refused(fields):
    with pytest.raises(ValueError, match=r"has to be (in \[0, 1\]|at least 0); got "):
        ChannelNAM(6, **fields)


def test_statistics_in_groups_are_refused():
    model = ByCall()
    model.bn.axis_index_groups = ((0, 1), (2, 3))
    with pytest.raises(ValueError, match="after bn: attention cannot share statistics in groups"):
        attach(model, "nam_channel", after="bn")
