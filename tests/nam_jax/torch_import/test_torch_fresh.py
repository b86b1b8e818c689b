"""What a state dict does not have: the attention of a backbone, and another head."""

import logging

import jax
import numpy as np
import pytest
from flax import traverse_util

from nam_jax import torch_import
from nam_jax.models.resnet import BasicBlock, ResNet
from tests.helpers.torch_layers import (
    INPUT,
    assert_imported,
    entries,
    network,
    resnet,
    state_dict_of,
)

SOME = [("resnet18", "bam"), ("mobilenet_v2", "se")]


def fresh_modules(family, name):
    if name == "bam":
        return [f"bam{n}" for n in ((1, 2, 3) if family == "resnet18" else (3, 6, 13))]
    blocks = [f"layer{stage}_{index}" for stage in range(1, 5) for index in range(2)]
    blocks = blocks if family == "resnet18" else [f"block{n}" for n in range(1, 18)]
    return [f"{block}/attention" for block in blocks]


@pytest.mark.parametrize(("family", "name"), SOME)
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
    assert all(module in record.getMessage() for module in expected)

    flat = traverse_util.flatten_dict(variables)
    wanted = traverse_util.flatten_dict(variables.abstract_variables(module, INPUT))
    assert {path: leaf.shape for path, leaf in flat.items()} == {
        path: leaf.shape for path, leaf in wanted.items()
    }
    own = {p: flat.pop(p) for p in wanted if "/".join(p[1:]).startswith(tuple(expected))}
    assert_imported(traverse_util.unflatten_dict(flat), backbone, listed)
    for path, leaf in own.items():
        assert leaf.dtype == np.float32
        if "nam_bn" in path or path[-2].endswith("bn"):
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


@pytest.mark.parametrize("family", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("stored", [10, 0])
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
    with pytest.raises(ValueError, match="new_head=True leaves a classifier"):
        torch_import.variables(module, state_dict, INPUT)


def test_new_head_and_fresh_attention():
    module, _ = network("resnet18", "se")
    backbone = state_dict_of(network("resnet18", num_classes=10)[1])
    listed = torch_import.fresh(module, backbone, INPUT, new_head=True)
    assert sorted(listed) == sorted([*fresh_modules("resnet18", "se"), "fc"])
