"""Values of options, from their texts."""

import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from train.core.config.attentions import with_attention
from train.core.config.fields import default_config
from train.core.errors import ConfigError

Value = TypeVar("Value")
Number = TypeVar("Number", int, float)


def not_empty(value: str) -> str:
    """A value that is not empty: an empty one would mean the default."""
    if not value:
        raise ArgumentTypeError("is empty; give it a value, or leave it out.")
    return value


def listed(value: str) -> list[str]:
    """Texts with commas between."""
    return [part.strip() for part in not_empty(value).split(",")]


def each(kind: Callable[[str], Value]) -> Callable[[str], list[Value]]:
    """Values of one kind with commas between."""

    def parsed(value: str) -> list[Value]:
        parts = listed(value)
        if not all(parts):
            raise ArgumentTypeError(f"got {value!r}; allowed: values with commas between.")
        return [kind(part) for part in parts]

    return parsed


def attentions(value: str) -> list[str]:
    """Attentions with commas between; behind those of NAM may stand hyper-parameters."""
    texts = listed(value)
    for text in texts:
        try:
            with_attention(default_config(), text)
        except ConfigError as error:
            raise ArgumentTypeError(f"got {value!r}: {error}") from error
    return texts


def one_of(*names: str) -> Callable[[str], str]:
    """One of several names."""

    def parsed(value: str) -> str:
        if value not in names:
            raise ArgumentTypeError(f"got {value!r}; allowed: {', '.join(names)}.")
        return value

    return parsed


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """A whole number from low to high."""
    return _between(int, low, high, f"{low:,} to {high:,}, a whole number")


def number(low: float, high: float) -> Callable[[str], float]:
    """A number from low to high."""
    return _between(float, low, high, f"{low:g} to {high:g}")


def _between(
    kind: Callable[[str], Number], low: Number, high: Number, allowed: str
) -> Callable[[str], Number]:
    def parsed(value: str) -> Number:
        try:
            result = kind(not_empty(value))
        except ValueError:
            result = None
        # What is no number at all is not within its bounds either.
        if result is None or not low <= result <= high:
            raise ArgumentTypeError(f"got {value!r}; allowed: {allowed}.")
        return result

    return parsed


def output(value: str) -> Path:
    """A file that can be written: found out before the work whose figures it is for."""
    path = Path(os.path.expanduser(not_empty(value)))
    try:
        is_right = path.is_file() or (path.parent.is_dir() and not path.exists())
        is_right = is_right and os.access(path if path.exists() else path.parent, os.W_OK)
    except OSError:
        is_right = False
    if not is_right:
        raise ArgumentTypeError(
            f"got {value!r}; name a file that can be written, in a directory that is there."
        )
    return path
