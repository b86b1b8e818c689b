"""Which of the state dicts in a training checkpoint is meant."""

import enum
import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from nam_jax.torch_import.restricted_pickle import Items, Placeholder, Tensor, as_key

# What training scripts call the network's state dict, or a dict in which it is nested.
_NETWORK = {
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module"),
    *("params", "weights", "state", "checkpoint"),
}
# Of weights averaged over the updates: model_ema, averaged_model, swa_state_dict.
_AVERAGED = re.compile("(^|_)(ema|swa|avg|averaged?|shadow)(_|$)", re.IGNORECASE)
# The state of an optimiser may have a dict of tensors for every parameter.
_TRAINING = re.compile("optim|sched", re.IGNORECASE)

_MOST_KEYS = 4
_LONGEST_KEY = 100
_MOST_LISTED = 10


class StateDictKeyError(ValueError):
    """Which of the state dicts in a file is meant has to be said by the key of one."""


class Kind(enum.IntEnum):
    """What the keys say of a state dict."""

    NETWORK = 0
    AVERAGED = 1
    OTHER = 2


class Found(NamedTuple):
    """A dict that holds tensors.

    Attributes:
      key: Dotted key in the file; that of the whole file is empty.
      kind: What that key says.
      entries: All that it holds.
    """

    key: str
    kind: Kind
    entries: dict[Any, Any]


def find(content: Any) -> list[Found]:
    """Finds the state dicts in what a file holds.

    Args:
      content: Content of a file, as `restricted_pickle.load` gives it.

    Returns:
      Networks under usual names, then averaged ones, then others; the largest of each first.
    """
    found = []
    for keys, entries in _dicts(content):
        kind = _kind(keys)
        is_pure = all(_is_entry(*item) for item in entries.items())
        # A checkpoint may have a tensor of its own beside the state dict.
        if is_pure or (keys and kind is Kind.NETWORK and _size(entries)):
            found.append(Found(".".join(keys), kind, entries))
    return sorted(found, key=lambda each: (each.kind, -_size(each.entries)))


def take(content: Any, key: str | None) -> dict[str, Tensor]:
    """Takes one state dict of what a file holds.

    Args:
      content: Content of a file, as `restricted_pickle.load` gives it.
      key: Dotted key of the state dict; None: it is the first found, if its name is usual or
        there is no other.

    Returns:
      Tensors by name.

    Raises:
      StateDictKeyError: there is none of this key, or any of several may be meant.
      ValueError: there is none, or it holds other things than tensors.
    """
    found = find(content)
    if not found:
        raise ValueError(_nothing(content))
    keys = [each.key for each in found]
    if key is None and len(found) > 1 and found[0].kind is Kind.OTHER:
        raise StateDictKeyError(f"it holds several state dicts; give the key of one: {_list(keys)}")
    check_key(key, keys)
    taken = found[0] if key is None else found[keys.index(key)]
    others = {name: value for name, value in taken.entries.items() if not _is_entry(name, value)}
    if others:
        raise ValueError(f"its {taken.key} holds {_described(others)}, and only tensors are read")
    return taken.entries


def check_key(key: str | None, keys: list[str]) -> None:
    """Refuses a key that is none of those of a file's state dicts.

    Args:
      key: Dotted key; None is fine.
      keys: Those there are.

    Raises:
      StateDictKeyError: there is no such key.
    """
    if key is not None and key not in keys:
        allowed = (
            "the file is one: leave the key out" if keys == [""] else f"there are {_list(keys)}"
        )
        raise StateDictKeyError(f"it has no state dict {key[:_LONGEST_KEY]!r}; {allowed}")


def _dicts(content: Any) -> Iterator[tuple[tuple[str, ...], dict[Any, Any]]]:
    """All dicts under texts as keys, each once: a dict may hold itself."""
    queue: deque[tuple[tuple[str, ...], Any]] = deque([((), content)])
    seen: set[int] = set()
    while queue:
        keys, value = queue.popleft()
        identity = id(value.pairs if type(value) is Items else value)
        if identity in seen:
            continue
        seen.add(identity)
        entries = _entries(value)
        if entries:
            yield keys, entries
        if len(keys) < _MOST_KEYS:
            inner = entries.items()
            queue.extend(((*keys, k), v) for k, v in inner if _leads_on(k) and _is_dict(v))


def _is_dict(value: Any) -> bool:
    return type(value) in (dict, Items)


def _leads_on(key: Any) -> bool:
    is_short = type(key) is str and len(key) <= _LONGEST_KEY
    return is_short and key.isprintable() and not _TRAINING.search(key)


def _entries(value: Any) -> dict[Any, Any]:
    if type(value) is not Items:
        return value if type(value) is dict else {}
    try:
        return {as_key(key): entry for key, entry in value.pairs}
    except (TypeError, ValueError) as error:
        raise ValueError("its pickle is damaged") from error


def _is_entry(name: Any, value: Any) -> bool:
    return type(name) is str and type(value) is Tensor


def _size(entries: dict[Any, Any]) -> int:
    return sum(type(value) is Tensor for value in entries.values())


def _kind(keys: Iterable[str]) -> Kind:
    others = [key for key in keys if key.lower() not in _NETWORK]
    if not others:
        return Kind.NETWORK
    return Kind.AVERAGED if all(map(_AVERAGED.search, others)) else Kind.OTHER


def _nothing(content: Any) -> str:
    entries = _entries(content)
    what = _described(entries) if entries else f"only a pickled {_name(content)}"
    advice = "load it in PyTorch and save the state_dict() of the network"
    return f"it holds no state dict of tensors alone, but {what}; {advice}"


def _described(entries: dict[Any, Any]) -> str:
    others = [
        f"{_name(key) if type(key) is Placeholder else key[:_LONGEST_KEY]} ({_name(value)})"
        for key, value in entries.items()
        if not _is_entry(key, value)
    ]
    return _list(others)


def _list(texts: list[str]) -> str:
    more = len(texts) - _MOST_LISTED
    return ", ".join(texts[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def _name(value: Any) -> str:
    return value.name if type(value) is Placeholder else type(value).__name__
