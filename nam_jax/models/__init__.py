"""Networks by name."""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from flax import linen as nn
from flax.core import FrozenDict
from flax.typing import Dtype

from nam_jax.attention import hyperparameters
from nam_jax.attention.base import check_name
from nam_jax.models.blocks import STEMS
from nam_jax.models.mobilenet_v2 import MobileNetV2
from nam_jax.models.resnet import SHORTCUTS, BasicBlock, Bottleneck, ResNet

__all__ = [
    "NAMES",
    "BasicBlock",
    "Bottleneck",
    "MobileNetV2",
    "ResNet",
    "create",
    "has_field",
]

# He et al. 2015, section 4.2: three stages from 16 features, shortcuts without parameters.
_CIFAR_RESNET = partial(ResNet, BasicBlock, width=16, shortcut="pad_centre")

_MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(ResNet, Bottleneck, (3, 4, 23, 3)),
    "resnet20": partial(_CIFAR_RESNET, (3, 3, 3)),
    "resnet32": partial(_CIFAR_RESNET, (5, 5, 5)),
    "resnet44": partial(_CIFAR_RESNET, (7, 7, 7)),
    "resnet56": partial(_CIFAR_RESNET, (9, 9, 9)),
    "resnet110": partial(_CIFAR_RESNET, (18, 18, 18)),
    "mobilenet_v2": MobileNetV2,
}

#: Names of the networks, for `create`.
NAMES = tuple(_MODELS)


def create(
    name: str,
    *,
    num_classes: int,
    attention: str = "none",
    stem: str = "imagenet",
    shortcut: str = "",
    dtype: Dtype | None = None,
    **options: Any,
) -> nn.Module:
    """Builds a network by its name.

    Args:
      name: Name of the network, one of `nam_jax.models.NAMES`.
      num_classes: Number of logits.
      attention: Name of an attention, see `nam_jax.attention`.
      stem: First layers, `imagenet` or `cifar`.
      shortcut: Shortcut of a ResNet where the number of features changes: `projection`,
        `pad_end` or `pad_centre`, see `nam_jax.models.resnet.ResNet`. Empty: that of the
        network, `pad_centre` for the small ones of CIFAR (`resnet20` to `resnet110`) and
        `projection` for the others.
      dtype: Dtype of the computation (default: inferred from inputs and parameters).
      **options: Further fields of the network, such as `axis_name`, `width_multiplier` of
        MobileNetV2, or `attention_options`, hyper-parameters of the attention by name.

    Returns:
      A linen module, called as `model.apply(variables, images, train=False)`.

    Raises:
      ValueError: there is no such network, attention, stem or shortcut, or the network or the
        attention has no such field.

    Example:
      >>> import nam_jax
      >>> model = nam_jax.models.create("resnet50", num_classes=1000, attention="nam")
    """
    fields = _fields(name)
    _check_hyperparameters(attention, options.get("attention_options", {}))
    check_name("stem", stem, STEMS)
    if shortcut not in ("", *SHORTCUTS):
        raise ValueError(
            f"There is no shortcut {shortcut!r}; choose one of {', '.join(SHORTCUTS)}, or an empty "
            "text for the network's own."
        )
    if shortcut:
        options["shortcut"] = shortcut
    # A dict would make a network that cannot be a static argument of jax.jit.
    options["attention_options"] = FrozenDict(options.get("attention_options", {}))
    for field in options:
        if field not in fields:
            raise ValueError(
                f"The model {name} has no field {field!r}; allowed: {', '.join(fields)}."
            )
    return _MODELS[name](
        num_classes=num_classes, attention=attention, stem=stem, dtype=dtype, **options
    )


def _check_hyperparameters(attention: str, names: Iterable[str]) -> None:
    allowed = hyperparameters(attention)
    for name in names:
        if name not in allowed:
            some = f"allowed: {', '.join(allowed)}" if allowed else "it has none, leave it out"
            raise ValueError(f"The attention {attention} has no hyper-parameter {name!r}; {some}.")


def has_field(name: str, field: str) -> bool:
    """Whether a network can be built with a field, such as `shortcut` or `width_multiplier`.

    Args:
      name: Name of the network, one of `nam_jax.models.NAMES`.
      field: Name of the field.

    Raises:
      ValueError: there is no such network.
    """
    return field in _fields(name)


def _fields(name: str) -> list[str]:
    check_name("model", name, NAMES)
    signature = inspect.signature(_MODELS[name])
    return [field for field in signature.parameters if field not in ("parent", "name")]
