"""Every network with every attention, folded and as ONNX, against the network in float64."""

import functools
import math
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from flax import linen as nn

import nam_jax
from nam_jax import models
from nam_jax.attention import NAMES as ATTENTIONS
from nam_jax.export.fold import fold
from nam_jax.export.trace import ELEMENTWISE, Graph, Value, trace
from nam_jax.models import mobilenet_v2
from nam_jax.models.mobilenet_v2 import Stage
from nam_jax.models.resnet import SHORTCUTS, Bottleneck, ResNet
from tests.helpers.networks import random_variables
from tests.helpers.values import with_slow

pytestmark = pytest.mark.usefixtures("x64")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 16, 12, 3)).astype(np.uint8)
NORMALISED = (IMAGES / 255 - MEAN) / STD


def small(name: str, attention: str = "none", **options: Any) -> nn.Module:
    """A network cut short, but for what is in it once."""
    model = models.create(name, num_classes=6, attention=attention, **options)
    if isinstance(model, ResNet):
        return model.clone(stage_sizes=(1, 1), width=16)
    return model.clone(width_multiplier=0.5)


def variables_of(model: nn.Module) -> Any:
    """Random weights and statistics, with negative and zero scales, that keep activations small."""
    drawn = random_variables(model, NORMALISED[:1])

    def tamed(path: Any, leaf: np.ndarray) -> np.ndarray:
        if path[-1].key == "kernel":
            leaf = leaf * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        if path[-1].key == "scale":
            leaf.ravel()[0] = 0
        return leaf

    return jax.tree_util.tree_map_with_path(tamed, drawn)


def run(file: bytes, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


def check(model: nn.Module, variables: Any = None) -> onnx.ModelProto:
    """Compares a network with what becomes of it; gives its ONNX graph."""
    variables = variables_of(model) if variables is None else variables
    apply = functools.partial(model.apply, variables, train=False)
    expected = np.asarray(jax.jit(apply)(NORMALISED))
    assert expected.dtype == np.float64

    graph = fold(trace(apply, jax.ShapeDtypeStruct(NORMALISED.shape, jnp.float64)))
    folded = jax.jit(functools.partial(evaluate, graph))(NORMALISED)
    assert np.abs(folded - expected).max() <= 1e-12 * np.abs(expected).max()

    file = nam_jax.export_onnx(model, variables, IMAGES.shape[1:], mean=MEAN, std=STD)
    best = np.argsort(-expected)[:, :5]
    for count in (1, 3, 7):
        logits = run(file, IMAGES[:count])
        assert logits.dtype == np.float32
        assert np.abs(logits - expected[:count]).max() <= 1e-4 * np.abs(expected).max()
        np.testing.assert_array_equal(np.argsort(-logits)[:, :5], best[:count])
    return onnx.load_from_string(file)


def evaluate(graph: Graph, x: jax.Array) -> jax.Array:
    """What a graph makes of an input, computed by JAX."""
    values = {graph.input: x}
    for operation in graph.operations:
        operands = [values[v] if isinstance(v, Value) else v for v in operation.operands]
        if operation.name in ELEMENTWISE:
            shape = operation.output.shape
            operands = [jnp.broadcast_to(operand, shape) for operand in operands]
        values[operation.output] = operation.primitive.bind(*operands, **operation.params)
    return values[graph.output]


def nodes(model: onnx.ModelProto, *kinds: str) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type in kinds]


def unfolded(model: onnx.ModelProto) -> list[str]:
    """Arithmetic on layers that nothing else uses, with a number for each channel or for all."""
    sizes = {x.name: math.prod(x.dims[2:]) for x in model.graph.initializer}
    uses = Counter(name for node in model.graph.node for name in node.input)
    made = {node.output[0] for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
    layers = {name for name in made if uses[name] == 1}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in ("Mul", "Add", "Sub", "Div")
        and any(name in layers for name in node.input)
        and any(sizes.get(name) == 1 for name in node.input)
    ]


# Their operations are in test_onnx_operations.py as well.
@with_slow("attention", ATTENTIONS, set(ATTENTIONS) - {"none", "nam_tied", "nam", "cbam"})
def test_every_attention(attention: str) -> None:
    model = check(small("resnet20", attention, stem="cifar"))
    assert not nodes(model, "Tanh", "Div")
    assert not unfolded(model)
    # That of SimAM is of the image's own variance, in either block.
    assert len(nodes(model, "Sqrt")) == 2 * (attention == "simam")


# With BatchNorms of their own.
@with_slow(
    "attention", ["nam_channel", "nam", "bam", "tam", "coordatt"], ("nam", "bam", "tam", "coordatt")
)
def test_fresh_networks(attention: str) -> None:
    """Statistics of 0 and 1, with which a BatchNorm is no more than a factor."""
    model = small("resnet20", attention, stem="cifar")
    init = jax.jit(functools.partial(model.init, train=False))
    fresh = init(jax.random.key(0), NORMALISED[:1])
    check(model, jax.tree.map(lambda leaf: leaf.astype(np.float64), fresh))


@pytest.mark.parametrize("attention", ["none", "nam_tied", "nam", "bam", "coordatt"])
@pytest.mark.slow
def test_every_attention_in_mobilenet(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = (Stage(1, 16, 1, 1), Stage(6, 16, 1, 1), Stage(6, 32, 1, 2))
    monkeypatch.setattr(mobilenet_v2, "STAGES", stages)
    model = check(small("mobilenet_v2", attention))
    # The ReLU6 of every layer but the projections, and that in coordinate attention of every block.
    assert len(nodes(model, "Clip")) == 7 + 3 * (attention == "coordatt")


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_every_shortcut(shortcut: str) -> None:
    model = check(small("resnet20", stem="cifar", shortcut=shortcut))
    is_projection = shortcut == "projection"
    # One of them has the mean and deviation of the images.
    assert len(nodes(model, "Conv")) == 6 + is_projection
    assert len(nodes(model, "Slice", "Pad")) == (0 if is_projection else 2)


def test_the_stem_of_imagenet_and_bottlenecks() -> None:
    model = small("resnet50", "nam_tied")
    assert isinstance(model, ResNet)
    assert model.block is Bottleneck
    assert len(nodes(check(model), "MaxPool")) == 1


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "resnet20" else pytest.mark.long)
        for name in models.NAMES
    ],
)
def test_every_network_whole(name: str) -> None:
    check(models.create(name, num_classes=6, attention="nam"))


def test_nodes_of_a_network() -> None:
    counts = []
    for attention in ("none", "nam_tied", "nam_channel", "nam"):
        model = small("resnet20", attention, stem="cifar")
        shape = (1, *IMAGES.shape[1:])
        init = functools.partial(model.init, jax.random.key(0), train=False)
        shapes = jax.eval_shape(init, jnp.zeros(shape))
        ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
        file = nam_jax.export_onnx(model, ones, IMAGES.shape[1:])
        counts.append(len(onnx.load_from_string(file).graph.node))
    # Six layers, a ReLU behind all but the last, two sums, a shortcut that is cut and padded, the
    # mean; and a node at either end.
    assert counts[0] == 6 + 5 + 2 + 2 + 1 + 2
    # A gate of channels is a convolution, a sigmoid and a product; that of positions has a product
    # and a sum in the convolution's place.
    assert [count - counts[0] for count in counts[1:]] == [2 * 3, 2 * 3, 2 * (3 + 4)]
