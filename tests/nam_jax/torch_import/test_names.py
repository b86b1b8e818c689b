"""What code in circulation calls the same weights: prefixes, classifiers, counters, layouts."""

import functools

import jax
import numpy as np
import pytest

from nam_jax import models, torch_import
from nam_jax.attention import attention
from nam_jax.models.resnet import BasicBlock, ResNet
from tests.helpers.arrays import assert_close
from tests.helpers.torch_weights import layers
from tests.helpers.torch_weights.layers import entries, resnet, state_dict_of

INPUT = (1, 16, 8, 3)
BLOCKS = {"bottleneck": False, "sizes": (1, 1), "width": 4, "maps": ((16, 8), (8, 4))}


@functools.cache
def module(name="none"):
    return ResNet(BasicBlock, (1, 1), num_classes=7, attention=name, stem="cifar", width=4)


@functools.cache
def stored(name="none"):
    return state_dict_of(entries(resnet(name, num_classes=7, **BLOCKS)))


def renamed(state_dict, old, new):
    """With another beginning of some names."""
    return {
        new + name.removeprefix(old) if name.startswith(old) else name: value
        for name, value in state_dict.items()
    }


@functools.cache
def plain_variables(name):
    return torch_import.variables(module(name), stored(name), INPUT)


def assert_same(state_dict, name="none", network=None, expected=None, **options):
    if expected is None:
        plain = plain_variables(name)
    else:
        plain = torch_import.variables(network or module(name), expected, INPUT)
    plan = torch_import.plan(network or module(name), state_dict, INPUT, **options)
    jax.tree.map(np.testing.assert_array_equal, plan.variables(), plain)
    return plan


PREFIXES = [
    *("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "my_own."),
    *("module._orig_mod.", "_orig_mod.module.", "module.module.", "a.b.c.d.e."),
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefix_of_all_names_is_dropped(prefix):
    prefixed = {prefix + name: value for name, value in stored("nam").items()}
    prefixed["n_averaged"] = np.array(3)
    plan = assert_same(prefixed, "nam")
    assert plan.adaptations == [f"prefix {prefix!r} dropped"]


@pytest.mark.parametrize("prefix", ["backbone.", "module.encoder."])
@pytest.mark.parametrize("head", ["fc.", "head.", "head.fc."])
def test_classifier_beside_a_prefixed_backbone(prefix, head):
    beside, within = prefix.split(".")[:-1], renamed(stored(), "fc.", "")
    names = {name: prefix + name for name in within if name not in ("weight", "bias")}
    outer = "".join(f"{part}." for part in beside[:-1])
    names |= {name: outer + head + name for name in ("weight", "bias")}
    plan = assert_same({names[name]: value for name, value in within.items()})
    assert plan.adaptations[0] == f"prefix {prefix!r} dropped"


def test_prefix_stays_where_two_names_would_become_one():
    doubled = {f"backbone.{name}": value for name, value in stored().items()}
    doubled |= {name: np.ones(1) for name in ("fc.weight", "fc.bias")}
    with pytest.raises(torch_import.MisfitError, match=r"begin with 'backbone\.': take"):
        torch_import.plan(module(), doubled, INPUT)


@pytest.mark.parametrize("module_name", ["nam_channel", "se"])
def test_names_of_a_module_alone_are_no_prefix(module_name):
    listed = state_dict_of(entries(layers.attention(module_name, 32, 3, 5)))
    alone = attention(module_name)()
    plan = torch_import.plan(alone, listed, (1, 3, 5, 32))
    assert plan.adaptations == []
    within = {f"layer1.0.att.{name}": value for name, value in listed.items()}
    plan = torch_import.plan(alone, within, (1, 3, 5, 32))
    assert plan.adaptations == ["prefix 'layer1.0.att.' dropped"]


@pytest.mark.parametrize(
    "head",
    ["linear.", "head.", "classifier.", "last_linear.", "classifier.1.", "fc.1.", "head.fc."],
)
def test_classifier_by_another_name(head):
    plan = assert_same(renamed(stored(), "fc.", head))
    assert plan.adaptations == [f"'{head[:-1]}' taken for the classifier 'fc'"]
    assert plan.fresh == []
    assert assert_same(renamed(stored(), "fc.", head), new_head=None).fresh == []


@pytest.mark.slow
@pytest.mark.parametrize("head", ["fc.", "linear.", "head."])
def test_classifier_of_mobilenet_by_another_name(head):
    network, listed = layers.network("mobilenet_v2")
    plain = state_dict_of(listed)
    plan = assert_same(renamed(plain, "classifier.1.", head), network=network, expected=plain)
    assert plan.adaptations == [f"'{head[:-1]}' taken for the classifier 'classifier.1'"]


def test_counters_are_ignored_at_any_depth():
    counted = dict(stored())
    for place in ("", "layer1.", "layer1.0.conv1.", "fc."):
        counted |= {f"{place}{name}": np.zeros(1) for name in ("total_ops", "total_params")}
    assert_same({**counted, "n_averaged": np.array(7)})


@pytest.mark.parametrize("several", [("fc.1", "fc.3"), ("classifier.0", "head.0.fc")])
@pytest.mark.parametrize("new_head", [True, None])
def test_classifier_of_several_layers_is_left_out_for_a_fresh_one(several, new_head):
    entry = {"weight": np.ones((5, 8)), "bias": np.ones(5), "running_mean": np.ones(5)}
    state_dict = {name: value for name, value in stored().items() if not name.startswith("fc.")}
    state_dict |= {f"{layer}.{name}": value for layer in several for name, value in entry.items()}
    plan = torch_import.plan(module(), state_dict, INPUT, new_head=new_head)
    assert plan.fresh == ["fc"]
    assert plan.adaptations == [f"classifier of several layers left out ({', '.join(several)})"]
    with pytest.raises(torch_import.MisfitError, match=r"has 2 layers\. Try new_head=True\.\n"):
        torch_import.plan(module(), state_dict, INPUT)


@pytest.mark.parametrize(("classes", "expected"), [(7, []), (9, ["fc"])])
def test_fresh_classifier_only_for_another_number_of_classes(classes, expected):
    listed = entries(resnet("none", num_classes=classes, **BLOCKS))
    state_dict = renamed(state_dict_of(listed), "fc.", "linear.")
    assert torch_import.fresh(module(), state_dict, INPUT, new_head=None) == expected


# Layouts.


@pytest.mark.parametrize("slot", ["se.fc1.", "se_module.fc1.", "se.fc.0."])
def test_linear_layers_as_convolutions(slot):
    def changed(name, value):
        block, dot, rest = name.partition("se.fc")
        number = {"1": slot, "2": slot.replace("fc1", "fc2").replace(".0.", ".2.")}
        new = f"{block}{number[rest[0]]}{rest[2:]}" if dot else name
        return new, value[..., None, None] if dot or name == "fc.weight" else value

    assert_same(dict(changed(*item) for item in stored("se").items()), "se")


def test_convolutions_as_linear_layers():
    def squeezed(name, value):
        return value[..., 0, 0] if value.shape[2:] == (1, 1) else value

    network, listed = layers.network("resnet18", "bam")
    plain = state_dict_of(listed)
    state_dict = {name: squeezed(name, value) for name, value in plain.items()}
    assert sum(plain[name].shape != value.shape for name, value in state_dict.items()) == 9
    assert_same(state_dict, network=network, expected=plain)


RELEASED = {"ChannelGateH.spatial": "cw.conv", "ChannelGateW.spatial": "hc.conv"}
RELEASED |= {"SpatialGate.spatial": "hw.conv"}


def as_released(state_dict):
    for old, new in RELEASED.items():
        state_dict = {name.replace(old, new): value for name, value in state_dict.items()}
    return state_dict


@pytest.mark.parametrize("slot", ["triplet", "triplet_attention"])
def test_triplet_attention_as_released(slot):
    changed = as_released(stored("tam"))
    assert "layer1.0.triplet_attention.cw.conv.conv.weight" in changed
    assert_same({k.replace("triplet_attention", slot): v for k, v in changed.items()}, "tam")


def test_triplet_attention_alone():
    """Each gate from the axis that its name leaves out: cw pools the height, hc the width."""
    listed = entries(layers.attention("tam", 4, 3, 5))
    plain = state_dict_of(listed)
    alone = attention("tam")(use_running_average=True)
    variables = torch_import.variables(alone, as_released(plain), (1, 3, 5, 4))
    for old, gate in (("cw", "gate_h"), ("hc", "gate_w"), ("hw", "gate_c")):
        expected = as_released(plain)[f"{old}.conv.bn.bias"]
        np.testing.assert_array_equal(variables["params"][gate]["bn"]["bias"], expected)


@pytest.mark.slow
def test_triplet_attention_within_the_convolutions_of_mobilenet():
    network, listed = layers.network("mobilenet_v2", "tam")
    plain = state_dict_of(listed)

    def changed(name):
        place = "conv.3" if name.startswith("features.1.") else "conv.4"
        return name.replace("triplet_attention", place)

    for state_dict in (plain, as_released(plain)):
        inside = {changed(name): value for name, value in state_dict.items()}
        assert_same(inside, network=network, expected=plain)


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 3])
def test_eca_as_released_within_mobilenet(length):
    """Last in the convolutions of every block, there with shorter kernels than here, of 3."""
    network, listed = layers.network("mobilenet_v2", "eca")
    plain, released = state_dict_of(listed), {}
    for name, value in plain.items():
        if ".eca." in name and length == 1:
            value[..., [0, 2]] = 0
            value = value[..., 1:2]
        place = "conv.3." if name.startswith("features.1.") else "conv.4."
        released[name.replace("eca.", place)] = value
    plan = assert_same(released, network=network, expected=plain)
    longer = "17 kernels along the channels (ECA) with zeros at both ends"
    assert plan.adaptations == ([longer] if length == 1 else [])


def test_eca_as_timm_calls_it():
    assert_same({name.replace(".eca.", ".se."): v for name, v in stored("eca").items()}, "eca")


@pytest.mark.parametrize(("given", "wanted"), [(1, 3), (1, 5), (3, 5)])
def test_shorter_kernels_along_the_channels_do_the_same(given, wanted):
    kernel = np.random.default_rng(0).standard_normal((1, 1, given)).astype(np.float32)
    x = np.random.default_rng(1).standard_normal((2, 3, 5, 8)).astype(np.float32)

    def output(kernel_size):
        module = attention("eca")(kernel_size=kernel_size)
        variables = torch_import.variables(module, {"conv.weight": kernel}, x.shape)
        assert variables["params"]["conv"]["kernel"].shape == (kernel_size, 1, 1)
        return module.apply(variables, x)

    assert_close(output(wanted), np.asarray(output(given)), 1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 1, 5), (2, 1, 1), (1, 1)])
def test_other_kernels_along_the_channels_do_not_fit(shape):
    module = attention("eca")(kernel_size=3)
    with pytest.raises(torch_import.MisfitError, match=r"misshapen: conv\.weight"):
        torch_import.plan(module, {"conv.weight": np.ones(shape)}, (1, 3, 5, 8))


@pytest.mark.parametrize("name", ["half", "simam"])
def test_attention_without_parameters_takes_a_plain_network(name):
    assert assert_same(stored(), name, expected=stored()).fresh == []


def test_shortcut_is_another_name_of_downsample():
    assert_same({name.replace("downsample", "shortcut"): v for name, v in stored().items()})


def test_whole_numbers_of_colours_are_summed_without_overflow():
    given = stored() | {"conv1.weight": np.full_like(stored()["conv1.weight"], 100, np.uint8)}
    grey = torch_import.variables(module(), given, (1, 16, 8, 1))
    assert (grey["params"]["conv1"]["kernel"] == 300).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_colour_weights_on_grey_images(dtype):
    """The logits are those of the same image in three equal channels."""
    given = {name: np.abs(value).astype(dtype) for name, value in stored().items()}
    plan = torch_import.plan(module(), given, (1, 16, 8, 1))
    assert plan.adaptations == ["conv1.weight summed over its 3 channels"]
    grey, colour = plan.variables(), torch_import.variables(module(), given, INPUT)
    assert grey["params"]["conv1"]["kernel"].dtype == dtype
    assert_logits_agree(grey, colour, 3e-3 if dtype == np.float16 else 1e-5)


def test_grey_weights_on_colour_images():
    kernel = np.abs(stored()["conv1.weight"][:, :1])
    given = {name: np.abs(value) for name, value in stored().items()} | {"conv1.weight": kernel}
    plan = torch_import.plan(module(), given, INPUT)
    assert plan.adaptations == ["conv1.weight spread over 3 channels"]
    colour, grey = plan.variables(), torch_import.variables(module(), given, (1, 16, 8, 1))
    assert_logits_agree(grey, colour, 1e-5)


def assert_logits_agree(grey, colour, tolerance):
    image = np.random.default_rng(0).random((1, 16, 8, 1)).astype(np.float32)
    apply = jax.jit(functools.partial(module().apply, train=False))
    three = np.repeat(image, 3, -1)
    grey, colour = (jax.tree.map(np.float32, variables) for variables in (grey, colour))
    assert_close(apply(grey, image), apply(colour, three), tolerance)


def test_first_convolution_of_mobilenet_is_summed():
    network, listed = layers.network("mobilenet_v2")
    plan = torch_import.plan(network, state_dict_of(listed), (1, 16, 8, 1))
    assert plan.adaptations == ["features.0.0.weight summed over its 3 channels"]


def test_what_fits_as_it_is_is_not_adapted():
    network = models.create("resnet20", num_classes=10, stem="cifar")
    listed = entries(
        [
            layer
            for layer in resnet(
                "none",
                bottleneck=False,
                sizes=(3, 3, 3),
                width=16,
                num_classes=10,
                maps=((16, 8), (8, 4), (4, 2)),
            )
            if "downsample" not in layer.ours
        ]
    )
    assert torch_import.plan(network, state_dict_of(listed), INPUT).adaptations == []
