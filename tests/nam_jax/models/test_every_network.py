"""What every network has to do with every attention, whichever the registries list."""

import functools
import math
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from nam_jax import models
from nam_jax.attention import NAMES as ATTENTIONS
from nam_jax.attention import attention as find_attention
from nam_jax.attention import has_nam_scales
from nam_jax.models import blocks, mobilenet_v2
from nam_jax.models.blocks import STEMS
from nam_jax.models.mobilenet_v2 import MobileNetV2, Stage
from nam_jax.models.resnet import SHORTCUTS, ResNet
from nam_jax.sparsity import nam_scales
from tests.helpers.arrays import assert_close
from tests.helpers.networks import GOLDEN, network, owns_parameters, random_variables

# An expansion of 1, a residual block, and one that halves the resolution.
STAGES = (Stage(1, 16, 1, 1), Stage(6, 16, 1, 1), Stage(6, 32, 1, 2))


def cut_short(name, attention="none", **fields):
    """A network of few and narrow blocks: what there is to compile, and no more."""
    model = models.create(name, num_classes=5, attention=attention, stem="cifar", **fields)
    if isinstance(model, ResNet):
        return model.clone(stage_sizes=(1, 1), width=16)
    return model.clone(width_multiplier=0.5) if isinstance(model, MobileNetV2) else model


# One name of each kind of network, of those that differ in depth alone; and one of each family.
KINDS = list({cut_short(name): name for name in reversed(models.NAMES)}.values())
FAMILIES = list({type(cut_short(name)): name for name in reversed(models.NAMES)}.values())


# Every family with every attention, and what a kind may do in its own way.
PAIRS = [
    (name, attention)
    for name in KINDS
    for attention in (ATTENTIONS if name in FAMILIES else ("none", "nam_tied", "nam", "bam"))
]


def pairs(is_quick, chosen=PAIRS):
    """Networks with attention; those that are not quick are in `make test-all` alone."""
    return pytest.mark.parametrize(
        ("name", "attention"),
        [pytest.param(*pair, marks=() if is_quick(*pair) else pytest.mark.slow) for pair in chosen],
    )


FEW = (
    ("resnet18", "nam"),
    ("resnet18", "nam_tied"),
    ("resnet18", "bam"),
    ("mobilenet_v2", "se"),
)
# One of every kind stands for the others where what is tested does not depend on attention.
SOME = [(name, "nam") for name in KINDS]
each_pair = pairs(lambda *pair: pair in FEW)
some_pairs = pairs(lambda *pair: pair in FEW[:1], SOME)

IMAGES = (2, 12, 6, 3)
ONE_IMAGE = (1, 6, 4, 3)
# Every one of 12 layers rounds to 2⁻⁸, in no common direction.
BFLOAT16 = math.sqrt(12) * 2.0**-8


def images(shape=IMAGES, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Called:
    """A network called as attention modules are, with MobileNetV2's stages cut short."""

    def __init__(self, module):
        self.module = module

    def init(self, key, x, use_running_average):
        with mock.patch.object(mobilenet_v2, "STAGES", STAGES):
            return self.module.init(key, x, train=not use_running_average)

    def apply(self, variables, x, use_running_average):
        with mock.patch.object(mobilenet_v2, "STAGES", STAGES):
            return self.module.apply(
                variables, x, train=not use_running_average, mutable="batch_stats"
            )


@functools.cache
def variables_of(name, attention, shape=IMAGES, shift=0):
    """Variables with kernels of a size that keeps the activations near 1."""

    def scaled(path, leaf):
        leaf = np.roll(leaf, shift) * (1 + shift * (path[-1] == "kernel"))
        return leaf * math.sqrt(2 / math.prod(leaf.shape[:-1])) if path[-1] == "kernel" else leaf

    drawn = random_variables(Called(cut_short(name, attention)), images(shape), np.float32)
    flat = traverse_util.flatten_dict(drawn)
    return traverse_util.unflatten_dict(
        {path: np.float32(scaled(path, leaf)) for path, leaf in flat.items()}
    )


@functools.cache
def evaluate(name, attention, dtype=None):
    called = Called(cut_short(name, attention, dtype=dtype))
    return jax.jit(lambda v, x: called.apply(v, x, True)[0])


def gradients(name, attention, **fields):
    """A function that gives gradients of params and x, logits and new statistics."""
    called = Called(cut_short(name, attention, **fields))

    def loss(params, statistics, x):
        logits, update = called.apply({"params": params, "batch_stats": statistics}, x, False)
        return jnp.square(logits - 1).sum(), (logits, update["batch_stats"])

    return jax.grad(loss, (0, 2), has_aux=True)


def is_attention(path, attention):
    return "attention" in path or (attention == "bam" and any(k.startswith("bam") for k in path))


def without_attention(variables, attention):
    flat = traverse_util.flatten_dict(variables)
    rest = {path: leaf for path, leaf in flat.items() if not is_attention(path, attention)}
    return traverse_util.unflatten_dict(rest)


@each_pair
def test_logits(name, attention):
    logits = evaluate(name, attention)(variables_of(name, attention), images())
    assert logits.shape == (2, 5)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    if attention not in ("none", "nam_tied"):
        plain = without_attention(variables_of(name, attention), attention)
        assert not np.allclose(logits, evaluate(name, "none")(plain, images()), rtol=1e-3)


# Parameters that do not learn from one image.
STILL = {
    # A BatchNorm takes the mean away: what was added before, and of channels all that there is.
    "bam": r"channel/fc1/|channel_bn/scale|spatial_(reduce|dilated\d)/bias",
    "coordatt": r"conv1/bias",
    # Of 16 channels one feature is left, and its ReLU is dead.
    "cbam": r"layer1_0/.*/(fc1/|fc2/kernel)",
}


@pairs(
    lambda *pair: pair in FEW[:1],
    [pair for pair in PAIRS if pair[0] == "resnet18" or pair in SOME],
)
def test_one_image_trains(name, attention):
    variables, x = variables_of(name, attention, ONE_IMAGE), images(ONE_IMAGE)
    step = jax.jit(gradients(name, attention))(variables["params"], variables["batch_stats"], x)
    (dparams, dx), (logits, statistics) = step
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(step))
    assert logits.shape == (1, 5)
    assert jax.tree.structure(statistics) == jax.tree.structure(variables["batch_stats"])
    assert np.abs(dx).max() > 0
    flat = traverse_util.flatten_dict(dparams)
    own = {"/".join(path): leaf for path, leaf in flat.items() if is_attention(path, attention)}
    assert bool(own) == owns_parameters(attention)
    for path, leaf in own.items():
        is_still = attention in STILL and bool(re.search(STILL[attention], path))
        assert (np.abs(leaf).max() > 1e-4) != is_still, path


@some_pairs
def test_vmap_over_parameters_is_a_loop(name, attention):
    several = [variables_of(name, attention, shift=shift) for shift in range(2)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *several)
    called = Called(cut_short(name, attention))
    mapped = jax.jit(jax.vmap(lambda v, x: called.apply(v, x, True)[0], (0, None)))
    loop = np.stack([evaluate(name, attention)(variables, images()) for variables in several])
    assert not np.allclose(*loop, rtol=1e-2)
    assert_close(mapped(stacked, images()), loop, 1e-5)


@some_pairs
def test_bfloat16_logits_are_float32_and_near(name, attention):
    variables = variables_of(name, attention)
    actual = evaluate(name, attention, jnp.bfloat16)(variables, images())
    expected = evaluate(name, attention)(variables, images())
    assert actual.dtype == np.float32
    assert_close(actual, expected, BFLOAT16)
    assert np.abs(actual - expected).max() > 1e-5 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "attention"), SOME)
def test_jit_changes_nothing(name, attention):
    variables = variables_of(name, attention)
    eager, _ = Called(cut_short(name, attention)).apply(variables, images(), True)
    assert_close(eager, evaluate(name, attention)(variables, images()), 1e-5)


@each_pair
def test_penalty_finds_scales_where_there_are_some(name, attention):
    params = variables_of(name, attention)["params"]
    assert bool(nam_scales(params)) == (attention != "none" and has_nam_scales(attention))


# Blocks that are computed anew in the backward pass: the same numbers from less memory.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "attention"),
    [("resnet18", "nam"), ("mobilenet_v2", "se"), ("resnet50", "nam_channel")],
)
def test_remat_changes_neither_variables_nor_gradients_nor_statistics(x64, name, attention):
    variables = variables_of(name, attention)
    anew = Called(cut_short(name, attention, remat=True))
    shapes = jax.eval_shape(lambda x: anew.init(jax.random.key(0), x, False), images())
    shapes, expected = (
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (shapes, variables)
    )
    assert shapes == expected
    arguments = jax.tree.map(np.float64, (variables["params"], variables["batch_stats"], images()))
    kept, anew = (
        jax.jit(gradients(name, attention, remat=remat))(*arguments) for remat in (False, True)
    )
    assert_close(anew, jax.tree.map(np.asarray, kept))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "attention"), SOME)
def test_remat_keeps_less_for_the_backward_pass(name, attention):
    def residual_bytes(remat):
        called = Called(cut_short(name, attention, remat=remat))
        variables, x = variables_of(name, attention), images()

        def pullback(params):
            return jax.vjp(
                lambda p: jnp.square(called.apply({**variables, "params": p}, x, False)[0]).sum(),
                params,
            )[1]

        kept = jax.tree.leaves(jax.eval_shape(pullback, variables["params"]))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in kept)

    assert residual_bytes(remat=True) < 0.6 * residual_bytes(remat=False)


# By name.


def test_kinds_and_families():
    assert set(FAMILIES) >= {"resnet18", "mobilenet_v2"}
    assert set(KINDS) >= {"resnet18", "resnet50", "resnet20", "mobilenet_v2"}


def test_unknown_model_is_refused():
    with pytest.raises(ValueError, match=f"'resnet9'; choose one of {', '.join(models.NAMES)}"):
        models.create("resnet9", num_classes=10)


@pytest.mark.parametrize(
    ("field", "choices"),
    [("attention", ATTENTIONS), ("stem", STEMS), ("shortcut", SHORTCUTS)],
)
def test_unknown_option_is_refused(field, choices):
    with pytest.raises(ValueError, match=f"{field} 'spam'; choose one of {', '.join(choices)}"):
        models.create("resnet20", num_classes=10, **{field: "spam"})


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [("mobilenet_v2", "shortcut", "pad_end"), ("resnet18", "width_multiplier", 0.5)],
)
def test_field_that_a_network_does_not_have_is_refused(name, field, value):
    with pytest.raises(ValueError, match=f"^The model {name} has no field '{field}'"):
        models.create(name, num_classes=10, **{field: value})
    with pytest.raises(ValueError, match="There is no model 'resnet9'"):
        models.has_field("resnet9", field)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (models.MobileNetV2(3, stem="spam"), "There is no stem 'spam'"),
        (models.ResNet(models.BasicBlock, (1,), 3, stem="spam"), "There is no stem 'spam'"),
        (models.ResNet(models.BasicBlock, (1,), 3, shortcut="spam"), "There is no shortcut 'spam'"),
        (models.ResNet(models.BasicBlock, (1,), 3, drop_path=1.0), r"in \[0, 1\); got \(1.0, 0.0"),
        (models.MobileNetV2(3, dropout=-0.5), r"in \[0, 1\); got \(0.0, -0.5\)"),
    ],
)
def test_a_network_without_create_refuses_what_it_does_not_know(network, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), images())


TAGS = [
    "cifar_resnet18_nam",
    pytest.param("cifar_resnet18_bam", marks=pytest.mark.slow),
    pytest.param("cifar_resnet18_nam_channel", marks=pytest.mark.slow),
    pytest.param("cifar_resnet18_cbam", marks=pytest.mark.slow),
    pytest.param("cifar_resnet50_nam_channel", marks=pytest.mark.slow),
    pytest.param("imagenet_resnet50_nam", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("tag", TAGS)
def test_reference_logits_and_parameter_count(x64, tag):
    golden = network(tag)
    with np.load(GOLDEN / "networks.npz") as file:
        count = file[f"{tag}:nparams"]
    assert sum(leaf.size for leaf in jax.tree.leaves(golden.variables["params"])) == count
    apply = jax.jit(functools.partial(golden.module.apply, train=False))
    assert_close(apply(golden.variables, golden.x), golden.eval_logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_branch_and_the_classifier_drop_by_keys_of_their_own(name, monkeypatch):
    calls = []

    def drop(x, place, rate, shape=(1, 1, 1)):
        calls.append((x.shape, place, rate, shape))
        return x

    monkeypatch.setattr(mobilenet_v2, "STAGES", (*STAGES, Stage(6, 32, 2, 1)))
    model = models.create(name, num_classes=5, stem="cifar", drop_path=0.4, dropout=0.1)
    if isinstance(model, ResNet):
        model = model.clone(stage_sizes=(2, 3), width=4)
    keys = jax.random.split(jax.random.key(3), 2)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images(), train=False))
    monkeypatch.setattr(blocks, "drop", drop)
    monkeypatch.setattr(blocks, "keys_of", lambda keys, place: place)
    apply = functools.partial(model.apply, train=True, row_keys=keys, mutable="batch_stats")
    jax.eval_shape(apply, shapes, images())
    *branches, (shape, _, dropout, of_row) = calls
    # In MobileNetV2, of five blocks the three whose input is added.
    depths = range(5) if isinstance(model, ResNet) else (1, 3, 4)
    np.testing.assert_allclose([rate for _, _, rate, _ in branches], [0.1 * d for d in depths])
    assert {draws for *_, draws in branches} == {(1, 1, 1)}
    assert (dropout, of_row) == (0.1, shape[1:])
    assert len({place for _, place, _, _ in calls}) == len(calls)


@pytest.mark.parametrize("field", ["drop_path", "dropout"])
@pytest.mark.parametrize("name", FAMILIES)
def test_dropping_needs_keys_in_training_alone(name, field):
    model = models.create(name, num_classes=5, stem="cifar", **{field: 0.5})
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images(), train=False))
    with pytest.raises(ValueError, match="need row_keys in training: a random key for every image"):
        jax.eval_shape(lambda v: model.apply(v, images(), train=True, mutable=True), shapes)


@pytest.mark.parametrize("keys", [jax.random.key(0), jax.random.split(jax.random.key(0), 1)])
@pytest.mark.parametrize("name", FAMILIES)
def test_dropping_needs_a_key_for_every_image(name, keys):
    model = models.create(name, num_classes=5, stem="cifar", dropout=0.5)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images(), train=False))
    apply = functools.partial(model.apply, train=True, row_keys=keys, mutable=True)
    with pytest.raises(ValueError, match=rf"here {len(images())}; got the shape \("):
        jax.eval_shape(apply, shapes, images())


@pytest.mark.parametrize("name", FAMILIES)
def test_one_image_without_an_axis_of_images_is_refused(name):
    model = models.create(name, num_classes=5)
    with pytest.raises(ValueError, match=r"takes \(N, H, W, C\) arrays; got the shape \(32, 32, 3"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.ones((32, 32, 3)), train=False))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_dropping_and_computing_anew_agree(name):
    keys = jax.random.split(jax.random.key(3), len(images()))
    variables = variables_of(name, "nam")

    def gradient(remat):
        model = Called(cut_short(name, "nam", drop_path=0.5, dropout=0.5, remat=remat)).module

        def loss(params):
            with mock.patch.object(mobilenet_v2, "STAGES", STAGES):
                options = {"train": True, "row_keys": keys, "mutable": "batch_stats"}
                return model.apply({**variables, "params": params}, images(), **options)[0].sum()

        return jax.jit(jax.grad(loss))(variables["params"])

    assert_close(gradient(True), jax.tree.map(np.asarray, gradient(False)), tolerance=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("attention", ["se", "bam"])
def test_hyperparameters_reach_every_attention(name, attention):
    found = []

    def note(method, args, kwargs, context):
        if isinstance(context.module, find_attention(attention)):
            found.append(context.module.reduction)
        return method(*args, **kwargs)

    model = cut_short(name, attention, attention_options={"reduction": 4})
    with nn.intercept_methods(note):
        jax.eval_shape(lambda: model.init(jax.random.key(0), images(), train=False))
    assert set(found) == {4}
    assert hash(model) == hash(cut_short(name, attention, attention_options={"reduction": 4}))


@pytest.mark.parametrize(("attention", "message"), [("se", "allowed: reduction"), ("half", "none")])
def test_hyperparameters_of_another_attention_are_refused(attention, message):
    options = {"attention": attention, "attention_options": {"gate_scale": 2.0}}
    with pytest.raises(
        ValueError, match=f"{attention} has no hyper-parameter 'gate_scale'.*{message}"
    ):
        models.create("resnet20", num_classes=5, **options)
