"""What PyTorch code calls the modules of this library.

Backbones are named as in torchvision, attention modules as in the reference code of each.
"""

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from flax import linen as nn

from nam_jax.attention import NAMES, attention
from nam_jax.models.mobilenet_v2 import MobileNetV2
from nam_jax.models.resnet import Bottleneck, ResNet
from nam_jax.variables import TreePath

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
    "eca": "eca",
    "coordatt": "coordatt",
}

# Names that other code in circulation has for the same, and what they become.
_ALIASES: Rules = (
    (r"\bshortcut\.", "downsample."),
    (r"\bse_module\.", "se."),
    (r"\bse\.fc\.0\.", "se.fc1."),
    (r"\bse\.fc\.2\.", "se.fc2."),
    # Triplet attention as released: each gate is named for the plane that it gates.
    (r"\bcw\.conv\.", "ChannelGateH.spatial."),
    (r"\bhc\.conv\.", "ChannelGateW.spatial."),
    (r"\bhw\.conv\.", "SpatialGate.spatial."),
    (r"\btriplet\.", "triplet_attention."),
    (r"\bconv\.[34]\.(?=ChannelGate[HW]\.|SpatialGate\.)", "triplet_attention."),
    # ECA as in timm, which calls all attention so, and as released within MobileNetV2.
    (r"\b(se|conv\.[34])\.(?=conv\.weight$)", "eca."),
)

# What code calls the classifier of a network.
_HEADS = frozenset({"fc", "linear", "head", "classifier", "last_linear"})

# What entries are called that count or cost something, and are no weights.
_COUNTERS = frozenset({"num_batches_tracked", "n_averaged", "total_ops", "total_params"})

# The first convolution of a network, which sees the channels of the images.
STEMS = ("conv1.weight", "features.0.0.weight")

# Prefixes are looked for in so many parts of a name.
MOST_PREFIXES = 10

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
    for name in NAMES:
        if name not in ("none", "nam_tied") and type(module) is attention(name):
            return _ATTENTION.get(name, ())
    raise TypeError(
        "PyTorch weights can be imported into a network of nam_jax.models or an attention module "
        f"of nam_jax that has parameters; got {type(module).__name__}."
    )


def _network_rules(name: str, last_norm: str, backbone: Rules) -> Rules:
    if name == "nam_tied":
        return ((r"nam_bn", last_norm), *backbone)
    slot = ((r"attention", _SLOTS[name]),) if name in _SLOTS else ()
    return (*backbone, *slot, *_ATTENTION.get(name, ()))


def torch_name(path: TreePath, rules: Rules) -> str:
    """PyTorch's name of a variable.

    Args:
      path: Collection, modules and leaf of the variable.
      rules: Rules of the module that has the variable, from `rules_of`.
    """
    _, *modules, leaf = path
    name = _replaced("/".join(modules), rules)
    return f"{name.replace('/', '.')}.{_LEAVES[leaf]}"


class Matched(NamedTuple):
    """The entries of a state dict under the names that are looked for.

    Attributes:
      names: New name of every entry, by the name that it has.
      prefix: Prefix that was dropped, such as `module.`, or an empty text.
      head: New names of all entries of a classifier.
      head_layers: Names of the classifier's layers, as the state dict has them after the prefix.
    """

    names: dict[str, str]
    prefix: str
    head: list[str]
    head_layers: list[str]


def is_counter(name: str) -> bool:
    """Whether an entry counts something, and is no weight."""
    return name.rpartition(".")[2] in _COUNTERS


def is_head(name: str) -> bool:
    """Whether an entry belongs to a classifier, by the first part of its name."""
    return name.partition(".")[0] in _HEADS


def matched(entries: Collection[str], wanted: Collection[str], classifier: str | None) -> Matched:
    """Renames entries as the networks here have them, and drops the prefix that all share.

    Args:
      entries: Names of a state dict, without counters.
      wanted: PyTorch's names of a module's variables.
      classifier: Name of the module's classifier, such as `classifier.1`; None without one.
    """
    plain = {name: _replaced(name, _ALIASES) for name in entries}
    if not _is_clear(plain):
        plain = {name: name for name in entries}
    prefix, plain = _without_prefix(plain, set(wanted))
    if classifier is None:
        return Matched(plain, prefix, [], [])
    layers = sorted({name.rpartition(".")[0] for name in plain.values() if is_head(name)})
    if len(layers) == 1:
        old = f"{layers[0]}."
        plain = {
            entry: f"{classifier}.{name.removeprefix(old)}" if name.startswith(old) else name
            for entry, name in plain.items()
        }
    return Matched(plain, prefix, list(filter(is_head, plain.values())), layers)


def attention_of(entries: Collection[str]) -> str:
    """The attention whose entries a state dict has, `none` without any."""
    found = {
        name for name, slot in _SLOTS.items() if any(f".{slot}." in entry for entry in entries)
    }
    if any(re.match(r"bam\d+\.", entry) for entry in entries):
        found.add("bam")
    if {"nam_channel", "nam_spatial"} <= found:
        return "nam"
    return min(found - {"nam"}, default="none")


def _replaced(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _is_clear(renamed: dict[str, str]) -> bool:
    """Whether no two names become one."""
    return len(set(renamed.values())) == len(renamed)


def _without_prefix(plain: dict[str, str], wanted: set[str]) -> tuple[str, dict[str, str]]:
    """Drops as many first parts that all share as let the most wanted names be found."""
    best, prefix = ("", plain), ""
    for _ in range(MOST_PREFIXES):
        part = _shared_part(plain.values())
        prefix += part
        plain = {entry: name.removeprefix(part) for entry, name in plain.items()}
        found = wanted & set(plain.values())
        if _is_clear(plain) and len(found) > len(wanted & set(best[1].values())):
            best = prefix, plain
    return best


def _shared_part(names: Collection[str]) -> str:
    """The part that all names begin with, but for those of a classifier beside them."""
    firsts = {name.partition(".")[0] for name in names}
    if len(firsts) > 1:
        firsts -= _HEADS
    part = f"{firsts.pop()}." if len(firsts) == 1 else ""
    return part if any(name.startswith(part) for name in names) else ""
