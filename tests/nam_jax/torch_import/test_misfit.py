"""State dicts that do not fit: what is said of why, and how long it is."""

import functools
import pickle

import numpy as np
import pytest

from nam_jax import models, torch_import
from nam_jax.attention import attention
from nam_jax.variables import abstract_variables
from tests.helpers.torch_weights import layers
from tests.helpers.torch_weights.layers import INPUT, entries, state_dict_of
from tests.helpers.values import with_slow

CIFAR_MAPS = ((16, 8), (8, 4), (4, 2))


@functools.cache
def weights(name, attention_name="none", num_classes=7, stem=3, prefix=""):
    """Zeros with the names and shapes of a ResNet of width 4, or of MobileNetV2."""
    if name == "mobilenet_v2":
        listed = layers.network(name)[1]
    else:
        sizes = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet152": (3, 8, 36, 3)}
        maps = (*CIFAR_MAPS, (2, 1))[: len(sizes.get(name, (0,) * 3))]
        listed = entries(
            layers.resnet(
                attention_name,
                bottleneck=name in ("resnet50", "resnet152"),
                sizes=sizes.get(name, (3, 3, 3)),
                width=4,
                num_classes=num_classes,
                maps=maps,
            )
        )
    state_dict = {prefix + key: np.zeros(entry.shape) for key, entry in listed.items()}
    if stem == 7:
        state_dict[f"{prefix}conv1.weight"] = np.zeros((4, 3, 7, 7))
    return state_dict


@functools.cache
def network(name="resnet18", **options):
    width = {"width_multiplier": 0.25} if name == "mobilenet_v2" else {"width": 4}
    return models.create(name, num_classes=7, **{"stem": "cifar", **width, **options})


def misfit(module, state_dict, **options):
    with pytest.raises(torch_import.MisfitError) as caught:
        torch_import.plan(module, state_dict, INPUT, **options)
    error = caught.value
    lines = str(error).splitlines()
    assert len(lines) <= 10
    assert all(len(line) < 600 for line in lines)
    assert lines[0].startswith(f"The state dict does not fit the module: {error.causes}.")
    assert lines[1:] == error.lists
    return error


def without(state_dict, part):
    return {name: value for name, value in state_dict.items() if part not in name}


CASES = {
    "other attention": (
        *(network(attention="se"), weights("resnet18", "cbam")),
        *("its attention is cbam, and not se", {"attention": "cbam"}),
    ),
    "attention for a plain network": (
        *(network(), weights("resnet18", "nam")),
        *("its attention is nam, and not none", {"attention": "nam"}),
    ),
    "attention without parameters": (
        *(network(attention="simam"), weights("resnet18", "coordatt")),
        *("its attention is coordatt, and not simam", {"attention": "coordatt"}),
    ),
    "bam": (
        *(network(attention="nam_tied"), weights("resnet18", "bam")),
        *("its attention is bam, and not nam_tied", {"attention": "bam"}),
    ),
    "other depth": (network(), weights("resnet50"), "it is of resnet50", {"name": "resnet50"}),
    "prefixed family": (
        *(network("mobilenet_v2"), weights("resnet18", prefix="net.")),
        *("it is of resnet18", {"name": "resnet18"}),
    ),
    "other family": (
        *(network(), weights("mobilenet_v2")),
        *("it is of mobilenet_v2", {"name": "mobilenet_v2"}),
    ),
    "unknown depth": (
        *(network(), weights("resnet152")),
        *("it is of a ResNet of 3, 8, 36, 3 bottleneck blocks, unknown here", {}),
    ),
    "several": (
        *(network(attention="se"), weights("resnet50", "cbam", stem=7)),
        "it is of resnet50; its attention is cbam, and not se; "
        "its first convolution is 7×7, and not 3×3",
        {"name": "resnet50", "attention": "cbam", "stem": "imagenet"},
    ),
    "other stem": (
        *(network(stem="imagenet"), weights("resnet18")),
        *("its first convolution is 3×3, and not 7×7", {"stem": "cifar"}),
    ),
    "shortcuts with parameters": (
        *(network("resnet20"), weights("resnet20")),
        *("its shortcuts have parameters", {"shortcut": "projection"}),
    ),
    "shortcuts without": (
        *(network(), without(weights("resnet18"), "downsample")),
        *(
            "its shortcuts have no parameters, but pad_end or pad_centre",
            {"shortcut": "pad_centre"},
        ),
    ),
    "width": (
        *(network("mobilenet_v2", width_multiplier=0.5), weights("mobilenet_v2")),
        *("its width is 0.25", {"width_multiplier": 0.25}),
    ),
    "classes": (
        *(network(), weights("resnet18", num_classes=10)),
        *("its classifier has 10 classes", {"new_head": True}),
    ),
    "other features": (
        *(network(), {**weights("resnet18"), "fc.weight": np.zeros((7, 64))}),
        *("its network, attention, stem or input size may be another", {}),
    ),
    "no bias": (
        *(network(), without(weights("resnet18"), "fc.bias")),
        *("its classifier has no bias", {"new_head": True}),
    ),
    "stray entry": (
        *(network(), weights("resnet18", prefix="model.") | {"loss.weight": np.zeros(2)}),
        *("its names share no prefix, 102 begin with 'model.': take those alone", {"key": "model"}),
    ),
    "no classifier": (
        *(network(), without(weights("resnet18"), "fc.")),
        *("it has no classifier", {"new_head": True}),
    ),
    "two prefixes": (
        *(network(), weights("resnet18", prefix="q.") | weights("resnet18", prefix="k.")),
        "its names share no prefix, 102 begin with 'q.' and 102 begin with 'k.': take those alone",
        {"key": "q"},
    ),
    "foreign": (
        *(network(), {f"blocks.{i}.attn.qkv.weight": np.zeros(2) for i in range(12)}),
        *("it is of another kind of network, whose parts are called blocks", {}),
    ),
    "nothing": (network(), {"n_averaged": np.zeros(())}, "it holds no weights", {}),
    "unknown": (
        *(network(), without(weights("resnet18"), "layer2.0.bn1.bias")),
        *("its network, attention, stem or input size may be another", {}),
    ),
}


LESS_LIKELY = ("attention for a plain network", "bam", "prefixed family", "unknown depth")
LESS_LIKELY += ("other stem", "other features", "no classifier", "two prefixes")


@with_slow("case", CASES, LESS_LIKELY)
def test_most_likely_cause_comes_first(case):
    module, state_dict, causes, options = CASES[case]
    error = misfit(module, state_dict)
    assert error.causes == causes
    assert error.options == options
    given = ", ".join(f"{name}={value!r}" for name, value in options.items())
    assert str(error).splitlines()[0].endswith(f" Try {given}." if given else f"{causes}.")


def test_options_that_are_named_make_it_fit():
    for case in ("other attention", "other stem", "shortcuts with parameters", "classes"):
        module, state_dict, _, options = CASES[case]
        rest = {"new_head": True} if "new_head" in options else {}
        fields = {name: value for name, value in options.items() if name not in rest}
        stem = {"stem": module.stem, "attention": module.attention}
        name = "resnet18" if len(module.stage_sizes) == 4 else "resnet20"
        better = models.create(name, num_classes=7, width=4, **{**stem, **fields})
        torch_import.plan(better, state_dict, INPUT, **rest)


def test_spatial_attention_of_another_size():
    module = network(attention="nam_spatial")
    state_dict = dict(weights("resnet18", "nam_spatial"))
    assert "layer1.0.nam.Spatial_Att.bn.weight" in state_dict
    for name, value in state_dict.items():
        if "Spatial_Att" in name and value.ndim:
            state_dict[name] = np.zeros(value.size * 4)
    error = misfit(module, state_dict)
    assert error.causes == "its spatial attention is for images of another size"


def test_first_five_of_a_kind_are_named():
    state_dict = dict(weights("resnet18"))
    names = [name for name in sorted(state_dict) if name.endswith("bn1.weight")]
    for name in names:
        del state_dict[name]
    state_dict |= {f"more.{number:04}": np.zeros(2) for number in range(1234)}
    error = misfit(network(), state_dict)
    assert len(names) == 9
    assert error.lists == [
        f"missing: {', '.join(f'{name} ({state_dict_size(name)},)' for name in names[:5])} "
        "and 4 more",
        f"left over: {', '.join(f'more.000{number} (2,)' for number in range(5))} and 1,229 more",
    ]


def state_dict_size(name):
    return weights("resnet18")[name].size


def test_long_names_are_cut():
    error = misfit(network(), {**weights("resnet18"), "x" * 10_000: np.zeros(2)})
    assert error.lists == [f"left over: {'x' * 80}…"]


def test_every_kind_of_problem_at_once_is_few_lines():
    state_dict = {name: np.zeros((3, *value.shape)) for name, value in weights("resnet50").items()}
    del state_dict["layer1.0.conv1.weight"]
    state_dict |= {f"y{number}" * 50: np.full(2, "text") for number in range(100)}
    error = misfit(network("resnet18"), state_dict)
    kinds = [line.partition(":")[0] for line in error.lists]
    assert kinds == ["missing", "left over", "misshapen", "not real numbers"]


def test_module_alone():
    state_dict = state_dict_of(entries(layers.attention("cbam", 32, 3, 5)))
    error = misfit(attention("se")(), state_dict)
    assert error.options == {}
    assert error.lists[0].startswith("missing: fc1.weight")


def test_error_comes_whole_from_another_process():
    error = misfit(network("resnet18"), {})
    other = pickle.loads(pickle.dumps(error))
    assert (str(other), other.options, other.lists) == (str(error), error.options, error.lists)


def test_causes_do_not_depend_on_what_is_fresh():
    shapes = abstract_variables(network(), INPUT)
    assert "fc" in shapes["params"]
    error = misfit(network(), without(weights("resnet18"), "layer2.0.bn1"), new_head=None)
    assert error.options == {}
