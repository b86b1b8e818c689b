"""State dicts that do not fit a module: what is wrong with them, and most likely why."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from nam_jax import models
from nam_jax.models.mobilenet_v2 import MobileNetV2, scaled_features
from nam_jax.models.resnet import Bottleneck, ResNet
from nam_jax.torch_import import names
from nam_jax.torch_import.wording import few, shortened

Shapes = Mapping[str, tuple[int, ...]]

_UNKNOWN = "its network, attention, stem or input size may be another"


class Cause(NamedTuple):
    """Why a state dict does not fit.

    Attributes:
      text: Reason, a clause.
      options: Fields of `nam_jax.models.create`, `new_head`, or the `key` of `read`, with which
        it would fit.
    """

    text: str
    options: dict[str, Any]


class MisfitError(ValueError):
    """A state dict does not fit a module; the message has at most ten lines.

    Attributes:
      causes: What is most likely the matter, the likeliest first, in one line.
      options: Fields of `nam_jax.models.create`, `new_head`, or the `key` of `read`, with which
        it would fit.
      lists: A line for each kind of problem, with the first entries that have it.
    """

    def __init__(self, causes: list[Cause], lists: list[str]):
        self.causes = "; ".join(cause.text for cause in causes) or _UNKNOWN
        self.options = {name: value for cause in causes for name, value in cause.options.items()}
        self.lists = lists
        self._given = causes, lists
        given = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        remedy = f" Try {given}." if given else ""
        reason = f"The state dict does not fit the module: {self.causes}.{remedy}"
        super().__init__("\n".join([reason, *lists]))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._given


def check(module: nn.Module, state: Mapping[str, np.ndarray], wanted: Shapes) -> None:
    """Checks that a state dict has the entries of a module and no others.

    Args:
      module: Network or attention module.
      state: Arrays by the names that are looked for.
      wanted: Shapes of the arrays that the module takes, by PyTorch's names.

    Raises:
      MisfitError: Entries are missing, left over, of another shape, or no real numbers.
    """
    actual = {name: value.shape for name, value in state.items()}
    problems = {
        "missing": [f"{name} {wanted[name]}" for name in wanted.keys() - actual.keys()],
        "left over": [f"{name} {actual[name]}" for name in actual.keys() - wanted.keys()],
        "misshapen": [
            f"{name} {actual[name]} instead of {wanted[name]}"
            for name in wanted.keys() & actual.keys()
            if actual[name] != wanted[name]
        ],
        "not real numbers": [
            f"{name} {value.dtype}" for name, value in state.items() if not is_real(value.dtype)
        ],
    }
    lists = [f"{problem}: {few(sorted(them))}" for problem, them in problems.items() if them]
    if lists:
        raise MisfitError(list(_causes(module, actual, wanted)), lists)


def is_real(dtype: np.dtype) -> bool:
    """Whether arrays of a dtype hold real numbers."""
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def _causes(module: nn.Module, actual: Shapes, wanted: Shapes) -> Iterator[Cause]:
    prefixes = _prefixes(actual, wanted)
    yield from prefixes
    if prefixes or not isinstance(module, ResNet | MobileNetV2):
        return
    layout = _layout(actual)
    if layout is None and not actual.keys() & wanted.keys():
        yield _foreign(actual)
        return
    yield from _other_network(module, layout)
    yield from _other_attention(module.attention, names.attention_of(actual))
    yield from _other_stem(actual, wanted)
    if layout == _layout_of(module):
        yield from _other_shortcut(module, actual)
        yield from _other_width(module, actual)
        yield from _other_pixels(actual, wanted)
        yield from _other_head(actual, wanted)


class _Layout(NamedTuple):
    """The family of a network, and the number of blocks of every stage."""

    family: str
    blocks: tuple[int, ...] = ()


def _layout(entries: Collection[str]) -> _Layout | None:
    """What the names tell of a network, whatever prefix they have."""
    found = [re.search(r"(?:^|\.)layer(\d)\.(\d{1,3})\.conv(\d)\.", name) for name in entries]
    blocks = [tuple(map(int, match.groups())) for match in found if match]
    if blocks:
        sizes = {stage: 0 for stage, _, _ in sorted(blocks)}
        for stage, block, _ in blocks:
            sizes[stage] = max(sizes[stage], block + 1)
        has_three = any(conv == 3 for _, _, conv in blocks)
        return _Layout("bottleneck" if has_three else "basic", tuple(sizes.values()))
    if any(re.search(r"(?:^|\.)features\.18\.0\.", name) for name in entries):
        return _Layout("mobilenet_v2")
    return None


def _layout_of(module: nn.Module) -> _Layout:
    if not isinstance(module, ResNet):
        return _Layout("mobilenet_v2")
    family = "bottleneck" if module.block is Bottleneck else "basic"
    return _Layout(family, tuple(module.stage_sizes))


def _other_network(module: nn.Module, layout: _Layout | None) -> Iterator[Cause]:
    if layout is None or layout == _layout_of(module):
        return
    known = {_layout_of(models.create(name, num_classes=1)): name for name in models.NAMES}
    if layout in known:
        yield Cause(f"it is of {known[layout]}", {"name": known[layout]})
    else:
        blocks = ", ".join(map(str, layout.blocks))
        yield Cause(f"it is of a ResNet of {blocks} {layout.family} blocks, unknown here", {})


def _other_attention(own: str, theirs: str) -> Iterator[Cause]:
    # That of a backbone without any stays fresh.
    if theirs not in (own, "none"):
        yield Cause(f"its attention is {theirs}, and not {own}", {"attention": theirs})


def _other_stem(actual: Shapes, wanted: Shapes) -> Iterator[Cause]:
    theirs, own = actual.get("conv1.weight", ()), wanted.get("conv1.weight", ())
    if len(theirs) == len(own) == 4 and theirs[2:] != own[2:]:
        stem = {(7, 7): "imagenet", (3, 3): "cifar"}.get(theirs[2:])
        text = f"its first convolution is {theirs[2]}×{theirs[3]}, and not {own[2]}×{own[3]}"
        yield Cause(text, {"stem": stem} if stem else {})


def _other_shortcut(module: nn.Module, actual: Shapes) -> Iterator[Cause]:
    if not isinstance(module, ResNet):
        return
    theirs = any(".downsample." in name for name in actual)
    if theirs and module.shortcut != "projection":
        yield Cause("its shortcuts have parameters", {"shortcut": "projection"})
    if not theirs and module.shortcut == "projection" and len(module.stage_sizes) > 1:
        yield Cause(
            "its shortcuts have no parameters, but pad_end or pad_centre",
            {"shortcut": "pad_centre"},
        )


def _other_width(module: nn.Module, actual: Shapes) -> Iterator[Cause]:
    last = actual.get("features.17.conv.3.weight")
    if not isinstance(module, MobileNetV2) or not last:
        return
    if last[0] not in (0, scaled_features(320, module.width_multiplier)):
        width = last[0] / 320
        yield Cause(f"its width is {width:g}", {"width_multiplier": width})


def _other_pixels(actual: Shapes, wanted: Shapes) -> Iterator[Cause]:
    both = actual.keys() & wanted.keys()
    pixels = [name for name in both if name.endswith("Spatial_Att.bn.weight")]
    if any(actual[name] != wanted[name] for name in pixels):
        yield Cause("its spatial attention is for images of another size", {})


def _other_head(actual: Shapes, wanted: Shapes) -> Iterator[Cause]:
    heads = list(filter(names.is_head, wanted))
    theirs = list(filter(names.is_head, actual))
    layers = {name.rpartition(".")[0] for name in theirs}
    # Of other features too it would be left out in vain: the network is a wider one.
    classes = {actual[name][0] for name in theirs if name in heads and actual[name]}
    if not heads or (set(theirs) == set(heads) and classes == {wanted[heads[0]][0]}):
        return
    if len(layers) != 1:
        text = f"its classifier has {len(layers)} layers" if layers else "it has no classifier"
    elif set(theirs) < set(heads):
        text = "its classifier has no bias"
    else:
        text = f"its classifier has {max(classes, default='other')} classes"
    yield Cause(text, {"new_head": True})


def _prefixes(actual: Shapes, wanted: Shapes) -> list[Cause]:
    """The prefixes that names begin with, where not all have the same."""
    found = Counter(
        name[: -len(tail)]
        for name in actual
        for tail in _tails(name)
        if name not in wanted and tail in wanted
    )
    # Fewer may be another network's: `layer9.0.` and `conv1.weight`.
    common = [each for each in found.most_common(2) if 2 * each[1] >= len(wanted)]
    texts = [f"{count:,} begin with {shortened(prefix)!r}" for prefix, count in common]
    text = f"its names share no prefix, {' and '.join(texts)}: take those alone"
    return [Cause(text, {"key": common[0][0].rstrip(".")})] if common else []


def _tails(name: str) -> Iterator[str]:
    """What is left of a name without its first parts, as many as are looked for."""
    for _ in range(names.MOST_PREFIXES):
        _, dot, name = name.partition(".")
        if not dot:
            return
        yield name


def _foreign(actual: Shapes) -> Cause:
    if not actual:
        return Cause("it holds no weights", {})
    firsts = list(dict.fromkeys(name.partition(".")[0] for name in actual))
    return Cause(f"it is of another kind of network, whose parts are called {few(firsts)}", {})
