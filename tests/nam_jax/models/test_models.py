"""Networks: their sizes, their numbers against the reference, initialisation and options."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from nam_jax import models
from nam_jax.attention import NAMES
from nam_jax.sparsity import nam_scales
from tests.helpers.arrays import assert_close
from tests.helpers.networks import GOLDEN, network

TAGS = (
    "cifar_resnet18_nam_channel",
    "cifar_resnet18_nam",
    "cifar_resnet50_nam_channel",
    "imagenet_resnet50_nam",
    "cifar_resnet18_cbam",
    "cifar_resnet18_bam",
)
NAM_NAMES = ("nam_channel", "nam_spatial", "nam", "nam_tied")


# Of JAX's generators the one whose compilation takes the least time.
KEY = jax.random.key(0, impl="rbg")


@functools.cache
def shapes(name, attention, stem, num_classes):
    """Shapes of a network's variables; the weights themselves are never drawn."""
    model = models.create(name, num_classes=num_classes, attention=attention, stem=stem)
    size = 32 if stem == "cifar" else 224
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "attention", "stem", "num_classes", "expected"),
    [
        ("resnet50", "none", "cifar", 100, 23_705_252),
        ("resnet50", "nam_channel", "cifar", 100, 23_735_460),
        ("resnet50", "nam_spatial", "cifar", 100, 23_705_252 + 9_056),
        ("resnet50", "nam_tied", "cifar", 100, 23_705_252),
        ("resnet50", "bam", "cifar", 100, 24_063_319),
        ("resnet50", "cbam", "cifar", 100, 26_237_844),
        ("resnet50", "se", "cifar", 100, 26_220_196),
        # A gate of TAM has 2·49 weights, a scale and a shift.
        ("resnet50", "tam", "cifar", 100, 23_705_252 + 16 * 3 * 100),
        ("resnet20", "none", "cifar", 10, 269_722),
        ("resnet50", "none", "imagenet", 1000, 25_557_032),
        ("resnet50", "nam_channel", "imagenet", 1000, 25_587_240),
        ("resnet50", "nam", "imagenet", 1000, 25_614_974),
        ("resnet50", "bam", "imagenet", 1000, 25_915_099),
        ("resnet50", "cbam", "imagenet", 1000, 28_089_624),
        ("resnet50", "se", "imagenet", 1000, 28_071_976),
        ("resnet50", "tam", "imagenet", 1000, 25_557_032 + 16 * 3 * 100),
        ("mobilenet_v2", "nam_channel", "imagenet", 1000, 3_504_872 + 3_008),
        ("mobilenet_v2", "nam_spatial", "imagenet", 1000, 3_504_872 + 45_472),
        ("mobilenet_v2", "nam", "imagenet", 1000, 3_504_872 + 3_008 + 45_472),
        ("mobilenet_v2", "nam_tied", "imagenet", 1000, 3_504_872),
        ("mobilenet_v2", "tam", "imagenet", 1000, 3_504_872 + 17 * 3 * 100),
        # Those of torchvision.
        ("mobilenet_v2", "none", "imagenet", 1000, 3_504_872),
        ("resnet18", "none", "imagenet", 1000, 11_689_512),
        ("resnet34", "none", "imagenet", 1000, 21_797_672),
        ("resnet101", "none", "imagenet", 1000, 44_549_160),
    ],
)
def test_parameter_count(name, attention, stem, num_classes, expected):
    assert count(shapes(name, attention, stem, num_classes)["params"]) == expected


@pytest.mark.parametrize("tag", TAGS)
def test_reference_parameter_count(tag):
    stem, name, attention = tag.split("_", 2)
    with np.load(GOLDEN / "networks.npz") as file:
        expected, logits = file[f"{tag}:nparams"], file[f"{tag}:eval_logits"]
    assert count(shapes(name, attention, stem, logits.shape[1])["params"]) == expected


@pytest.mark.parametrize("tag", TAGS)
def test_reference_logits(x64, tag):
    golden = network(tag)
    apply = jax.jit(functools.partial(golden.module.apply, train=False))
    assert_close(apply(golden.variables, golden.x), golden.eval_logits)


@pytest.mark.parametrize(
    ("attention", "per_block"),
    [("none", 0), ("nam_channel", 1), ("nam_spatial", 1), ("nam", 2), ("nam_tied", 1)],
)
@pytest.mark.parametrize(("name", "blocks"), [("resnet20", 9), ("resnet50", 16)])
def test_sparsity_finds_every_scale(name, blocks, attention, per_block):
    scales = nam_scales(shapes(name, attention, "cifar", 10)["params"])
    assert len(scales) == blocks * per_block


IN_BLOCKS = [name for name in NAMES if name not in ("none", "nam_tied", "bam")]


@pytest.mark.parametrize("attention", IN_BLOCKS)
@pytest.mark.parametrize(("name", "stages"), [("resnet20", (3, 3, 3)), ("resnet50", (3, 4, 6, 3))])
def test_every_block_has_attention(name, stages, attention):
    params = shapes(name, attention, "cifar", 10)["params"]
    expected = {f"layer{s}_{b}" for s, blocks in enumerate(stages, 1) for b in range(blocks)}
    assert {block for block, tree in params.items() if "attention" in tree} == expected
    assert expected | {"conv1", "bn1", "fc"} == set(params)


@pytest.mark.parametrize(("name", "count"), [("resnet20", 2), ("resnet18", 3), ("resnet50", 3)])
def test_bam_stands_after_all_stages_but_the_last(name, count):
    plain, bam = (shapes(name, attention, "cifar", 10)["params"] for attention in ("none", "bam"))
    names = {f"bam{stage}" for stage in range(1, count + 1)}
    assert set(bam) == set(plain) | names
    assert {block: tree for block, tree in bam.items() if block not in names} == plain
    # BAM 1 gates what stage 1 puts out, and so on.
    for stage in range(1, count + 1):
        features = bam[f"bam{stage}"]["channel"]["fc2"]["bias"].shape
        assert bam[f"layer{stage + 1}_0"]["conv1"]["kernel"].shape[2:3] == features


@pytest.mark.parametrize(("name", "last"), [("resnet20", "bn2"), ("resnet50", "bn3")])
def test_tied_attention_renames_the_last_norm(name, last):
    plain, tied = (shapes(name, attention, "cifar", 10) for attention in ("none", "nam_tied"))
    renamed = {
        (*path[:2], "nam_bn", *path[3:]) if path[1] != "bn1" and path[2] == last else path: leaf
        for path, leaf in traverse_util.flatten_dict(plain).items()
    }
    assert traverse_util.flatten_dict(tied) == renamed


@functools.cache
def initial(name, attention="none", leaves="", **options):
    """Initial parameters of a network of width 16 by path, those whose path ends in leaves."""
    model = models.create(
        name, num_classes=10, attention=attention, stem="cifar", width=16, **options
    )

    def init(key):
        params = model.init(key, jnp.zeros((1, 8, 8, 3)), train=False)["params"]
        flat = traverse_util.flatten_dict(params, sep="/")
        return {path: leaf for path, leaf in flat.items() if path.endswith(leaves)}

    # Compiled, so that the forward pass and the leaves not asked for cost nothing.
    return jax.jit(init)(KEY)


def test_convolutions_start_he_uniform():
    kernels = [leaf for leaf in initial("resnet18", "nam").values() if leaf.ndim == 4]
    assert len(kernels) == 1 + 8 * 2 + 3
    for kernel in kernels:
        bound = math.sqrt(6 / math.prod(kernel.shape[:3]))
        # Of 400 and more uniform draws one comes within 3 % of the bound, all but surely.
        assert 0.97 * bound < np.abs(kernel).max() <= bound
        assert np.abs(kernel.mean()) < 0.1 * bound


def test_classifier_starts_as_in_pytorch():
    params = initial("resnet18", "nam")
    bound = 1 / math.sqrt(128)
    assert 0.97 * bound < np.abs(params["fc/kernel"]).max() <= bound
    assert 0.5 * bound < np.abs(params["fc/bias"]).max() <= bound


def test_norms_start_at_the_identity():
    norms = {k: v for k, v in initial("resnet18", "nam").items() if v.ndim < 4 and "fc" not in k}
    assert len(norms) == 2 * (1 + 8 * 4 + 3)
    for path, leaf in norms.items():
        np.testing.assert_array_equal(leaf, np.full(leaf.shape, path.endswith("scale")))


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(
    ("name", "attention", "last"),
    [
        ("resnet18", "none", "bn2"),
        ("resnet18", "nam", "bn2"),
        ("resnet50", "nam_channel", "bn3"),
        ("resnet50", "nam_tied", "nam_bn"),
    ],
)
def test_zero_init_is_of_every_last_norm(name, attention, last, zero):
    scales = initial(name, attention, "scale", zero_init_last_scale=zero)
    zeros = {path for path, leaf in scales.items() if not leaf.any()}
    # layer1_0/bn2/scale, but not layer1_0/attention/nam_bn/scale.
    lasts = {path for path in scales if path.startswith("layer") and path.split("/")[1] == last}
    assert len(lasts) == {"resnet18": 8, "resnet50": 16}[name]
    assert zeros == (lasts if zero else set())
    assert all((leaf == 1).all() for path, leaf in scales.items() if path not in zeros)


def test_unknown_model_is_refused():
    with pytest.raises(ValueError, match=f"'resnet9'; choose one of {', '.join(models.NAMES)}"):
        models.create("resnet9", num_classes=10)


@pytest.mark.parametrize(
    ("field", "choices"), [("attention", NAMES), ("stem", ("imagenet", "cifar"))]
)
def test_unknown_option_is_refused(field, choices):
    with pytest.raises(ValueError, match=f"{field} 'spam'; choose one of {', '.join(choices)}"):
        models.create("resnet20", num_classes=10, **{field: "spam"})
