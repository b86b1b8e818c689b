"""What PyTorch code calls the modules of this library.

Backbones are named as in torchvision, attention modules as in the reference code of each.
"""

import re
from collections.abc import Sequence

from flax import linen as nn

from nam_jax.attention import attention
from nam_jax.models.mobilenet_v2 import MobileNetV2
from nam_jax.models.resnet import Bottleneck, ResNet

# Patterns for paths of Flax modules and what replaces them, applied one after another.
Rules = Sequence[tuple[str, str]]

_RESNET: Rules = (
    (r"layer(\d)_(\d+)", r"layer\1.\2"),
    (r"downsample_conv", "downsample.0"),
    (r"downsample_bn", "downsample.1"),
)

_MOBILENET_V2: Rules = (
    (r"stem_conv", "features.0.0"),
    (r"stem_bn", "features.0.1"),
    # The first block has no expansion.
    (r"block1/depthwise_conv", "features.1.conv.0.0"),
    (r"block1/depthwise_bn", "features.1.conv.0.1"),
    (r"block1/project_conv", "features.1.conv.1"),
    (r"block1/project_bn", "features.1.conv.2"),
    (r"block(\d+)/expand_conv", r"features.\1.conv.0.0"),
    (r"block(\d+)/expand_bn", r"features.\1.conv.0.1"),
    (r"block(\d+)/depthwise_conv", r"features.\1.conv.1.0"),
    (r"block(\d+)/depthwise_bn", r"features.\1.conv.1.1"),
    (r"block(\d+)/project_conv", r"features.\1.conv.2"),
    (r"block(\d+)/project_bn", r"features.\1.conv.3"),
    (r"block(\d+)", r"features.\1"),
    (r"last_conv", "features.18.0"),
    (r"last_bn", "features.18.1"),
    (r"^fc$", "classifier.1"),
)

_ATTENTION: dict[str, Rules] = {
    "none": (),
    "nam_channel": ((r"nam_bn", "bn2"),),
    "nam_spatial": ((r"nam_bn", "bn"),),
    "nam": ((r"channel/nam_bn", "Channel_Att.bn2"), (r"spatial/nam_bn", "Spatial_Att.bn")),
    "se": ((r"mlp/fc", "fc"),),
    "bam": (
        (r"channel/fc1", "channel_att.gate_c.gate_c_fc_0"),
        (r"channel_bn", "channel_att.gate_c.gate_c_bn_1"),
        (r"channel/fc2", "channel_att.gate_c.gate_c_fc_final"),
        (r"spatial_reduce_bn", "spatial_att.gate_s.gate_s_bn_reduce0"),
        (r"spatial_reduce", "spatial_att.gate_s.gate_s_conv_reduce0"),
        (r"spatial_dilated(\d)_bn", r"spatial_att.gate_s.gate_s_bn_di_\1"),
        (r"spatial_dilated(\d)", r"spatial_att.gate_s.gate_s_conv_di_\1"),
        (r"spatial_final", "spatial_att.gate_s.gate_s_conv_final"),
    ),
    "cbam": (
        (r"channel/fc1", "ChannelGate.mlp.1"),
        (r"channel/fc2", "ChannelGate.mlp.3"),
        (r"spatial/", "SpatialGate.spatial."),
    ),
    "tam": (
        (r"gate_h", "ChannelGateH.spatial"),
        (r"gate_w", "ChannelGateW.spatial"),
        (r"gate_c", "SpatialGate.spatial"),
    ),
}

# What a block calls its attention.
_SLOTS = {
    "nam_channel": "nam.Channel_Att",
    "nam_spatial": "nam.Spatial_Att",
    "nam": "nam",
    "se": "se",
    "cbam": "cbam",
    "tam": "triplet_attention",
}

# PyTorch's name of every kind of leaf.
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def rules_of(module: nn.Module) -> Rules:
    """How the children of a module are renamed.

    Args:
      module: Network of `nam_jax.models`, or attention module with parameters.

    Raises:
      TypeError: there is no naming for this kind of module.
    """
    if isinstance(module, ResNet):
        last_norm = "bn3" if module.block is Bottleneck else "bn2"
        return _network_rules(module.attention, last_norm, _RESNET)
    if isinstance(module, MobileNetV2):
        return _network_rules(module.attention, "project_bn", _MOBILENET_V2)
    for name, rules in _ATTENTION.items():
        if type(module) is attention(name):
            return rules
    raise TypeError(
        "PyTorch weights can be imported into a network of nam_jax.models or an attention module "
        f"of nam_jax that has parameters; got {type(module).__name__}."
    )


def _network_rules(name: str, last_norm: str, backbone: Rules) -> Rules:
    if name == "nam_tied":
        return ((r"nam_bn", last_norm), *backbone)
    slot = ((r"attention", _SLOTS[name]),) if name in _SLOTS else ()
    return (*backbone, *slot, *_ATTENTION[name])


def torch_name(path: tuple[str, ...], rules: Rules) -> str:
    """PyTorch's name of a variable.

    Args:
      path: Collection, modules and leaf of the variable.
      rules: Rules of the module that has the variable, from `rules_of`.
    """
    _, *modules, leaf = path
    name = "/".join(modules)
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return f"{name.replace('/', '.')}.{_LEAVES[leaf]}"
