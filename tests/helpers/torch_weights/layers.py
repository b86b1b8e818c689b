"""What PyTorch code calls the layers of every attention and network, and where they stand here.

Written out from the definition of each network, and not from the rules of the import.
"""

import functools
from typing import NamedTuple

import numpy as np
from flax import traverse_util

from nam_jax import models

LEAVES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


class Layer(NamedTuple):
    """A layer: names there and here, the shape of PyTorch's weight, and whether it has a bias.

    The kind is conv, turned (a conv over the plane's axes in the other order), channels (a conv
    along them), linear, norm or pixels (a norm of height and width).
    """

    theirs: str
    ours: str
    kind: str
    shape: tuple[int, ...]
    bias: bool = False


class Entry(NamedTuple):
    """An entry of a state dict, and the path of the variable (none of num_batches_tracked)."""

    shape: tuple[int, ...]
    path: tuple[str, ...] | None
    kind: str
    map_shape: tuple[int, ...]


def entries(layers, map_shapes=None):
    """All entries of the layers by PyTorch's names."""
    found = {}
    for layer in layers:
        place = tuple(layer.ours.split("/"))
        if layer.kind in ("norm", "pixels"):
            size = (int(np.prod(layer.shape)),)
            for theirs, ours in LEAVES.items():
                collection = "batch_stats" if "running" in theirs else "params"
                found[f"{layer.theirs}.{theirs}"] = Entry(
                    size, (collection, *place, ours), layer.kind, layer.shape
                )
            found[f"{layer.theirs}.num_batches_tracked"] = Entry((), None, "", ())
            continue
        kernel = Entry(layer.shape, ("params", *place, "kernel"), layer.kind, ())
        found[f"{layer.theirs}.weight"] = kernel
        if layer.bias:
            bias = Entry(layer.shape[:1], ("params", *place, "bias"), "norm", layer.shape[:1])
            found[f"{layer.theirs}.bias"] = bias
    return found


def in_our_layout(entry, value):
    """The value of an entry as the variable has it."""
    if entry.kind == "pixels":
        return value.reshape(entry.map_shape)
    layouts = {"conv": "oihw->hwio", "turned": "oihw->whio", "linear": "oi->io", "norm": "c->c"}
    layouts["channels"] = "oik->kio"
    return np.einsum(layouts[entry.kind], value)


def draw(shapes, dtype=np.float32):
    """A state dict of these shapes, with no two values alike."""
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


# By the number of channels: |(log₂ C + 1) / 2|, the nearest odd number, or the larger of two.
ECA_KERNELS = {4: 1, 8: 3, 16: 3, 24: 3, 32: 3, 40: 3, 64: 3, 80: 3, 128: 5}


def attention(name, channels, height, width, theirs="", ours=""):
    """The layers of an attention module alone, or at some place of a network."""
    layers = _attentions(channels, height, width)[name]
    return [Layer(theirs + there, ours + here, *rest) for there, here, *rest in layers]


def _attentions(channels, height, width):
    c, h, pixels = channels, max(1, channels // 16), (height, width)
    gate, mask = "channel_att.gate_c.gate_c_", "spatial_att.gate_s.gate_s_"
    return {
        "nam_channel": [("bn2", "nam_bn", "norm", (c,))],
        "nam_spatial": [("bn", "nam_bn", "pixels", pixels)],
        "nam": [
            ("Channel_Att.bn2", "channel/nam_bn", "norm", (c,)),
            ("Spatial_Att.bn", "spatial/nam_bn", "pixels", pixels),
        ],
        "se": [
            ("fc1", "mlp/fc1", "linear", (h, c)),
            ("fc2", "mlp/fc2", "linear", (c, h)),
        ],
        "bam": [
            (f"{gate}fc_0", "channel/fc1", "linear", (h, c), True),
            (f"{gate}bn_1", "channel_bn", "norm", (h,)),
            (f"{gate}fc_final", "channel/fc2", "linear", (c, h), True),
            (f"{mask}conv_reduce0", "spatial_reduce", "conv", (h, c, 1, 1), True),
            (f"{mask}bn_reduce0", "spatial_reduce_bn", "norm", (h,)),
            (f"{mask}conv_di_0", "spatial_dilated0", "conv", (h, h, 3, 3), True),
            (f"{mask}bn_di_0", "spatial_dilated0_bn", "norm", (h,)),
            (f"{mask}conv_di_1", "spatial_dilated1", "conv", (h, h, 3, 3), True),
            (f"{mask}bn_di_1", "spatial_dilated1_bn", "norm", (h,)),
            (f"{mask}conv_final", "spatial_final", "conv", (1, h, 1, 1), True),
        ],
        "cbam": [
            ("ChannelGate.mlp.1", "channel/fc1", "linear", (h, c), True),
            ("ChannelGate.mlp.3", "channel/fc2", "linear", (c, h), True),
            ("SpatialGate.spatial.conv", "spatial/conv", "conv", (1, 2, 7, 7)),
            ("SpatialGate.spatial.bn", "spatial/bn", "norm", (1,)),
        ],
        "tam": [
            ("ChannelGateH.spatial.conv", "gate_h/conv", "turned", (1, 2, 7, 7)),
            ("ChannelGateH.spatial.bn", "gate_h/bn", "norm", (1,)),
            ("ChannelGateW.spatial.conv", "gate_w/conv", "conv", (1, 2, 7, 7)),
            ("ChannelGateW.spatial.bn", "gate_w/bn", "norm", (1,)),
            ("SpatialGate.spatial.conv", "gate_c/conv", "conv", (1, 2, 7, 7)),
            ("SpatialGate.spatial.bn", "gate_c/bn", "norm", (1,)),
        ],
        "half": [],
        "eca": [("conv", "conv", "channels", (1, 1, ECA_KERNELS[c]))],
        "simam": [],
        "coordatt": [
            ("conv1", "conv1", "conv", (8, c, 1, 1), True),
            ("bn1", "bn1", "norm", (8,)),
            ("conv_h", "conv_h", "conv", (c, 8, 1, 1), True),
            ("conv_w", "conv_w", "conv", (c, 8, 1, 1), True),
        ],
    }


# Those that code in PyTorch has names for.
ATTENTIONS = tuple(_attentions(16, 1, 1))


# What a block calls its attention.
SLOTS = {
    "nam_channel": "nam.Channel_Att.",
    "nam_spatial": "nam.Spatial_Att.",
    "nam": "nam.",
    "se": "se.",
    "cbam": "cbam.",
    "tam": "triplet_attention.",
    "eca": "eca.",
    "coordatt": "coordatt.",
}


def slot(name, channels, pixels, block, ours):
    if name not in SLOTS:
        return []
    return attention(name, channels, *pixels, f"{block}.{SLOTS[name]}", f"{ours}/attention/")


def resnet(attention_name, *, bottleneck, sizes, width, num_classes, maps):
    """torchvision's ResNet with a 3×3 stem, and its attention in every block or after stages."""
    layers = [
        Layer("conv1", "conv1", "conv", (width, 3, 3, 3)),
        Layer("bn1", "bn1", "norm", (width,)),
    ]
    inputs = width
    for stage, (blocks, pixels) in enumerate(zip(sizes, maps, strict=True)):
        inner = width * 2**stage
        outputs = 4 * inner if bottleneck else inner
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        for index in range(blocks):
            there, here = f"layer{stage + 1}.{index}", f"layer{stage + 1}_{index}"
            channels = [inputs, *[inner] * (len(kernels) - 1), outputs]
            for i, k in enumerate(kernels, start=1):
                last = i == len(kernels)
                norm = "nam_bn" if last and attention_name == "nam_tied" else f"bn{i}"
                shape = (channels[i], channels[i - 1], k, k)
                layers.append(Layer(f"{there}.conv{i}", f"{here}/conv{i}", "conv", shape))
                layers.append(Layer(f"{there}.bn{i}", f"{here}/{norm}", "norm", (channels[i],)))
            if inputs != outputs:
                shape = (outputs, inputs, 1, 1)
                down = f"{there}.downsample"
                layers.append(Layer(f"{down}.0", f"{here}/downsample_conv", "conv", shape))
                layers.append(Layer(f"{down}.1", f"{here}/downsample_bn", "norm", (outputs,)))
            layers += slot(attention_name, outputs, pixels, there, here)
            inputs = outputs
        if attention_name == "bam" and stage + 1 < len(sizes):
            bam = f"bam{stage + 1}"
            layers += attention("bam", outputs, *pixels, f"{bam}.", f"{bam}/")
    return [*layers, Layer("fc", "fc", "linear", (num_classes, inputs), True)]


# Expansion, features and resolution (as a divisor of the input's) of the 17 blocks; CIFAR stem.
# Of width 0.25, rounded by hand to multiples of 8.
MOBILENET_BLOCKS = (
    [(1, 8, 1)]
    + [(6, 8, 1)] * 2
    + [(6, 8, 2)] * 3
    + [(6, 16, 4)] * 4
    + [(6, 24, 4)] * 3
    + [(6, 40, 8)] * 3
    + [(6, 80, 8)]
)
BAM_AFTER = (3, 6, 13)


def mobilenet_v2(attention_name, *, num_classes, size):
    """torchvision's MobileNetV2 of width 0.25, its attention in every block or between stages."""
    layers = [
        Layer("features.0.0", "stem_conv", "conv", (8, 3, 3, 3)),
        Layer("features.0.1", "stem_bn", "norm", (8,)),
    ]
    inputs = 8
    for number, (expansion, features, divisor) in enumerate(MOBILENET_BLOCKS, start=1):
        there, here, hidden = f"features.{number}", f"block{number}", inputs * expansion
        expand = [("expand", (hidden, inputs, 1, 1), "0.0", "0.1")] if expansion > 1 else []
        i = len(expand)
        project_bn = "nam_bn" if attention_name == "nam_tied" else "project_bn"
        for part, shape, conv, norm in [
            *expand,
            ("depthwise", (hidden, 1, 3, 3), f"{i}.0", f"{i}.1"),
            ("project", (features, hidden, 1, 1), f"{i + 1}", f"{i + 2}"),
        ]:
            bn = project_bn if part == "project" else f"{part}_bn"
            layers.append(Layer(f"{there}.conv.{conv}", f"{here}/{part}_conv", "conv", shape))
            layers.append(Layer(f"{there}.conv.{norm}", f"{here}/{bn}", "norm", shape[:1]))
        pixels = tuple(-(-length // divisor) for length in size)
        layers += slot(attention_name, features, pixels, there, here)
        if attention_name == "bam" and number in BAM_AFTER:
            layers += attention("bam", features, *pixels, f"bam{number}.", f"bam{number}/")
        inputs = features
    return [
        *layers,
        Layer("features.18.0", "last_conv", "conv", (1280, inputs, 1, 1)),
        Layer("features.18.1", "last_bn", "norm", (1280,)),
        Layer("classifier.1", "fc", "linear", (num_classes, 1280), True),
    ]


INPUT = (1, 16, 8, 3)


@functools.cache
def network(family, name="none", num_classes=7):
    """A small network, and the entries of a state dict for it."""
    if family == "mobilenet_v2":
        options = {"width_multiplier": 0.25}
        layers = mobilenet_v2(name, num_classes=num_classes, size=INPUT[1:3])
    else:
        options = {"width": 4}
        layers = resnet(
            name,
            bottleneck=family == "resnet50",
            sizes={"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}[family],
            width=4,
            num_classes=num_classes,
            maps=((16, 8), (8, 4), (4, 2), (2, 1)),
        )
    module = models.create(family, num_classes=num_classes, attention=name, stem="cifar", **options)
    return module, entries(layers)


def state_dict_of(listed):
    return draw({name: entry.shape for name, entry in listed.items()})


def assert_imported(variables, state_dict, listed):
    """Every entry is at its place, and nothing else is there."""
    actual = traverse_util.flatten_dict(variables)
    for name, entry in listed.items():
        if entry.path is not None:
            expected = in_our_layout(entry, state_dict[name])
            np.testing.assert_array_equal(actual.pop(entry.path), expected, err_msg=name)
    assert not actual
