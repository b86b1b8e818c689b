"""PyTorch state dicts: every entry at its place, in its layout, or an error that names it."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from nam_jax import NAM, ChannelNAM, SpatialNAM, models, torch_import

# Every module of a block of the authors' ResNet-18, and where it stands in ours.
BLOCK = {
    "conv1": "conv1",
    "bn1": "bn1",
    "conv2": "conv2",
    "bn2": "bn2",
    "downsample.0": "downsample_conv",
    "downsample.1": "downsample_bn",
}
ATTENTION = {
    "none": {},
    "nam_tied": {"bn2": "nam_bn"},
    "nam_channel": {"nam.Channel_Att.bn2": "attention/nam_bn"},
    "nam_spatial": {"nam.Spatial_Att.bn": "attention/nam_bn"},
    "nam": {
        "nam.Channel_Att.bn2": "attention/channel/nam_bn",
        "nam.Spatial_Att.bn": "attention/spatial/nam_bn",
    },
}
LEAVES = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
INPUT = (1, 16, 8, 3)
MAPS = ((16, 8), (8, 4), (4, 2), (2, 1))


def norm_shapes(module, size):
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{module}.{leaf}": (size,) for leaf in leaves} | {f"{module}.num_batches_tracked": ()}


def block_shapes(prefix, inputs, features, pixels, attention):
    """Names and shapes of one block, as PyTorch lists them."""
    shapes = {f"{prefix}.conv1.weight": (features, inputs, 3, 3)}
    shapes |= norm_shapes(f"{prefix}.bn1", features)
    shapes |= {f"{prefix}.conv2.weight": (features, features, 3, 3)}
    shapes |= norm_shapes(f"{prefix}.bn2", features)
    if inputs != features:
        shapes |= {f"{prefix}.downsample.0.weight": (features, inputs, 1, 1)}
        shapes |= norm_shapes(f"{prefix}.downsample.1", features)
    for module in ATTENTION[attention]:
        if module.startswith("nam."):
            size = pixels if "Spatial" in module else features
            shapes |= norm_shapes(f"{prefix}.{module}", size)
    return shapes


def draw(shapes, dtype=np.float32):
    """A state dict of these shapes, with no two values alike."""
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def resnet18(attention):
    """A ResNet-18 of width 4 and a state dict for it."""
    shapes = {"conv1.weight": (4, 3, 3, 3)} | norm_shapes("bn1", 4)
    for stage, (height, width) in enumerate(MAPS):
        inputs, features = 4 * 2 ** max(stage - 1, 0), 4 * 2**stage
        for block, size in enumerate((inputs, features)):
            prefix = f"layer{stage + 1}.{block}"
            shapes |= block_shapes(prefix, size, features, height * width, attention)
    shapes |= {"fc.weight": (7, 32), "fc.bias": (7,)}
    model = models.create("resnet18", num_classes=7, attention=attention, stem="cifar", width=4)
    return model, draw(shapes)


def location(name, attention):
    """Path of an entry of a ResNet-18 in our variables."""
    module, leaf = name.rsplit(".", 1)
    if not module.startswith("layer"):
        kernel = module in ("conv1", "fc") and leaf == "weight"
        return (
            ("params", module, "kernel") if kernel else (LEAVES[leaf][0], module, LEAVES[leaf][1])
        )
    stage, block, rest = module.split(".", 2)
    collection, ours = LEAVES[leaf]
    kernel = "conv" in rest or rest == "downsample.0"
    place = (BLOCK | ATTENTION[attention])[rest].split("/")
    return (collection, f"{stage}_{block}", *place, "kernel" if kernel else ours)


def in_our_layout(value, shape):
    if value.ndim == 4:
        return np.einsum("oihw->hwio", value)
    return np.einsum("oi->io", value) if value.ndim == 2 else value.reshape(shape)


@pytest.mark.parametrize("attention", ATTENTION)
def test_every_entry_of_a_resnet_has_its_place(attention):
    model, state_dict = resnet18(attention)
    actual = traverse_util.flatten_dict(torch_import.variables(model, state_dict, INPUT))
    for name, value in state_dict.items():
        if not name.endswith("num_batches_tracked"):
            found = actual.pop(location(name, attention))
            np.testing.assert_array_equal(found, in_our_layout(value, found.shape), err_msg=name)
    assert not actual


@pytest.mark.parametrize("attention", ATTENTION)
def test_imported_variables_are_those_of_the_model(attention):
    model, state_dict = resnet18(attention)
    actual = torch_import.variables(model, state_dict, INPUT)
    x = np.zeros(INPUT, np.float32)
    expected = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    assert jax.tree.map(np.shape, actual) == jax.tree.map(np.shape, expected)


def test_layout_by_hand():
    model, state_dict = resnet18("none")
    state_dict["conv1.weight"] = np.arange(4 * 3 * 3 * 3.0).reshape(4, 3, 3, 3)
    state_dict["fc.weight"] = np.arange(7 * 32.0).reshape(7, 32)
    params = torch_import.variables(model, state_dict, INPUT)["params"]
    # Output 3, input 1, row 0, column 2 is element 3·27 + 1·9 + 0·3 + 2 of the PyTorch array.
    assert params["conv1"]["kernel"][0, 2, 1, 3] == 92
    assert params["fc"]["kernel"][5, 6] == 6 * 32 + 5


def test_pixels_are_read_row_by_row():
    state_dict = draw(norm_shapes("bn", 6))
    state_dict["bn.weight"] = np.arange(6.0)
    variables = torch_import.variables(SpatialNAM(), state_dict, (1, 2, 3, 4))
    np.testing.assert_array_equal(variables["params"]["nam_bn"]["scale"], [[0, 1, 2], [3, 4, 5]])


MODULES = [
    (ChannelNAM, norm_shapes("bn2", 4)),
    (SpatialNAM, norm_shapes("bn", 6)),
    (NAM, norm_shapes("Channel_Att.bn2", 4) | norm_shapes("Spatial_Att.bn", 6)),
]


@pytest.mark.parametrize(("module", "shapes"), MODULES)
@pytest.mark.parametrize("running", [None, False, True])
def test_modules_of_nam_are_taken(module, shapes, running):
    state_dict = draw(shapes)
    module = module(use_running_average=running)
    variables = torch_import.variables(module, state_dict, (1, 2, 3, 4))
    leaves = {leaf.tobytes() for leaf in jax.tree.leaves(variables)}
    expected = {v.tobytes() for k, v in state_dict.items() if "num_batches" not in k}
    assert leaves == expected


def test_num_batches_tracked_may_be_absent():
    state_dict = draw(norm_shapes("bn2", 4))
    expected = torch_import.variables(ChannelNAM(), state_dict, (1, 2, 3, 4))
    del state_dict["bn2.num_batches_tracked"]
    actual = torch_import.variables(ChannelNAM(), state_dict, (1, 2, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtype_is_kept(dtype):
    # NumPy arrays: float64 survives although JAX would not have it.
    state_dict = draw(norm_shapes("bn2", 4), dtype)
    variables = torch_import.variables(ChannelNAM(), state_dict, (1, 2, 3, 4))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(dtype)}


def test_all_that_does_not_fit_is_listed():
    model, state_dict = resnet18("nam")
    del state_dict["layer2.0.nam.Spatial_Att.bn.weight"]
    del state_dict["fc.bias"]
    state_dict["layer1.0.se.weight"] = np.ones((2, 5))
    state_dict["fc.weight"] = np.ones((10, 32))
    state_dict["layer1.0.conv1.weight"] = np.ones((3, 3, 4, 4))
    with pytest.raises(ValueError, match="does not fit") as error:
        torch_import.variables(model, state_dict, INPUT)
    assert (
        "missing: fc.bias (7,), layer2.0.nam.Spatial_Att.bn.weight (32,); "
        "left over: layer1.0.se.weight (2, 5); "
        "misshapen: fc.weight (10, 32) instead of (7, 32), "
        "layer1.0.conv1.weight (3, 3, 4, 4) instead of (4, 4, 3, 3)."
    ) in str(error.value)


@pytest.mark.parametrize("module", [nn.Dense(3), nn.BatchNorm()])
def test_other_modules_are_refused(module):
    with pytest.raises(TypeError, match=f"got {type(module).__name__}"):
        torch_import.variables(module, {}, (1, 4))
