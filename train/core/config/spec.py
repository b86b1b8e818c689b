"""How a field of a config is declared: once, with its type, default, meaning and values."""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

# Updates are counted in 32 bits.
MOST_STEPS = 2**31 - 1


class Mark(enum.Flag):
    """What may differ in a field although the run is the same."""

    NONE = 0
    # A run may go on with another value: it changes what is seen of it, not its numbers.
    FREE = enum.auto()
    # Processes of one run may have different values.
    LOCAL = enum.auto()
    # An evaluation may have another value: it does not change what a checkpoint means.
    EVALUATION = enum.auto()
    # A run that was begun before the field existed has its default; it is not damaged.
    LATER = enum.auto()


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is known of a field beside its name.

    Attributes:
      default: Value of the default config; also gives the field its type.
      doc: What the field means.
      allowed: Which values it may have, in words.
      test: Whether a value of the right type is one of them.
      marks: What may differ in it although the run is the same.
      names: The names of which it is one, where it is a choice.
    """

    default: Any
    doc: str
    allowed: str
    test: Callable[[Any], bool] = lambda value: True
    marks: Mark = Mark.NONE
    names: tuple[str, ...] = ()

    @property
    def values(self) -> str:
        """Which values it may have, with their type, in words."""
        kinds = {int: ", a whole number", float: ", a number that float32 holds"}
        return self.allowed + kinds.get(type(self.default), "")


def declared(
    default: Any,
    doc: str,
    allowed: str,
    test: Callable[[Any], bool] = lambda value: True,
    *,
    marks: Mark = Mark.NONE,
    names: tuple[str, ...] = (),
) -> Any:
    """A field of a dataclass, with its `Spec` in the metadata."""
    spec = Spec(default, doc, allowed, test, marks, names)
    return dataclasses.field(default=default, metadata={"spec": spec})


def choice(default: str, names: tuple[str, ...], doc: str, marks: Mark = Mark.NONE) -> Any:
    """A name of several."""
    allowed = f"one of {', '.join(names)}"
    return declared(default, doc, allowed, lambda v: v in names, marks=marks, names=names)


def count(default: int, low: int, doc: str, high: int = MOST_STEPS, marks: Mark = Mark.NONE) -> Any:
    """A whole number from low to high."""
    most = "2³¹ − 1" if high == MOST_STEPS else f"{high:,}"
    return declared(default, doc, f"{low} to {most}", lambda v: low <= v <= high, marks=marks)


def at_least_zero(default: float, doc: str, marks: Mark = Mark.NONE) -> Any:
    """A number from 0 on."""
    return declared(default, doc, "at least 0", lambda v: v >= 0, marks=marks)


def above_zero(default: float, doc: str, high: float, marks: Mark = Mark.NONE) -> Any:
    """A number above 0, up to high."""
    allowed = f"above 0 and at most {high:,}"
    return declared(default, doc, allowed, lambda v: 0 < v <= high, marks=marks)


def between(default: float, low: float, high: float, doc: str, marks: Mark = Mark.NONE) -> Any:
    """A number from low to high."""
    return declared(default, doc, f"{low} to {high}", lambda v: low <= v <= high, marks=marks)


def fraction(default: float, doc: str, marks: Mark = Mark.NONE) -> Any:
    """A number from 0 on and below 1."""
    return declared(default, doc, "at least 0 and below 1", lambda v: 0 <= v < 1, marks=marks)


def switch(default: bool, doc: str, marks: Mark = Mark.NONE) -> Any:
    """True or False."""
    return declared(default, doc, "True or False", marks=marks)


def text(default: str, doc: str, marks: Mark = Mark.NONE) -> Any:
    """A text that can be printed."""
    allowed = "a text of printable characters, not empty"
    return declared(default, doc, allowed, lambda v: v != "" and v.isprintable(), marks=marks)


def numbers(
    default: tuple[float, ...], doc: str, allowed: str, test: Callable[[float], bool]
) -> Any:
    """Several numbers, at least one."""
    return declared(default, doc, f"numbers, {allowed}", lambda v: len(v) > 0 and all(map(test, v)))
