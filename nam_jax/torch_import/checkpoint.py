"""Which of the state dicts in a training checkpoint is meant."""

import enum
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from nam_jax.torch_import.restricted_pickle import Items, Placeholder, Tensor, as_key
from nam_jax.torch_import.wording import NotWeightsError, few, shortened

# What training scripts call the network's state dict, or a dict in which it is nested.
_NETWORK = {
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module"),
    *("params", "weights", "state", "checkpoint"),
}
# Of weights averaged over the updates: model_ema, averaged_model, swa_state_dict.
_AVERAGED = re.compile("(^|_)(ema|swa|avg|averaged?|shadow)(_|$)", re.IGNORECASE)
# The state of an optimiser may have a dict of tensors for every parameter.
_TRAINING = re.compile("optim|sched", re.IGNORECASE)

# Of the largest one's tensors, a network's state dict has this share at least.
_LEAST_SHARE = 10
_MOST_KEYS = 4
_LONGEST_KEY = 100


class StateDictKeyError(ValueError):
    """Which of the state dicts in a file is meant has to be said by the key of one."""


class Role(enum.IntEnum):
    """What the keys say of a state dict."""

    NETWORK = 0
    AVERAGED = 1
    OTHER = 2


class Found(NamedTuple):
    """A dict that holds tensors.

    Attributes:
      key: Dotted key in the file; that of the whole file is empty.
      role: What that key says.
      entries: All that it holds.
    """

    key: str
    role: Role
    entries: dict[Any, Any]


def find(content: Any) -> list[Found]:
    """Finds the state dicts in what a file holds.

    Args:
      content: Content of a file, as `restricted_pickle.load` gives it.

    Returns:
      Networks under usual names, then averaged ones, then others; the largest of each first.
      What is far smaller than the largest, such as a random state, is none of the first two.
    """
    found: list[Found] = []
    for keys, entries in _dicts(content):
        role = _role(keys)
        is_pure = all(_is_entry(*item) for item in entries.items())
        # A checkpoint may have a tensor of its own beside the state dict.
        if is_pure or (keys and role is Role.NETWORK and _size(entries)):
            found.append(Found(".".join(keys), role, entries))
    largest = max((_size(each.entries) for each in found), default=0)

    def rank(each: Found) -> tuple[Role, int]:
        size = _size(each.entries)
        return (each.role if size * _LEAST_SHARE >= largest else Role.OTHER), -size

    return sorted(found, key=rank)


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
        raise NotWeightsError(_nothing(content))
    keys = [each.key for each in found]
    if key is None and len(found) > 1 and found[0].role is Role.OTHER:
        raise StateDictKeyError(f"it holds several state dicts; give the key of one: {few(keys)}")
    taken = found[0] if key is None else _of_key(found, key)
    others = {name: value for name, value in taken.entries.items() if not _is_entry(name, value)}
    if others:
        more = [each for each in keys if each != taken.key]
        advice = f"; other state dicts: {few(more)}" if more else ""
        raise NotWeightsError(
            f"its {taken.key} holds {_described(others)}, and only tensors are read{advice}"
        )
    return taken.entries


def below(entries: Mapping[Any, Any], prefix: str) -> dict[str, Any]:
    """The entries whose names begin with a prefix and a dot, without these.

    Args:
      entries: Values by name.
      prefix: Beginning of names, such as `model`; an empty one: all.
    """
    start = f"{prefix}." if prefix else ""
    names = [name for name in entries if type(name) is str and name.startswith(start)]
    return {name.removeprefix(start): entries[name] for name in names}


def unknown_key(key: str, keys: list[str]) -> StateDictKeyError:
    """The error of a key that is none of a file's state dicts, nor a prefix in one.

    Args:
      key: Dotted key.
      keys: Keys of those that are there.
    """
    allowed = "the file is one: leave the key out" if keys == [""] else f"there are {few(keys)}"
    return StateDictKeyError(f"it has no state dict {shortened(key)!r}; {allowed}")


def _of_key(found: list[Found], key: str) -> Found:
    """The state dict of a key, or what in one has the rest of the key as a prefix."""
    for each in sorted(found, key=lambda each: -len(each.key)):
        if each.key == key:
            return each
        if key.startswith(f"{each.key}.") or not each.key:
            inner = below(each.entries, key.removeprefix(f"{each.key}."))
            if _size(inner):
                return Found(key, each.role, inner)
    raise unknown_key(key, [each.key for each in found])


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


def _role(keys: Iterable[str]) -> Role:
    others = [key for key in keys if key.lower() not in _NETWORK]
    if not others:
        return Role.NETWORK
    return Role.AVERAGED if all(map(_AVERAGED.search, others)) else Role.OTHER


def _nothing(content: Any) -> str:
    entries = _entries(content)
    what = _described(entries) if entries else f"only a pickled {_name(content)}"
    advice = "load it in PyTorch and save the state_dict() of the network"
    return f"it holds no state dict of tensors alone, but {what}; {advice}"


def _described(entries: dict[Any, Any]) -> str:
    others = [
        f"{_name(key) if type(key) is Placeholder else key} ({_name(value)})"
        for key, value in entries.items()
        if not _is_entry(key, value)
    ]
    return few(others)


def _name(value: Any) -> str:
    return value.name if type(value) is Placeholder else type(value).__name__
