"""PyTorch state dicts: every entry at its place, in its layout, or an error that names it."""

import functools
import re

import jax
import numpy as np
import pytest
from flax import linen as nn

from nam_jax import ChannelNAM, SpatialNAM, torch_import
from nam_jax.attention import NAMES, attention
from tests.helpers import torch_layers
from tests.helpers.torch_layers import INPUT, assert_imported, entries, network, state_dict_of

ATTENTION = [name for name in NAMES if name not in ("none", "nam_tied")]
each_attention = pytest.mark.parametrize("name", ATTENTION)


@each_attention
@pytest.mark.parametrize("running", [None, False, True])
def test_every_entry_of_a_module_has_its_place(name, running):
    listed = entries(torch_layers.attention(name, 32, 3, 5))
    module, state_dict = attention(name)(use_running_average=running), state_dict_of(listed)
    variables = torch_import.variables(module, state_dict, (2, 3, 5, 32))
    assert_imported(variables, state_dict, listed)
    assert torch_import.fresh(module, state_dict, (2, 3, 5, 32)) == []


NETWORKS = [
    *[("resnet18", name) for name in NAMES],
    *[("mobilenet_v2", name) for name in NAMES],
    *[("resnet50", name) for name in ("none", "nam_tied", "bam", "cbam")],
]


@pytest.mark.parametrize(("family", "name"), NETWORKS)
def test_every_entry_of_a_network_has_its_place(family, name, caplog):
    module, listed = network(family, name)
    state_dict = state_dict_of(listed)
    variables = torch_import.variables(module, state_dict, INPUT)
    assert_imported(variables, state_dict, listed)
    expected = variables.abstract_variables(module, INPUT)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, expected)
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
    state_dict = state_dict_of(entries(torch_layers.attention("nam_spatial", 4, 2, 3)))
    state_dict["bn.weight"] = np.arange(6.0)
    variables = torch_import.variables(SpatialNAM(), state_dict, (1, 2, 3, 4))
    np.testing.assert_array_equal(variables["params"]["nam_bn"]["scale"], [[0, 1, 2], [3, 4, 5]])


@functools.cache
def norm():
    return state_dict_of(entries(torch_layers.attention("nam_channel", 4, 2, 3)))


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
    listed = re.escape("missing: bn2.weight (4,); left over: module.bn2.weight (4,).")
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
        "missing: fc.bias (7,), layer2.0.nam.Spatial_Att.bn.weight (32,); "
        "left over: layer1.0.se.weight (2, 5); "
        "misshapen: fc.weight (10, 32) instead of (7, 32), "
        "layer1.0.conv1.weight (3, 3, 4, 4) instead of (4, 4, 3, 3)."
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
