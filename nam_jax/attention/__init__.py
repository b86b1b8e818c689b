"""Attention modules by name."""

import dataclasses
from typing import Any, Literal, overload

from nam_jax.attention.bam import BAM
from nam_jax.attention.base import AttentionModule, check_name
from nam_jax.attention.cbam import CBAM
from nam_jax.attention.coordinate import CoordinateAttention
from nam_jax.attention.eca import ECA
from nam_jax.attention.nam import NAM, ChannelNAM, NormalizationAttention, SpatialNAM, TiedNAM
from nam_jax.attention.parameter_free import HalfGate, SimAM
from nam_jax.attention.se import SqueezeExcite
from nam_jax.attention.triplet import TripletAttention

_MODULES: dict[str, type[AttentionModule] | None] = {
    "none": None,
    "nam_channel": ChannelNAM,
    "nam_spatial": SpatialNAM,
    "nam": NAM,
    "nam_tied": TiedNAM,
    "half": HalfGate,
    "se": SqueezeExcite,
    "bam": BAM,
    "cbam": CBAM,
    "tam": TripletAttention,
    "eca": ECA,
    "simam": SimAM,
    "coordatt": CoordinateAttention,
}

NAMES = tuple(_MODULES)


@overload
def attention(name: Literal["none"]) -> None: ...


# Each module has fields of its own.
@overload
def attention(name: str) -> Any: ...


def attention(name: str) -> type[AttentionModule] | None:
    """Looks up an attention module by its name.

    Args:
      name: Name of the attention: `none` or a module such as `nam` or `cbam`; the error of a
        wrong one lists them all.

    Returns:
      Class of the module, or None for `none`. A module of `nam_tied` has to be called
      with `scale=`, the scale of the BatchNorm that it gates.

    Raises:
      ValueError: there is no such attention.

    Example:
      >>> import nam_jax
      >>> module = nam_jax.attention("cbam")(reduction=8)
    """
    check_name("attention", name, NAMES)
    return _MODULES[name]


def configured(wanted: str | AttentionModule) -> AttentionModule | None:
    """An unbound module of an attention that is named, or a copy of one that is given.

    Args:
      wanted: Name of an attention, see `attention`, or an unbound module.

    Returns:
      The module; None of `none`.

    Raises:
      ValueError: it is something else.
    """
    if isinstance(wanted, str):
        kind: type[AttentionModule] | None = attention(wanted)
        return None if kind is None else kind(parent=None)
    if not isinstance(wanted, AttentionModule) or wanted.scope is not None:
        raise ValueError(
            f"attention has to be a name or an unbound attention module; got {wanted!r}."
        )
    return wanted.clone(parent=None)


def hyperparameters(name: str) -> tuple[str, ...]:
    """The names of the fields that an attention has beyond those of all.

    Args:
      name: Name of the attention, see `attention`.

    Raises:
      ValueError: there is no such attention.

    Example:
      >>> from nam_jax.attention import hyperparameters
      >>> hyperparameters("se")
      ('reduction',)
    """
    module: type[AttentionModule] | None = attention(name)
    common = {field.name for field in dataclasses.fields(AttentionModule)}
    fields = () if module is None else dataclasses.fields(module)
    return tuple(field.name for field in fields if field.name not in common)


def has_nam_scales(name: str) -> bool:
    """Whether a network with this attention has NAM scales, for the sparsity penalty.

    Args:
      name: Name of the attention, see `attention`.

    Raises:
      ValueError: there is no such attention.
    """
    module: type[AttentionModule] | None = attention(name)
    return module is not None and issubclass(module, NormalizationAttention)
