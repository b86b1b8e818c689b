"""What every attention module has to do, whichever the registry lists."""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import nam_jax
from nam_jax import Moments, add_sparsity_penalty
from nam_jax.attention import NAMES, attention, has_nam_scales
from nam_jax.layers.batch_norm import Affine
from tests.helpers.arrays import assert_close
from tests.helpers.networks import (
    MODULES,
    SHAPE,
    Block,
    End,
    each_mode,
    each_name,
    further_arguments,
    image,
    owns_parameters,
    random_variables,
    sharded_train_step,
    train_step,
)
from tests.helpers.values import with_slow

# bfloat16 has eight significant bits: rounding to it moves a value by at most 2⁻⁸ of it. The
# gates are float32 whatever the dtype, so that a result is rounded once; NAM's twice, between
# its two parts and at its end.
BFLOAT16 = dict.fromkeys(MODULES, 2.0 ** (-8)) | {"nam": 2 * 2.0**-8, "half": 0.0}


def all_but(*dear):
    return with_slow("name", MODULES, dear)


# CBAM stands for the others that take long, SE for what is simpler, NAM for its two parts.
FEW = {"nam", "nam_tied", "se", "cbam"}
few = all_but(*MODULES.keys() - FEW)
COMMON = ("use_running_average", "dtype", "param_dtype", "axis_name")


@functools.cache
def compiled(name, train, dtype=None):
    """Variables and x to y and the new statistics."""
    block = Block(name, dtype)
    return jax.jit(lambda v, x: block.apply(v, x, not train, mutable="batch_stats"))


@functools.cache
def variables_of(name, shape=SHAPE, dtype=np.float32):
    return random_variables(Block(name), image(shape), dtype)


def statistics_of(name):
    return variables_of(name).get("batch_stats", {})


# Names, fields and calls.


def test_names():
    assert attention("none") is None
    assert NAMES[0] == "none"
    assert set(HYPERPARAMETERS) <= set(NAMES)
    assert nam_jax.attention is attention
    public = {"nam": "NAM", "se": "SqueezeExcite", "cbam": "CBAM", "tam": "TripletAttention"}
    public |= {"nam_channel": "ChannelNAM", "nam_spatial": "SpatialNAM", "bam": "BAM"}
    public |= {"half": "HalfGate", "eca": "ECA", "simam": "SimAM"}
    public |= {"coordatt": "CoordinateAttention"}
    for name, module in public.items():
        assert attention(name) is getattr(nam_jax, module)
    assert attention("nam_tied").__name__ == "TiedNAM"


def test_unknown_name_is_refused():
    choices = re.escape(", ".join(NAMES))
    for function in (attention, has_nam_scales):
        with pytest.raises(ValueError, match=f"no attention 'spam'; choose one of {choices}"):
            function("spam")


@each_name
def test_nam_scales_are_what_the_penalty_finds(name):
    variables = jax.eval_shape(lambda: End(name).init(jax.random.key(0), image(), False))
    init = functools.partial(jax.eval_shape, add_sparsity_penalty(0.1).init, variables["params"])
    if has_nam_scales(name):
        init()
    else:
        with pytest.raises(ValueError, match="no parameter path ends in nam_bn/scale"):
            init()
    assert not has_nam_scales("none")


OF_NAM = {
    "momentum": 0.9,
    "epsilon": 1e-5,
    "normalization": "share",
    "weight_gradient": False,
    "gate_scale": 1.0,
}
HYPERPARAMETERS = {
    "nam_channel": OF_NAM,
    "nam_spatial": OF_NAM,
    "nam": OF_NAM,
    "nam_tied": OF_NAM,
    "se": {"reduction": 16},
    "bam": {"reduction": 16, "dilation": 4, "momentum": 0.9, "epsilon": 1e-5},
    "cbam": {"reduction": 16, "kernel_size": 7, "momentum": 0.99, "epsilon": 1e-5},
    "tam": {"kernel_size": 7, "momentum": 0.99, "epsilon": 1e-5},
    "half": {},
    "eca": {"kernel_size": None},
    "simam": {"epsilon": 1e-4},
    "coordatt": {"reduction": 32, "momentum": 0.9, "epsilon": 1e-5},
}


def test_modules_that_own_parameters():
    # The control of tests that ask.
    owners = HYPERPARAMETERS.keys() - {"nam_tied", "half", "simam"}
    assert {name for name in ("none", *HYPERPARAMETERS) if owns_parameters(name)} == owners


def hyperparameters(name):
    parameters = inspect.signature(attention(name)).parameters
    return {k: p.default for k, p in parameters.items() if k not in (*COMMON, "parent", "name")}


@each_name
def test_fields_are_the_common_ones_and_hyperparameters_all_by_keyword(name):
    parameters = inspect.signature(attention(name)).parameters
    own = hyperparameters(name)
    assert inspect.Parameter.empty not in own.values()
    assert set(COMMON) < set(parameters)
    keyword_only = {k for k, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert keyword_only >= {*own, *COMMON}
    with pytest.raises(TypeError, match="positional"):
        attention(name)(16)


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_default_hyperparameters(name):
    assert hyperparameters(name) == HYPERPARAMETERS[name]


@pytest.mark.parametrize("name", ["se", "bam", "cbam", "tam", "eca", "coordatt"])
def test_whole_numbers_may_be_those_of_numpy(name):
    def variables(kind):
        values = HYPERPARAMETERS[name] | ({"kernel_size": 3} if name == "eca" else {})
        fields = {key: kind(value) for key, value in values.items() if isinstance(value, int)}
        module = attention(name)(**fields, use_running_average=True)
        return jax.eval_shape(lambda: module.init(jax.random.key(0), image()))

    assert variables(np.int64) == variables(int)


@each_name
def test_calls_are_alike(name):
    parameters = inspect.signature(attention(name).__call__).parameters
    assert list(parameters)[:4] == ["self", "x", "use_running_average", "moments"]


@each_name
@pytest.mark.parametrize("train", [pytest.param(False, marks=pytest.mark.slow), True])
def test_running_average_at_construction_or_at_call(name, train):
    call = further_arguments(name)
    variables = random_variables(attention(name)(), image(), np.float32, **call)

    def program(module, *running):
        def apply(v):
            return module.apply(v, image(), *running, mutable="batch_stats", **call)

        return jax.jit(apply).lower(variables).as_text()

    # The same program, and so the same numbers.
    built = program(attention(name)(use_running_average=not train))
    assert built == program(attention(name)(), not train)


@each_name
def test_running_average_has_to_be_given_once_where_there_is_a_norm(name):
    def init(fields, call):
        module = attention(name)(**fields)
        arguments = {**call, **further_arguments(name)}
        jax.eval_shape(lambda: module.init(jax.random.key(0), image(), **arguments))

    given = {"use_running_average": True}
    for fields, call in (({}, {}), (given, given)):
        if statistics_of(name):
            with pytest.raises(ValueError, match="use_running_average"):
                init(fields, call)
        else:
            init(fields, call)


def test_modules_with_and_without_a_norm():
    # The control of the tests that ask the module.
    without = {"se", "nam_tied", "half", "eca", "simam"}
    assert {name for name in HYPERPARAMETERS if not statistics_of(name)} == without


@pytest.fixture
def mixed_dtypes():
    # Float32 parameters with others: Flax's own layers refuse them where promotion is strict.
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("mixed_dtypes")
@each_name
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_param_dtype_is_that_of_all_parameters(name, dtype):
    module = attention(name)(param_dtype=dtype, use_running_average=True)
    call = further_arguments(name)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), image(), **call))
    dtypes = {
        collection: {leaf.dtype for leaf in jax.tree.leaves(tree)}
        for collection, tree in variables.items()
    }
    assert dtypes.get("params", set()) <= {jnp.dtype(dtype)}
    assert dtypes.get("batch_stats", set()) <= {np.dtype(np.float32)}


@pytest.mark.parametrize("name", ["cbam", "tam", "eca"])
def test_even_kernel_is_refused(name):
    module = attention(name)(kernel_size=4, use_running_average=True)
    with pytest.raises(ValueError, match="kernel_size has to be odd; got 4"):
        jax.eval_shape(module.init, jax.random.key(0), image())


def gate_parameters(kernel_size):
    """Of one gate of CBAM or triplet attention: a convolution of two planes, and its norm."""
    return 2 * kernel_size**2 + 2


# Parameters by the definitions: weights, biases, and scale and shift of every norm; of c channels
# and h features inside, over a map of n pixels, with kernels of k.
COUNTS = {
    "nam_channel": lambda c, h, n, k: 2 * c,
    "nam_spatial": lambda c, h, n, k: 2 * n,
    "nam": lambda c, h, n, k: 2 * c + 2 * n,
    "nam_tied": lambda c, h, n, k: 0,
    "se": lambda c, h, n, k: 2 * c * h,
    "bam": lambda c, h, n, k: (
        (2 * c * h + h + c + 2 * h) + (c * h + h + 2 * h) + 2 * (9 * h * h + h + 2 * h) + (h + 1)
    ),
    "cbam": lambda c, h, n, k: 2 * c * h + h + c + gate_parameters(k),
    "tam": lambda c, h, n, k: 3 * gate_parameters(k),
    "half": lambda c, h, n, k: 0,
    # The kernel of all these numbers of channels.
    "eca": lambda c, h, n, k: 3,
    "simam": lambda c, h, n, k: 0,
    "coordatt": lambda c, h, n, k: (c * h + h) + 2 * h + 2 * (c * h + c),
}
# Of channels to features inside, and the least number of these.
INSIDE = {"coordatt": (32, 8)}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("shape", [(2, 5, 3, 64), (1, 1, 1, 32), (2, 2, 7, 8), (1, 3, 3, 40)])
@pytest.mark.parametrize("options", [{}, {"reduction": 4}, {"kernel_size": 3}])
def test_parameter_count(name, shape, options):
    module = attention(name)(**{k: v for k, v in options.items() if k in hyperparameters(name)})
    *_, height, width, channels = shape
    call = further_arguments(name, channels)
    variables = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.ones(shape), True, **call)
    )
    reduction, least = INSIDE.get(name, (16, 1))
    inside = max(least, channels // options.get("reduction", reduction))
    kernel_size = options.get("kernel_size", 7)
    expected = COUNTS[name](channels, inside, height * width, kernel_size)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables.get("params", {}))) == expected
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))


# Outputs and gradients.


@each_name
@each_mode
def test_shape_and_dtype_are_kept(name, train):
    y, update = compiled(name, train)(variables_of(name), image())
    assert y.shape == SHAPE
    assert y.dtype == np.float32
    assert np.isfinite(y).all()
    assert np.abs(y - image()).max() > 0.1  # it does something
    same = jax.tree.map(np.array_equal, update.get("batch_stats", {}), statistics_of(name))
    assert all(leaf == (not train) for leaf in jax.tree.leaves(same))


@each_name
def test_statistics_of_the_batch_are_not_the_running_ones(name):
    trained, _ = compiled(name, True)(variables_of(name), image())
    evaluated, _ = compiled(name, False)(variables_of(name), image())
    assert np.array_equal(trained, evaluated) == (not statistics_of(name))


@few
def test_jit_changes_nothing(name):
    block = Block(name)
    actual = block.apply(variables_of(name), image(), False, mutable="batch_stats")
    assert_close(actual, compiled(name, True)(variables_of(name), image()), 1e-5)


@few
def test_vmap_over_parameters_is_a_loop(name):
    leaves, structure = jax.tree.flatten(variables_of(name))
    if not leaves:
        pytest.skip("without variables")
    # Other values in other places: nam_tied knows only shares of its scale.
    several = [
        structure.unflatten([np.roll(leaf, n) * np.float32(1 + n) for leaf in leaves])
        for n in range(3)
    ]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *several)
    block = Block(name)
    mapped = jax.jit(
        jax.vmap(lambda v, x: block.apply(v, x, False, mutable="batch_stats"), (0, None))
    )
    loop = [compiled(name, True)(variables, image()) for variables in several]
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *loop)
    assert np.abs(expected[0][0] - expected[0][1]).max() > 1e-3
    assert_close(mapped(stacked, image()), expected, 1e-5)


BEFORE_NORM = {
    "bam": ("fc1", "spatial_reduce", "spatial_dilated0", "spatial_dilated1"),
    "coordatt": ("conv1",),
}


@few
def test_gradients_are_finite_and_reach_everything(name):
    step = train_step(Block(name), variables_of(name), image(), image(seed=1))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(step))
    assert np.abs(step.dx).max() > 1e-3
    for path, leaf in traverse_util.flatten_dict(step.dparams).items():
        # A BatchNorm takes the mean away: what is added before it changes nothing. And the
        # scale of nam_tied, read without a gradient, is a parameter of the BatchNorm.
        before_norm = path[-1] == "bias" and path[-2] in BEFORE_NORM.get(name, ())
        assert (np.abs(leaf).max() > 1e-5) != (before_norm or name == "nam_tied"), path


@few
@pytest.mark.parametrize("train", [pytest.param(False, marks=pytest.mark.slow), True])
def test_bfloat16_is_near_float32(name, train):
    x = jnp.asarray(image(), jnp.bfloat16)
    rounded, update = compiled(name, train, jnp.bfloat16)(variables_of(name), x)
    exact, exact_update = compiled(name, train)(variables_of(name), x.astype(jnp.float32))
    assert rounded.dtype == jnp.bfloat16
    rounded, exact = np.float32(rounded), np.asarray(exact)
    assert (np.abs(rounded - exact) <= BFLOAT16[name] * np.abs(exact)).all()
    # Half of a number is exact.
    assert np.array_equal(rounded, exact) == (name == "half")
    # NAM's second part sees the rounded output of the first.
    if update:
        assert_close(update, exact_update, BFLOAT16[name] if name == "nam" else 1e-6)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *(pytest.param(n, (1, 1, 1, 32), marks=() if n in FEW else SLOW) for n in MODULES),
        *(
            pytest.param(n, s, marks=SLOW)
            for n in sorted(FEW)
            for s in ((3, 1, 1, 32), (1, 4, 2, 32))
        ),
    ],
)
def test_one_pixel_and_one_image(name, shape):
    variables = variables_of(name, shape)
    step = train_step(Block(name), variables, image(shape), image(shape, seed=1))
    y, _ = compiled(name, False)(variables, image(shape))
    assert step.y.shape == y.shape == shape
    assert all(np.isfinite(leaf).all() for leaf in (y, *jax.tree.leaves(step)))
    assert np.abs(step.dx).max() > 0


def transposed(variables):
    """The variables for maps with height and width exchanged."""

    def turn(path, leaf):
        if path[-1] == "kernel" and leaf.ndim == 4 and not {"gate_h", "gate_w"} & set(path):
            return leaf.swapaxes(0, 1)
        return leaf.T if "nam_bn" in path and leaf.ndim == 2 else leaf

    other = {"gate_h": "gate_w", "gate_w": "gate_h", "conv_h": "conv_w", "conv_w": "conv_h"}
    return traverse_util.unflatten_dict(
        {
            tuple(other.get(key, key) for key in path): turn(path, leaf)
            for path, leaf in traverse_util.flatten_dict(variables).items()
        }
    )


@each_name
@pytest.mark.parametrize("train", [pytest.param(False, marks=pytest.mark.slow), True])
def test_height_and_width_are_alike(name, train):
    variables, x = variables_of(name), image()
    y, update = compiled(name, train)(variables, x)
    turned = compiled(name, train)(transposed(variables), x.swapaxes(1, 2))
    assert_close(turned[0], y.swapaxes(1, 2), 1e-5)
    if update:
        assert_close(turned[1], transposed(update), 1e-5)


@pytest.mark.usefixtures("mixed_dtypes")
@each_name
def test_float64_stays_float64(x64, name):
    x = image(dtype=np.float64)
    y, _ = jax.eval_shape(compiled(name, True), variables_of(name), x)
    assert y.dtype == np.float64


@pytest.mark.usefixtures("mixed_dtypes")
@all_but(*MODULES.keys() - {"nam", "se"})
def test_four_devices_are_one_batch(x64, name):
    x, cotangent = (image((8, 5, 3, 32), seed, np.float64) for seed in (0, 1))
    variables = random_variables(Block(name), x)
    expected = train_step(Block(name), variables, x, cotangent)
    # Initialisation knows of no axis; nothing else than the name has to change.
    sharded = Block(name, axis_name="data")
    jax.tree.map(np.testing.assert_array_equal, random_variables(sharded, x), variables)
    actual = sharded_train_step(sharded, variables, x, cotangent)
    on_all = jax.tree.map(lambda value: np.stack([value] * 4), expected.statistics)
    assert_close(actual, expected._replace(statistics=on_all))


# Moments that the BatchNorm before hands on.


@all_but(*MODULES.keys() - {"nam_channel"})
def test_moments_change_no_number(x64, name):
    x, cotangent = (image((4, 3, 5, 6), seed, np.float64) for seed in (0, 1))
    variables = random_variables(End(name), x)
    actual = train_step(End(name, hand_on=True), variables, x, cotangent)
    expected = train_step(End(name, hand_on=False), variables, x, cotangent)
    assert_close(actual.y, expected.y)
    assert_close(actual.statistics, expected.statistics)
    assert_close((actual.dparams, actual.dx), (expected.dparams, expected.dx))


@pytest.mark.parametrize("name", ["nam_channel", "nam"])
def test_moments_are_used(name):
    # The control of the test above: without it, modules that ignore them would pass.
    x = image((4, 3, 5, 6))
    variables = random_variables(attention(name)(), x, np.float32)
    apply = jax.jit(
        lambda m: attention(name)().apply(variables, x, False, m, mutable="batch_stats")
    )
    right = Moments(x.mean((0, 1, 2)), x.var((0, 1, 2)))
    wrong = Moments(x.mean((0, 1, 2)) + 1, x.var((0, 1, 2)))
    assert_close(apply(right), apply(None), 1e-5)
    assert not np.allclose(apply(wrong)[0], apply(None)[0], atol=1e-3)


@with_slow(
    "name",
    ["nam_spatial", "nam", "se", "cbam", "tam", "eca", "simam", "coordatt"],
    ("nam_spatial", "tam", "eca", "simam", "coordatt"),
)
def test_reductions_read_the_array_of_the_moments(name):
    x = image((4, 3, 5, 6))
    variables = random_variables(attention(name)(), x, np.float32)

    @jax.jit(static_argnums=1)
    def apply(moments, is_given=True):
        moments = moments._replace(output=x if is_given else None)
        return attention(name)().apply(variables, x, False, moments, mutable="batch_stats")

    moments = Moments(x.mean((0, 1, 2)), x.var((0, 1, 2)))
    ones = np.ones_like(x)
    affines = Affine(x, ones, 0 * ones), Affine(x, x, ones)
    right, wrong = (apply(moments._replace(of=affine)) for affine in affines)
    assert_close(right, apply(moments), 1e-5)
    assert not np.allclose(wrong[0], right[0], atol=1e-3)
    # Of another array that stands behind BatchNorm's output.
    assert_close(apply(moments._replace(of=affines[1]), False), right, 1e-5)


def test_moments_of_another_array_are_refused():
    x = image((4, 3, 5, 6))
    moments = Moments(jnp.zeros(6), jnp.ones(6), Affine(x[:1], jnp.ones(6), jnp.zeros(6)))
    with pytest.raises(ValueError, match=r"shape \(1, 3, 5, 6\); x has the shape \(4, 3, 5, 6\)"):
        attention("se")().init(jax.random.key(0), x, False, moments)


@pytest.mark.slow
def test_moments_are_those_of_all_devices(x64):
    # Statistics over the axis, so moments over the axis: attention would gate differently.
    x, cotangent = (image((8, 3, 5, 6), seed, np.float64) for seed in (0, 1))
    variables = random_variables(End("nam"), x)
    actual = sharded_train_step(End("nam", axis_name="data"), variables, x, cotangent)
    expected = train_step(End("nam"), variables, x, cotangent)
    on_all = jax.tree.map(lambda value: np.stack([value] * 4), expected.statistics)
    assert_close(actual, expected._replace(statistics=on_all))
