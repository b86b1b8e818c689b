"""Reads the pickles of torch.save as data: nothing that they name is imported or called.

This is Python's own unpickler, cut down to the operations that describe dicts, lists, plain
values and tensors. It is the one that is written in Python: the one in C allocates whatever
a pickle declares.
"""

import io
import pickle
import pickletools
import struct
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax.numpy as jnp
import numpy as np

_MOST_AXES = 32


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
      file: File that holds the pickle.
      dtypes: Dict that takes the dtype of every storage in the pickle, by the storage's key.

    Returns:
      Dicts, lists, tuples, plain values, and tensors as `Tensor`.

    Raises:
      Exception: Of any kind, where it is damaged or holds other things than those above.
    """
    try:
        return _Unpickler(file, {} if dtypes is None else dtypes).load()
    except (AttributeError, EOFError, LookupError, TypeError, UnicodeError, struct.error) as error:
        raise ValueError("its pickle is damaged") from error


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    plain = type(storage) is Storage and {type(shape), type(strides)} <= {tuple, list}
    if not plain or len(shape) != len(strides) or len(shape) > _MOST_AXES:
        raise ValueError("it holds a tensor that is none")
    if not all(type(n) is int and 0 <= n < 2**63 for n in (offset, *shape, *strides)):
        raise ValueError("it holds a tensor whose sizes are not whole numbers from 0 to 2**63 - 1")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


# What a pickle may name, and what it gets instead.
_GLOBALS: dict[str, np.dtype | Callable[..., Any]] = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
    "collections.OrderedDict": lambda *pairs: Items(*pairs) if pairs else {},
    # In the state of a learning-rate schedule; what it counts is of no use here.
    "collections.Counter": lambda *_: {},
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
}

# What protocols 2 to 4 need for all of these; no other operation runs.
_OPERATIONS = {
    *("PROTO", "FRAME", "MARK", "STOP"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS"),
    *("EMPTY_DICT", "SETITEM", "SETITEMS"),
    *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID"),
}


def _operation(opcode: pickletools.OpcodeInfo) -> Callable[[Any], None]:
    def refuse(_: Any) -> NoReturn:
        raise ValueError(f"it holds the operation {opcode.name}, and only tensors are read")

    return pickle._Unpickler.dispatch[ord(opcode.code)] if opcode.name in _OPERATIONS else refuse


class _Unpickler(pickle._Unpickler):
    # The type stubs leave these two out.
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: io.BytesIO, dtypes: dict[str, np.dtype]):
        super().__init__(file, encoding="latin-1")
        self.dtypes = dtypes

    def find_class(self, module: str, name: str) -> np.dtype | Callable[..., Any]:
        name = f"{module}.{name}"
        if name not in _GLOBALS:
            raise ValueError(
                f"it holds {name}, and only tensors are read; save the state_dict() alone"
            )
        return _GLOBALS[name]

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, _, *views = pid
        named = isinstance(dtype, np.dtype) and type(key) is str
        if kind != "storage" or not named or any(views):
            raise ValueError("it holds a storage of an unknown kind")
        self.dtypes[key] = dtype
        return Storage(key, dtype)

    def set_item(self) -> None:
        self._update([self.stack.pop(-2), self.stack.pop()])

    def set_items(self) -> None:
        self._update(self.pop_mark())

    def _update(self, items: list[Any]) -> None:
        # The hash of a nested tuple may take forever, or all of the stack.
        if not all(type(key) in (str, int) for key in items[::2]):
            raise ValueError("it holds a dict whose keys are neither texts nor whole numbers")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def build(self) -> None:
        # Attributes, such as the versions of a state dict's modules, are of no use here.
        self.stack.pop()

    dispatch = {ord(opcode.code): _operation(opcode) for opcode in pickletools.opcodes} | {
        pickle.SETITEM[0]: set_item,
        pickle.SETITEMS[0]: set_items,
        pickle.BUILD[0]: build,
    }
