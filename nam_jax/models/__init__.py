"""Networks by name."""

from collections.abc import Callable
from functools import partial
from typing import Any

from flax import linen as nn
from flax.typing import Dtype

from nam_jax.attention import attention as find_attention
from nam_jax.models.mobilenet_v2 import MobileNetV2
from nam_jax.models.resnet import STEMS, BasicBlock, Bottleneck, ResNet

_MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(ResNet, Bottleneck, (3, 4, 23, 3)),
    # He et al. 2015, section 4.2: three stages from 16 features, shortcuts without parameters.
    "resnet20": partial(ResNet, BasicBlock, (3, 3, 3), width=16, projection=False),
    "mobilenet_v2": MobileNetV2,
}

NAMES = tuple(_MODELS)


def create(
    name: str,
    *,
    num_classes: int,
    attention: str = "none",
    stem: str = "imagenet",
    dtype: Dtype | None = None,
    **options: Any,
) -> nn.Module:
    """Builds a network by its name.

    Args:
      name: Name of the network, one of `nam_jax.models.NAMES`.
      num_classes: Number of logits.
      attention: Name of an attention, see `nam_jax.attention`.
      stem: First layers, `imagenet` or `cifar`.
      dtype: Dtype of the computation (default: inferred from inputs and parameters).
      **options: Further fields of the network, such as `axis_name`, or `width_multiplier` of
        MobileNetV2.

    Returns:
      A linen module, called as `model.apply(variables, images, train=False)`.

    Raises:
      ValueError: there is no such network, attention or stem.

    Example:
      >>> import nam_jax
      >>> model = nam_jax.models.create("resnet50", num_classes=1000, attention="nam")
    """
    if name not in _MODELS:
        raise ValueError(f"There is no model {name!r}; choose one of {', '.join(NAMES)}.")
    find_attention(attention)
    if stem not in STEMS:
        raise ValueError(f"There is no stem {stem!r}; choose one of {', '.join(STEMS)}.")
    return _MODELS[name](
        num_classes=num_classes, attention=attention, stem=stem, dtype=dtype, **options
    )
