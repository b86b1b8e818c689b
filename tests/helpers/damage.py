"""Damage to bytes and JSON values, and another process to read them in, which may crash or hang."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from hypothesis import strategies as st

Damage = list[tuple[str, int, int]]

# What becomes of so many bytes at a place.
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flipped": lambda part: bytes(byte ^ 1 for byte in part),
    "inverted": lambda part: bytes(byte ^ 255 for byte in part),
    "zeros": lambda part: bytes(len(part)),
    "missing": lambda part: b"",
    "repeated": lambda part: part + part,
}

LIMIT_SECONDS = 60


def damages(size: int) -> st.SearchStrategy[Damage]:
    """What may happen to a file of a size."""
    kinds, lengths = st.sampled_from(list(DAMAGES)), st.sampled_from([1, 8, 64, 65536])
    places = st.integers(0, size - 1)
    return st.lists(st.tuples(kinds, places, lengths), min_size=1, max_size=3)


def damaged(data: bytes, damage: Damage) -> bytes:
    for kind, place, length in damage:
        end = place + length
        data = data[:place] + DAMAGES[kind](data[place:end]) + data[end:]
    return data


texts = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=8)
numbers = st.integers(-1, 40) | st.integers()
plain = st.none() | st.booleans() | numbers | st.floats() | texts | numbers.map(str)
json_values = st.recursive(
    plain, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=5
)


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All places in a JSON value."""
    keys = list(value) if isinstance(value, dict) else []
    for key in range(len(value)) if isinstance(value, list) else keys:
        yield (*here, key)
        yield from places(value[key], (*here, key))


def put(content: Any, place: tuple[Any, ...], value: Any) -> None:
    """Puts another value at a place of a JSON value."""
    for key in place[:-1]:
        content = content[key]
    content[place[-1]] = value


def assert_says(error: Exception, what: object) -> None:
    """Checks that an error is one line that holds a text."""
    assert len(str(error).splitlines()) == 1
    assert str(what) in str(error)


class Child:
    """Another process, and the next one where it came to its end."""

    def __init__(self) -> None:
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function, or its error; what takes too long ends the process."""
        try:
            return self.pool.submit(_limited, function, *arguments).result()
        except BrokenProcessPool:
            self.pool = Child().pool
            raise


def _limited(function: Callable[..., Any], *arguments: Any) -> Any:
    signal.alarm(LIMIT_SECONDS)
    try:
        return function(*arguments)
    finally:
        signal.alarm(0)
