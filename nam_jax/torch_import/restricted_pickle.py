"""Reads the pickles of torch.save as data: nothing that they name is imported or called.

This is Python's own unpickler, cut down to the operations that describe dicts, lists, plain
values and tensors; of anything else a placeholder says what it is. It is the one that is
written in Python: the one in C allocates whatever a pickle declares.
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
# What torch.save calls has fewer arguments; names are longer in hostile files alone.
_MOST_ARGUMENTS = 8
_LONGEST_NAME = 100


class Placeholder:
    """What stands for a class, a function, an object, or anything else that is not made.

    Attributes:
      name: What the file calls it, such as `argparse.Namespace`.
    """

    # Two of them are never equal: to hash what they stand for may take forever.
    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


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
      Dicts, lists, tuples, plain values, tensors as `Tensor`, and of all else a `Placeholder`;
      a key of a dict that is no text is one too.

    Raises:
      Exception: Of any kind, where it is damaged.
    """
    try:
        return _Unpickler(file, {} if dtypes is None else dtypes).load()
    except (AttributeError, EOFError, LookupError, TypeError, UnicodeError, struct.error) as error:
        raise ValueError("its pickle is damaged") from error


def as_key(value: Any) -> str | Placeholder:
    """What stands for a key of a dict: the hash of a nested tuple may take forever."""
    return value if type(value) in (str, Placeholder) else Placeholder(f"<{type(value).__name__}>")


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any
) -> Tensor | Placeholder:
    if type(storage) is Placeholder:
        return storage
    # After requires_grad and hooks: whether the numbers are to be negated or conjugated.
    if any(rest[2:]):
        return Placeholder("torch.Tensor with metadata: resolve_neg() or resolve_conj() it first")
    plain = type(storage) is Storage and {type(shape), type(strides)} <= {tuple, list}
    if not plain or len(shape) != len(strides) or len(shape) > _MOST_AXES:
        raise ValueError("something in it stands in the place of a tensor, and is none")
    if not all(type(n) is int and 0 <= n < 2**63 for n in (offset, *shape, *strides)):
        raise ValueError("it holds a tensor whose sizes are not whole numbers from 0 to 2**63 - 1")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


# What a pickle may name, and what it gets instead.
_GLOBALS: dict[str, np.dtype | Callable[..., Any]] = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch.ComplexDoubleStorage": np.dtype(np.complex128),
    "torch.ComplexFloatStorage": np.dtype(np.complex64),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
    "torch.storage.UntypedStorage": np.dtype(np.uint8),
    "collections.OrderedDict": lambda *pairs: Items(*pairs) if pairs else {},
    "collections.defaultdict": lambda *_: {},
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
}

# What protocols 2 to 5 need, and Python 2; no other operation runs.
_OPERATIONS = {
    *("PROTO", "FRAME", "MARK", "STOP", "POP", "POP_MARK"),
    *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG1", "LONG4"),
    *("BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "EMPTY_DICT"),
    *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    *("GLOBAL", "STACK_GLOBAL", "BINPERSID"),
}


def _operation(opcode: pickletools.OpcodeInfo) -> Callable[[Any], None]:
    def refuse(_: Any) -> NoReturn:
        raise ValueError(f"it holds the operation {opcode.name}, which torch.save does not write")

    return pickle._Unpickler.dispatch[ord(opcode.code)] if opcode.name in _OPERATIONS else refuse


class _Unpickler(pickle._Unpickler):
    # The type stubs leave these out.
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]

    def __init__(self, file: io.BytesIO, dtypes: dict[str, np.dtype]):
        super().__init__(file, encoding="latin-1")
        self.dtypes = dtypes

    def find_class(self, module: str, name: str) -> np.dtype | Callable[..., Any] | Placeholder:
        name = f"{module[:_LONGEST_NAME]}.{name[:_LONGEST_NAME]}"
        return _GLOBALS.get(name, Placeholder(name))

    def persistent_load(self, pid: Any) -> Storage | Placeholder:
        if type(pid) is not tuple or not 3 < len(pid) <= _MOST_ARGUMENTS:
            raise ValueError("its pickle is damaged")
        kind, dtype, key, _, *more = pid
        if type(dtype) is Placeholder:
            return dtype  # the class of a pickled module, or a storage of an unknown kind
        if kind != "storage" or not isinstance(dtype, np.dtype) or type(key) is not str:
            raise ValueError("it holds a storage of an unknown kind")
        self.dtypes[key] = dtype
        # Before PyTorch 0.4, storages may have been parts of others.
        return Placeholder("a part of a storage") if any(more[1:]) else Storage(key, dtype)

    def append_item(self) -> None:
        self._extend([self.stack.pop()])

    def append_items(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is list:
            self.stack[-1].extend(items)
        else:
            self._check_placeholder()

    def set_item(self) -> None:
        self._update([self.stack.pop(-2), self.stack.pop()])

    def set_items(self) -> None:
        self._update(self.pop_mark())

    def _update(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is dict:
            self.stack[-1].update(zip(map(as_key, items[::2]), items[1::2], strict=True))
        else:
            self._check_placeholder()

    def reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if type(function) is Placeholder:
            return
        if type(arguments) is not tuple or len(arguments) > _MOST_ARGUMENTS:
            raise ValueError("its pickle is damaged")
        self.stack[-1] = function(*arguments)

    def build(self) -> None:
        # Attributes, such as the versions of a state dict's modules, are of no use here.
        self.stack.pop()

    def new_object(self) -> None:
        self.stack.pop()
        self._check_placeholder()

    def new_object_of_keywords(self) -> None:
        self.stack.pop()
        self.new_object()

    def old_object(self) -> None:
        kind, *_ = self.pop_mark()
        self.stack.append(kind)
        self._check_placeholder()

    def empty_set(self) -> None:
        self.stack.append(Placeholder("a set"))

    def add_items(self) -> None:
        self.pop_mark()
        self._check_placeholder()

    def frozen_set(self) -> None:
        self.pop_mark()
        self.empty_set()

    def byte_array(self) -> None:
        # Python's own allocates what the file declares.
        (size,) = struct.unpack("<Q", self.read(8))
        self.stack.append(self.read(size))

    def _check_placeholder(self) -> None:
        """What a placeholder is made of and filled with is dropped; nothing else has that."""
        if type(self.stack[-1]) is not Placeholder:
            raise ValueError("its pickle is damaged")

    dispatch = {ord(opcode.code): _operation(opcode) for opcode in pickletools.opcodes} | {
        pickle.APPEND[0]: append_item,
        pickle.APPENDS[0]: append_items,
        pickle.SETITEM[0]: set_item,
        pickle.SETITEMS[0]: set_items,
        pickle.REDUCE[0]: reduce,
        pickle.BUILD[0]: build,
        pickle.NEWOBJ[0]: new_object,
        pickle.NEWOBJ_EX[0]: new_object_of_keywords,
        pickle.OBJ[0]: old_object,
        pickle.EMPTY_SET[0]: empty_set,
        pickle.ADDITEMS[0]: add_items,
        pickle.FROZENSET[0]: frozen_set,
        pickle.BYTEARRAY8[0]: byte_array,
    }
