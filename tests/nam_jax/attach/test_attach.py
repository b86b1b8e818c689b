"""What attach() leaves as it was, what its attention follows, and what is refused."""

import copy
import functools
import inspect
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.traverse_util import flatten_dict

import nam_jax
from nam_jax.attention import TiedNAM
from tests.helpers.arrays import assert_close
from tests.helpers.values import with_slow

X = np.random.default_rng(0).standard_normal((2, 4, 3, 8)).astype(np.float32)
KEY = jax.random.key(0)


class Network(nn.Module):
    """Two blocks, and a method beside the call."""

    features: int = 8

    def setup(self) -> None:
        self.first, self.second = Block(self.features), Block(self.features)

    def __call__(self, x: Any, train: bool = False) -> Any:
        return self.second(self.encode(x, train), train)

    def encode(self, x: Any, train: bool = False) -> Any:
        return self.first(x, train)


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = nn.Dense(self.features)(x)
        return nn.BatchNorm(use_running_average=not train, name="bn", momentum=0.5)(x)


def fresh(model: nn.Module, **kwargs: Any) -> Any:
    """Initial variables, but for biases and kernels; none of it is compiled."""
    rng = np.random.default_rng(1)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        normal = rng.standard_normal(leaf.shape)
        return np.asarray(
            {"kernel": normal, "mean": 0 * normal, "bias": 0 * normal}.get(name, 1 + 0 * normal),
            leaf.dtype,
        )

    shapes = jax.eval_shape(functools.partial(model.init, **kwargs), KEY, X)
    return jax.tree_util.tree_map_with_path(draw, shapes)


def apply(model: nn.Module, variables: Any, **kwargs: Any) -> Any:
    return jax.jit(functools.partial(model.apply, **kwargs))(variables, X)


def is_first(path: str, module: nn.Module) -> bool:
    return path == "first/bn"


def tied(model: nn.Module, after: Any = ".*bn") -> nn.Module:
    return nam_jax.attach(model, "nam_tied", after=after)


def gated(x: Any) -> np.ndarray:
    """What tied NAM makes of channels of scale 1."""
    return np.asarray(x) / (1 + np.exp(-np.asarray(x) / 8))


# What stays.


def test_model_keeps_type_signature_fields_and_methods():
    model, attached = Network(6), tied(Network(6))
    assert isinstance(attached, Network)
    assert type(attached).__name__ == "Network"
    assert type(attached).__doc__ == Network.__doc__
    assert attached.features == 6
    assert repr(attached) == repr(model)
    for method in ("__call__", "encode", "apply", "init"):
        expected = inspect.signature(getattr(model, method))
        assert inspect.signature(getattr(attached, method)) == expected
    # The model itself is as it was.
    variables = fresh(model)
    assert not np.array_equal(apply(model, variables), apply(attached, variables))


RIVALS = ["half", "eca", "simam", "coordatt"]


@with_slow("attention", ["nam", "nam_tied", "se", "bam", "cbam", "tam", *RIVALS], RIVALS)
def test_variables_keep_their_paths(attention):
    before = flatten_dict(fresh(Network()), sep="/")
    after = flatten_dict(fresh(nam_jax.attach(Network(), attention, after="first/bn")), sep="/")
    assert before.keys() <= after.keys()
    new = after.keys() - before.keys()
    assert all(path.split("/", 1)[1].startswith("first/bn/attention/") for path in new)
    assert bool(new) == (attention not in ("nam_tied", "half", "simam"))


def test_variables_keep_their_first_values():
    attached = nam_jax.attach(Network(), "se", after=".*bn")
    before, after = jax.jit(lambda: [model.init(KEY, X) for model in (Network(), attached)])()
    after = flatten_dict(after)
    for path, leaf in flatten_dict(before).items():
        np.testing.assert_array_equal(after[path], leaf)


def test_none_attaches_nothing():
    assert nam_jax.attach(Network(), "none", after=".*bn") == Network()


def test_configured_module_and_name():
    attention = nam_jax.NAM(gate_scale=2, momentum=0.7, dtype=jnp.bfloat16)
    model = nam_jax.attach(Network(), attention, after="first/bn", name="nam")
    params = fresh(model)["params"]
    assert sorted(params["first"]["bn"]["nam"]) == ["channel", "spatial"]
    variables = fresh(model)
    call = {"method": "encode", "train": True, "mutable": "batch_stats"}
    y, changed = apply(model, variables, **call)
    assert y.dtype == jnp.bfloat16
    plain, _ = apply(Network(), variables, **call)
    own = {name: tree["first"]["bn"]["nam"] for name, tree in variables.items()}
    expected, update = attention.apply(own, plain, False, mutable="batch_stats")
    np.testing.assert_allclose(*(np.asarray(z, np.float32) for z in (y, expected)), rtol=1e-2)
    assert_close(changed["batch_stats"]["first"]["bn"]["nam"], update["batch_stats"], 1e-5)


def test_equal_arguments_make_equal_models():
    assert tied(Network()) == tied(Network())
    assert hash(tied(Network())) == hash(tied(Network()))
    assert tied(Network()) != tied(Network(), "first/bn")
    assert tied(Network()) != Network()


@pytest.mark.parametrize("after", ["first/bn", is_first])
@pytest.mark.parametrize("through", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy])
def test_copies_are_the_same_model(after, through):
    model = nam_jax.attach(Network(6), nam_jax.NAM(gate_scale=2), after=after)
    assert through(model) == model


def test_bound_model_is_not_pickled():
    model = tied(Network())
    with pytest.raises(TypeError, match="Only an unbound Network can be pickled"):
        pickle.dumps(model.bind(fresh(model)))


def test_attention_is_attached_twice():
    model = nam_jax.attach(tied(Network()), "se", after="first/bn", name="se")
    params = fresh(model)
    first = gated(apply(Network(), params, method="encode"))
    se = nam_jax.SqueezeExcite(use_running_average=True)
    own = {"params": params["params"]["first"]["bn"]["se"]}
    expected = se.apply(own, first)
    np.testing.assert_allclose(apply(model, params, method="encode"), expected, rtol=1e-5)


# Which calls it takes part in.


@pytest.mark.parametrize(
    "method", ["encode", Network.encode, lambda m, x: m.encode(x), lambda m, x: m.first(x, False)]
)
def test_every_method_has_attention(method):
    variables = fresh(Network())
    expected = gated(apply(Network(), variables, method="encode"))
    actual = apply(tied(Network()), variables, method=method)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_bound_model_has_attention():
    variables = fresh(Network())
    bound = tied(Network()).bind(variables)
    expected = apply(tied(Network()), variables)
    for _ in range(2):
        np.testing.assert_array_equal(bound(X), expected)


def test_method_without_selected_modules_may_be_called_first():
    model = tied(Network(), "second/bn")
    variables = fresh(Network())
    expected = apply(Network(), variables, method="encode")
    np.testing.assert_array_equal(apply(model, variables, method="encode"), expected)


def test_threads_do_not_meet():
    models = [tied(Network()), tied(Network(), "first/bn"), Network()]
    variables = fresh(Network())

    def programs(model: nn.Module) -> set[str]:
        return {str(jax.make_jaxpr(model.apply)(variables, X)) for _ in range(5)}

    alone = [programs(model) for model in models]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(programs, models)) == alone
    assert len(set.union(*alone)) == 3


class Jitted(nn.Module):
    """Of blocks that share one trace, which JAX keeps."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return JitBlock(name="block")(x) + JitNorm(True, name="bn")(x)


class EvaluatedBlock(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.BatchNorm(True, name="bn")(x)


JitBlock, JitNorm = nn.jit(EvaluatedBlock), nn.jit(nn.BatchNorm)


@pytest.mark.parametrize("order", [("plain", "attached", "one"), ("one", "attached", "plain")])
def test_shared_jit_keeps_models_apart(order):
    models = {"plain": Jitted(), "attached": tied(Jitted()), "one": tied(Jitted(), "bn")}
    variables = fresh(Jitted())
    norm = np.asarray(X / np.sqrt(1 + 1e-5))
    expected = {"plain": 2 * norm, "attached": 2 * gated(norm), "one": norm + gated(norm)}
    jax.clear_caches()
    for name in (*order, *order):
        y = apply(models[name], variables)
        np.testing.assert_allclose(y, expected[name], rtol=1e-5, atol=1e-6)


def test_shared_jit_keeps_children_apart():
    """The same attached model, alone and inside of another that has attention, too."""

    class Outer(nn.Module):
        inner: nn.Module

        def __call__(self, x: Any) -> Any:
            return self.inner(x)

    inner = tied(Jitted(), "block/bn")
    outer = tied(Outer(inner), "inner/bn")
    variables = fresh(Jitted())
    below = {collection: {"inner": tree} for collection, tree in variables.items()}
    norm = np.asarray(X / np.sqrt(1 + 1e-5))
    for _ in range(2):
        np.testing.assert_allclose(
            apply(inner, variables), norm + gated(norm), rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(apply(outer, below), 2 * gated(norm), rtol=1e-5, atol=1e-6)


# What the attention follows.


def statistics(variables: Any) -> bool:
    """Whether the attention's running statistics have moved."""
    leaves = flatten_dict(variables["batch_stats"], sep="/")
    own = {path: leaf for path, leaf in leaves.items() if "/nam_bn/mean" in path}
    assert own
    return any(leaf.any() for leaf in own.values())


class Mode(nn.Module):
    """A layer that is told its mode by some name, or by none."""

    training: bool | None = None

    @nn.compact
    def __call__(self, x: Any, train: bool | None = None, **kwargs: Any) -> Any:
        self.variable("batch_stats", "unused", jnp.zeros, ())
        return x


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x: Any, deterministic: bool = True) -> Any:
        return x


@pytest.mark.parametrize(
    ("layer", "call", "trains"),
    [
        (Mode(), {"train": True}, True),
        (Mode(), {"train": False}, False),
        (Mode(), {"is_training": True}, True),
        (Mode(), {"use_running_average": True, "train": True}, False),
        (Mode(training=False), {}, False),
        (Mode(training=False), {"train": True}, True),
        (Mode(), {}, True),
        (Deterministic(), {}, False),
        (Deterministic(), {"deterministic": False}, True),
    ],
)
def test_mode_is_that_of_the_call(layer, call, trains):
    model = nam_jax.attach(layer, "nam_channel", after="")
    variables = fresh(model, **call)
    _, changed = apply(model, variables, mutable="batch_stats", **call)
    assert statistics(changed) == trains


def test_mode_without_a_word_is_whether_statistics_are_mutable():
    model = nam_jax.attach(Mode(), "nam_channel", after="")
    variables = fresh(model)
    expected = nam_jax.ChannelNAM(use_running_average=True)
    own = {name: tree["attention"] for name, tree in variables.items()}
    np.testing.assert_allclose(apply(model, variables), apply(expected, own), rtol=1e-6)


def test_mode_can_be_told():
    told = []

    def train(module: nn.Module, args: Any, kwargs: Any) -> bool:
        told.append(kwargs)
        return isinstance(module, nn.BatchNorm)

    model = nam_jax.attach(Mode(), "nam_channel", after="", train=train)
    variables = fresh(model)
    _, changed = apply(model, variables, train=True, mutable="batch_stats")
    assert not statistics(changed)
    assert told[-1] == {"train": True}


def test_dtype_follows_momentum_does_not(x64):
    model = nam_jax.attach(nn.BatchNorm(False, momentum=0.5, dtype=jnp.bfloat16), "nam", after="")
    variables = jax.tree.map(lambda leaf: 3 * leaf, fresh(model))
    variables["params"] = jax.tree.map(lambda leaf: leaf / 3, variables["params"])
    y, changed = apply(model, variables, mutable="batch_stats")
    assert y.dtype == jnp.bfloat16
    var = changed["batch_stats"]["attention"]["channel"]["nam_bn"]["var"]
    # The variance of normalised input is 1.
    np.testing.assert_allclose(var, 0.9 * 3 + 0.1 * 1, atol=0.02)


def test_axis_follows():
    model = nam_jax.attach(nn.BatchNorm(False, axis_name="data"), "nam_channel", after="")
    variables = fresh(model)
    alone = nam_jax.attach(nn.BatchNorm(False), "nam_channel", after="")
    together, _ = jax.jit(functools.partial(alone.apply, mutable="batch_stats"))(
        variables, np.concatenate([X, 3 * X])
    )
    devices = jax.jit(
        jax.vmap(functools.partial(model.apply, mutable="batch_stats"), (None, 0), axis_name="data")
    )
    apart, _ = devices(variables, np.stack([X, 3 * X]))
    np.testing.assert_allclose(apart.reshape(together.shape), together, rtol=1e-4, atol=1e-5)


def test_group_norm_without_statistics():
    for attention in ("nam_tied", "se"):
        model = nam_jax.attach(nn.GroupNorm(4), attention, after="")
        variables = fresh(model)
        assert list(variables) == ["params"]
        assert apply(model, variables).shape == X.shape


def test_partitioned_scale():
    ones = nn.with_partitioning(nn.initializers.ones, ("channels",))
    plain, boxed = nn.BatchNorm(True), nn.BatchNorm(True, scale_init=ones)
    expected = apply(tied(plain, ""), fresh(plain))
    np.testing.assert_array_equal(apply(tied(boxed, ""), fresh(boxed)), expected)


def test_gates_penalty_and_saliency_know_attached_models():
    model = nam_jax.attach(Network(), "nam", after="first/bn")
    variables = fresh(model)
    names = ["first/bn/attention/channel", "first/bn/attention/spatial"]
    gates = jax.eval_shape(functools.partial(nam_jax.gates, model), variables, X)
    saliency = jax.eval_shape(nam_jax.saliency, variables["params"])
    assert sorted(gates) == sorted(saliency) == names
    assert nam_jax.sparsity_penalty(variables["params"], 1.0) == 8 + 12


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": Network().bind({})}, "unbound model; got a bound Network"),
        ({"attention": "nma"}, "There is no attention 'nma'"),
        ({"attention": nam_jax.NAM}, "a name or an unbound attention module; got <class"),
        ({"attention": nn.Dense(3)}, "a name or an unbound attention module; got Dense"),
        ({"after": "layer(1"}, "after='layer\\(1' is no regular expression"),
        ({"after": None}, "after=None is no regular expression and no function"),
        ({"model": Network}, "takes a linen model; got .*nam_jax.nnx.attach"),
        ({"model": nnx.BatchNorm(3, rngs=nnx.Rngs(0))}, "takes a linen model; got BatchNorm"),
    ],
)
def test_arguments_are_checked(arguments, message):
    given = {"model": Network(), "attention": "nam", "after": ".*bn", **arguments}
    with pytest.raises(ValueError, match=message):
        nam_jax.attach(**given)


@pytest.mark.parametrize("after", ["bn", "first", lambda path, module: False])
@pytest.mark.parametrize("call", ["init", "apply"])
def test_nothing_selected(after, call):
    if after == "first":
        after = "first/BatchNorm_0"
    model = tied(Network(7), after)
    variables = fresh(Network(7))
    with pytest.raises(ValueError, match="selects none of the modules") as error:
        fresh(model) if call == "init" else jax.eval_shape(model.apply, variables, X)
    assert "BatchNorm: first/bn, second/bn\n" in f"{error.value}\n"


class Pair(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return x, x


class Taken(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(8, name="attention")(x)


class Holder(nn.Module):
    layer: nn.Module

    def __call__(self, x: Any) -> Any:
        return self.layer(x)


@pytest.mark.parametrize(
    ("layer", "attention", "message"),
    [
        (Pair(), "nam", "takes an array; the module returns tuple"),
        (nn.Dense(8), "nam_tied", "nam_tied needs the scale of a normalisation"),
        (nn.BatchNorm(True, use_scale=False), "nam_tied", "nam_tied needs the scale"),
        (
            nn.BatchNorm(True, axis=1),
            "nam_tied",
            r"a scale for each of 8 channels; got the shape \(4,\)",
        ),
        (nn.BatchNorm(True, axis_name="a", axis_index_groups=[[0]]), "nam", "in groups"),
        (Taken(), "nam_tied", "something called 'attention' already"),
        (Taken(), "se", "something called 'attention' already"),
        (tied(nn.BatchNorm(True), ""), "se", "something called 'attention' already"),
        (nn.Dense(8), nam_jax.NAM(gate_scale=0), "gate_scale has to be above 0"),
    ],
)
def test_error_has_the_path(layer, attention, message):
    model = nam_jax.attach(Holder(layer), attention, after="layer")
    with pytest.raises(ValueError, match=f"^attach, after layer: .*{message}"):
        fresh(model)


def test_another_map_size_has_the_path():
    model = nam_jax.attach(Network(), "nam", after="first/bn")
    with pytest.raises(ValueError, match=r"^attach, after first/bn: SpatialNAM .* 4×3 maps"):
        jax.eval_shape(model.apply, fresh(model), X[:, :3])


def test_tied_module_keeps_its_options():
    model = nam_jax.attach(nn.BatchNorm(True), TiedNAM(gate_scale=2), after="")
    variables = fresh(nn.BatchNorm(True))
    expected = 2 * gated(np.asarray(apply(nn.BatchNorm(True), variables)))
    np.testing.assert_allclose(apply(model, variables), expected, rtol=1e-5)
