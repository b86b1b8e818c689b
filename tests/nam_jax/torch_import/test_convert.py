"""State dicts into variables: every entry at its place, what is fresh, what does not fit."""

import functools
import itertools
import logging
import re

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from nam_jax import ChannelNAM, SpatialNAM, models, torch_import
from nam_jax.attention import attention
from nam_jax.models.resnet import BasicBlock, ResNet
from nam_jax.variables import abstract_variables
from tests.helpers.arrays import assert_close
from tests.helpers.networks import GOLDEN, draw_state_dict, nhwc
from tests.helpers.torch_weights import layers
from tests.helpers.torch_weights.layers import (
    INPUT,
    assert_imported,
    entries,
    network,
    resnet,
    state_dict_of,
)

slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", layers.ATTENTIONS)
@pytest.mark.parametrize("running", [None, False, True])
def test_every_entry_of_a_module_has_its_place(name, running):
    listed = entries(layers.attention(name, 32, 3, 5))
    module, state_dict = attention(name)(use_running_average=running), state_dict_of(listed)
    variables = torch_import.variables(module, state_dict, (2, 3, 5, 32))
    assert_imported(variables, state_dict, listed)
    assert torch_import.fresh(module, state_dict, (2, 3, 5, 32)) == []


def assert_shapes_of(module, variables):
    expected = abstract_variables(module, INPUT)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, expected)


QUICK = [("resnet18", "nam"), ("resnet18", "nam_tied"), ("mobilenet_v2", "bam")]
NETWORKS = [
    *[
        pair if pair in QUICK else slow(*pair)
        for pair in (
            *itertools.product(["resnet18"], ("none", "nam_tied", *layers.ATTENTIONS)),
            *itertools.product(["mobilenet_v2"], ("none", "nam_tied", "nam", "bam")),
        )
    ],
    slow("resnet50", "nam_tied"),
    *[slow("resnet50", name) for name in ("none", "bam", "cbam")],
]


@pytest.mark.parametrize(("family", "name"), NETWORKS)
def test_every_entry_of_a_network_has_its_place(family, name, caplog):
    module, listed = network(family, name)
    state_dict = state_dict_of(listed)
    variables = torch_import.variables(module, state_dict, INPUT)
    assert_imported(variables, state_dict, listed)
    assert_shapes_of(module, variables)
    assert not caplog.records


def test_names_are_those_of_torchvision():
    # A few by heart: the lists of the tests above are no better than the function behind them.
    for family, names in {
        "resnet50": ("layer3.5.conv3.weight", "layer2.0.downsample.1.running_var", "fc.bias"),
        "mobilenet_v2": (
            "features.0.0.weight",
            "features.1.conv.0.0.weight",
            "features.1.conv.0.1.running_mean",
            "features.1.conv.1.weight",
            "features.1.conv.2.bias",
            "features.2.conv.0.0.weight",
            "features.2.conv.1.1.weight",
            "features.2.conv.2.weight",
            "features.17.conv.3.num_batches_tracked",
            "features.18.0.weight",
            "features.18.1.bias",
            "classifier.1.weight",
        ),
    }.items():
        _, listed = network(family)
        assert set(names) <= set(listed)


def test_layout_by_hand():
    module, listed = network("resnet18")
    state_dict = state_dict_of(listed)
    state_dict["conv1.weight"] = np.arange(4 * 3 * 3 * 3.0).reshape(4, 3, 3, 3)
    state_dict["fc.weight"] = np.arange(7 * 32.0).reshape(7, 32)
    params = torch_import.variables(module, state_dict, INPUT)["params"]
    # Output 3, input 1, row 0, column 2 is element 3·27 + 1·9 + 0·3 + 2 of the PyTorch array.
    assert params["conv1"]["kernel"][0, 2, 1, 3] == 92
    assert params["fc"]["kernel"][5, 6] == 6 * 32 + 5


def test_pixels_are_read_row_by_row():
    state_dict = state_dict_of(entries(layers.attention("nam_spatial", 4, 2, 3)))
    state_dict["bn.weight"] = np.arange(6.0)
    variables = torch_import.variables(SpatialNAM(), state_dict, (1, 2, 3, 4))
    np.testing.assert_array_equal(variables["params"]["nam_bn"]["scale"], [[0, 1, 2], [3, 4, 5]])


@functools.cache
def norm():
    return state_dict_of(entries(layers.attention("nam_channel", 4, 2, 3)))


def imported(state_dict, module=None, **options):
    return torch_import.variables(module or ChannelNAM(), state_dict, (1, 2, 3, 4), **options)


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_num_batches_tracked_may_be_absent():
    without = {name: v for name, v in norm().items() if "num_batches" not in name}
    assert len(without) == len(norm()) - 1
    assert_same(imported(without), imported(norm()))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtype_is_kept(dtype):
    # NumPy arrays: float64 survives although JAX would not have it.
    variables = imported({name: value.astype(dtype) for name, value in norm().items()})
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(dtype)}


def test_arrays_are_copies():
    state_dict = {name: value.copy() for name, value in norm().items()}
    variables = imported(state_dict)
    for value in state_dict.values():
        value += 1
    assert_same(variables, imported(norm()))


def test_prefix_of_data_parallel_is_ignored():
    parallel = {f"module.{name}": value for name, value in norm().items()}
    assert_same(imported(parallel), imported(norm()))


def test_prefix_of_some_names_is_no_prefix():
    mixed = dict(norm())
    mixed["module.bn2.weight"] = mixed.pop("bn2.weight")
    listed = re.escape("\nmissing: bn2.weight (4,)\nleft over: module.bn2.weight (4,)")
    with pytest.raises(ValueError, match=listed):
        imported(mixed)


def test_all_that_does_not_fit_is_listed():
    module, listed = network("resnet18", "nam")
    state_dict = state_dict_of(listed)
    del state_dict["layer2.0.nam.Spatial_Att.bn.weight"]
    del state_dict["fc.bias"]
    state_dict["layer1.0.se.weight"] = np.ones((2, 5))
    state_dict["fc.weight"] = np.ones((10, 32))
    state_dict["layer1.0.conv1.weight"] = np.ones((3, 3, 4, 4))
    problems = (
        "\nmissing: fc.bias (7,), layer2.0.nam.Spatial_Att.bn.weight (32,)"
        "\nleft over: layer1.0.se.weight (2, 5)"
        "\nmisshapen: fc.weight (10, 32) instead of (7, 32), "
        "layer1.0.conv1.weight (3, 3, 4, 4) instead of (4, 4, 3, 3)"
    )
    for function in (torch_import.variables, torch_import.fresh):
        with pytest.raises(ValueError, match=re.escape(problems)):
            function(module, state_dict, INPUT)


def test_empty_state_dict_does_not_fit():
    with pytest.raises(ValueError, match="missing: bn2"):
        imported({})


@pytest.mark.parametrize("module", [nn.Dense(3), nn.BatchNorm(), attention("nam_tied")()])
def test_other_modules_are_refused(module):
    with pytest.raises(TypeError, match=f"got {type(module).__name__}"):
        torch_import.variables(module, {}, (1, 4))


# What a state dict does not have: the attention of a backbone, and another head.


def fresh_modules(family, name):
    if name == "bam":
        return [f"bam{n}" for n in ((1, 2, 3) if family == "resnet18" else (3, 6, 13))]
    blocks = [f"layer{stage}_{index}" for stage in range(1, 5) for index in range(2)]
    blocks = blocks if family == "resnet18" else [f"block{n}" for n in range(1, 18)]
    return [f"{block}/attention" for block in blocks]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), [("resnet18", "bam"), slow("mobilenet_v2", "se")])
def test_attention_is_fresh_where_there_is_only_a_backbone(family, name, caplog):
    module, _ = network(family, name)
    _, listed = network(family)
    backbone = state_dict_of(listed)
    with caplog.at_level(logging.WARNING, "nam_jax.torch_import"):
        variables = torch_import.variables(module, backbone, INPUT)
    expected = fresh_modules(family, name)
    assert sorted(torch_import.fresh(module, backbone, INPUT)) == sorted(expected)
    (record,) = caplog.records
    assert record.name.startswith("nam_jax.torch_import")
    assert record.levelno == logging.WARNING
    # The first of them, and how many more.
    named = [module for module in expected if module in record.getMessage()]
    assert len(named) == min(5, len(expected))
    assert len(named) == len(expected) or f"and {len(expected) - 5} more" in record.getMessage()

    assert_shapes_of(module, variables)
    flat = traverse_util.flatten_dict(variables)
    own = {p: flat.pop(p) for p in list(flat) if "/".join(p[1:]).startswith(tuple(expected))}
    assert_imported(traverse_util.unflatten_dict(flat), backbone, listed)
    for path, leaf in own.items():
        assert leaf.dtype == np.float32
        if path[-2].endswith("bn"):
            one = path[-1] in ("scale", "var")
            np.testing.assert_array_equal(leaf, np.full(leaf.shape, float(one)))
        else:
            assert np.abs(leaf).max() > 0


def test_fresh_attention_is_drawn_from_the_key():
    module = ResNet(BasicBlock, (1,), num_classes=7, attention="se", stem="cifar", width=4)
    block = {"bottleneck": False, "sizes": (1,), "width": 4, "maps": ((16, 8),)}
    backbone = state_dict_of(entries(resnet("none", num_classes=7, **block)))

    def attention_of(**options):
        variables = torch_import.variables(module, backbone, INPUT, **options)
        return np.asarray(variables["params"]["layer1_0"]["attention"]["mlp"]["fc1"]["kernel"])

    keys = [jax.random.key(seed) for seed in (0, 1)]
    default, zero, one = attention_of(), attention_of(key=keys[0]), attention_of(key=keys[1])
    np.testing.assert_array_equal(default, zero)
    assert (zero != one).all()


def test_attention_that_is_there_in_part_is_not_fresh():
    module, listed = network("resnet18", "nam")
    state_dict = state_dict_of(network("resnet18")[1])
    part = "layer3.1.nam.Channel_Att.bn2.bias"
    state_dict[part] = np.zeros(listed[part].shape)
    with pytest.raises(ValueError, match=r"missing: layer1\.0\.nam\.Channel_Att\.bn2\.bias \(4,\)"):
        torch_import.variables(module, state_dict, INPUT)


def test_other_attention_is_left_over():
    module, _ = network("resnet18", "se")
    _, listed = network("resnet18", "cbam")
    with pytest.raises(ValueError, match=r"left over: layer1\.0\.cbam\.ChannelGate"):
        torch_import.variables(module, state_dict_of(listed), INPUT)


@pytest.mark.parametrize(
    ("family", "stored"),
    [("resnet18", 10), slow("mobilenet_v2", 0), slow("resnet18", 0), slow("mobilenet_v2", 10)],
)
def test_new_head(family, stored, caplog):
    module, _ = network(family)
    _, listed = network(family, num_classes=stored or 7)
    head = ("fc.", "classifier.")
    listed = {k: v for k, v in listed.items() if stored or not k.startswith(head)}
    state_dict = state_dict_of(listed)
    variables = torch_import.variables(module, state_dict, INPUT, new_head=True)
    assert torch_import.fresh(module, state_dict, INPUT, new_head=True) == ["fc"]
    assert "fc" in caplog.text
    fc = variables["params"].pop("fc")
    features = {"resnet18": 32, "mobilenet_v2": 1280}[family]
    assert (fc["kernel"].shape, fc["bias"].shape) == ((features, 7), (7,))
    assert 0.5 * features**-0.5 < np.abs(fc["kernel"]).max() <= features**-0.5
    rest = {name: entry for name, entry in listed.items() if not name.startswith(head)}
    assert_imported(variables, state_dict, rest)
    with pytest.raises(torch_import.MisfitError, match=r"classifier.* Try new_head=True\.\n"):
        torch_import.variables(module, state_dict, INPUT)


def test_new_head_and_fresh_attention():
    module, _ = network("resnet18", "se")
    backbone = state_dict_of(network("resnet18", num_classes=10)[1])
    listed = torch_import.fresh(module, backbone, INPUT, new_head=True)
    assert sorted(listed) == sorted([*fresh_modules("resnet18", "se"), "fc"])


@pytest.mark.parametrize("name", [pytest.param("resnet50", marks=pytest.mark.slow), "mobilenet_v2"])
def test_logits_of_torchvision(x64, name):
    # Of its version 0.28, in float64, for weights in its naming.
    with np.load(GOLDEN / "torchvision.npz") as file:
        stored = {key.split(":")[1]: file[key] for key in file.files if key.startswith(name)}
    state_dict = draw_state_dict(stored["names"], stored["shapes"], int(stored["seed"]))
    x = nhwc(stored["x"])
    model = models.create(name, num_classes=stored["eval_logits"].shape[1])
    variables = torch_import.variables(model, state_dict, x.shape)
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, x)
    assert_close(logits, stored["eval_logits"])
