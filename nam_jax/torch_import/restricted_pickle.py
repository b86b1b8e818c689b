"""Reads the pickles of torch.save as data: nothing that they name is imported or called.

Python's own unpickler runs what a pickle says. This one knows the few operations that
describe dicts, lists, plain values and tensors, and refuses all others.
"""

import io
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

DTYPES = {
    "torch.DoubleStorage": np.float64,
    "torch.FloatStorage": np.float32,
    "torch.HalfStorage": np.float16,
    "torch.BFloat16Storage": jnp.bfloat16,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
    "torch.ShortStorage": np.int16,
    "torch.CharStorage": np.int8,
    "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
}

MOST_AXES = 32


class Global(NamedTuple):
    """The name of a class or function."""

    name: str


class Storage(NamedTuple):
    """A run of numbers that tensors are views of."""

    key: str
    dtype: np.dtype


class Tensor(NamedTuple):
    """A view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Items(NamedTuple):
    """The pairs of an ordered dict, as Python 2 pickles it."""

    pairs: list[Any]


def load(file: io.BytesIO, dtypes: dict[str, np.dtype] | None = None) -> Any:
    """Reads one pickle from where the file stands, and leaves the file after it.

    Args:
      file: with the pickle.
      dtypes: takes the dtypes of all storages that are named, by their keys.

    Raises:
      Exception: of any kind, where it is damaged or holds other things than those above.
    """
    machine = _Machine({} if dtypes is None else dtypes)
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in _VALUES:
            machine.stack.append(argument)
        elif opcode.name in _OPERATIONS:
            _OPERATIONS[opcode.name](machine, argument)
        elif opcode.name not in _IGNORED:
            raise ValueError(f"it holds the operation {opcode.name}, and only tensors are read")
    return machine.stack.pop()


class _Machine:
    """The state of a pickle that is being read."""

    def __init__(self, dtypes: dict[str, np.dtype]):
        self.dtypes = dtypes
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def last(self, count: int) -> list[Any]:
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values


def _set_items(machine: _Machine, values: list[Any]) -> None:
    target = machine.stack[-1]
    keys = values[::2]
    if type(target) is not dict or not all(type(key) in (str, int) for key in keys):
        raise ValueError("it holds a dict whose keys are neither texts nor whole numbers")
    target.update(zip(keys, values[1::2], strict=True))


def _extend(machine: _Machine, values: list[Any]) -> None:
    target = machine.stack[-1]
    if type(target) is not list:
        raise ValueError("its pickle is damaged")
    target.extend(values)


def _global(machine: _Machine, name: str) -> None:
    if name not in DTYPES and name not in _CONSTRUCTORS:
        raise ValueError(f"it holds {name}, and only tensors are read; save the state_dict() alone")
    machine.stack.append(Global(name))


def _reduce(machine: _Machine, _: Any) -> None:
    constructor, arguments = machine.last(2)
    if type(constructor) is not Global or constructor.name not in _CONSTRUCTORS:
        raise ValueError("its pickle is damaged")
    machine.stack.append(_CONSTRUCTORS[constructor.name](*arguments))


def _storage(machine: _Machine, _: Any) -> None:
    kind, dtype, key, _, _, *views = machine.stack.pop()
    named = type(dtype) is Global and dtype.name in DTYPES and type(key) is str
    if kind != "storage" or not named or any(views):
        raise ValueError("it holds a storage of an unknown kind")
    machine.dtypes[key] = np.dtype(DTYPES[dtype.name])
    machine.stack.append(Storage(key, machine.dtypes[key]))


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    plain = type(storage) is Storage and {type(shape), type(strides)} <= {tuple, list}
    if not plain or len(shape) != len(strides) or len(shape) > MOST_AXES:
        raise ValueError("it holds a tensor that is none")
    if not all(type(n) is int and 0 <= n < 2**63 for n in (offset, *shape, *strides)):
        raise ValueError("it holds a tensor whose sizes are not whole numbers from 0 to 2**63 - 1")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


_CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda *pairs: Items(*pairs) if pairs else {},
    # In the state of a learning-rate schedule; what it counts is of no use here.
    "collections.Counter": lambda *_: {},
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
}

# Operations that push their argument.
_VALUES = {
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINBYTES", "SHORT_BINBYTES"),
}
# BUILD below sets attributes, such as the versions of a state dict's modules.
_IGNORED = {"PROTO", "FRAME", "STOP"}

_OPERATIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.since_mark())),
    "TUPLE1": lambda m, _: m.stack.append(tuple(m.last(1))),
    "TUPLE2": lambda m, _: m.stack.append(tuple(m.last(2))),
    "TUPLE3": lambda m, _: m.stack.append(tuple(m.last(3))),
    "APPEND": lambda m, _: _extend(m, m.last(1)),
    "APPENDS": lambda m, _: _extend(m, m.since_mark()),
    "SETITEM": lambda m, _: _set_items(m, m.last(2)),
    "SETITEMS": lambda m, _: _set_items(m, m.since_mark()),
    "GLOBAL": lambda m, name: _global(m, name.replace(" ", ".")),
    "STACK_GLOBAL": lambda m, _: _global(m, ".".join(m.last(2))),
    "REDUCE": _reduce,
    "BINPERSID": _storage,
    "BUILD": lambda m, _: m.last(1),
    "PUT": lambda m, index: m.memo.update({index: m.stack[-1]}),
    "BINPUT": lambda m, index: m.memo.update({index: m.stack[-1]}),
    "LONG_BINPUT": lambda m, index: m.memo.update({index: m.stack[-1]}),
    "MEMOIZE": lambda m, _: m.memo.update({len(m.memo): m.stack[-1]}),
    "GET": lambda m, index: m.stack.append(m.memo[index]),
    "BINGET": lambda m, index: m.stack.append(m.memo[index]),
    "LONG_BINGET": lambda m, index: m.stack.append(m.memo[index]),
}
