"""Files of torch.save, without PyTorch and without executing what is pickled in them.

Unpickling calls whatever a file names. Here a name that is not one of a few stands for an
error, and those few make plain descriptions of tensors, which are checked before any array
is made from them. Both formats are read: the zip archives of PyTorch 1.6 and later, and the
pickles with appended storages before.
"""

import functools
import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001

# Where a training checkpoint keeps its state dict.
_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "net")


class _Storage(NamedTuple):
    """A run of numbers that tensors are views of."""

    key: str
    dtype: np.dtype


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads the state dict of a file of torch.save.

    Args:
      path: of the file.

    Returns:
      Name to array: views of what the file holds.

    Raises:
      Exception: of any kind, where the file is damaged or holds other things than tensors.
    """
    file = io.BytesIO(path.read_bytes())
    is_zip = zipfile.is_zipfile(file)
    file.seek(0)
    content, storages = _read_zip(file) if is_zip else _read_legacy(file)
    return {name: _array(tensor, storages) for name, tensor in _state_dict(content).items()}


def _state_dict(content: Any) -> Mapping[str, _Tensor]:
    if not isinstance(content, dict):
        raise ValueError(f"it holds no state dict, but {type(content).__name__}")
    candidates = [content, *(content[key] for key in _STATE_DICT_KEYS if key in content)]
    for candidate in candidates:
        if isinstance(candidate, dict) and _is_state_dict(candidate):
            return candidate
    raise ValueError(f"it holds no state dict; its entries are {', '.join(map(str, content))}")


def _is_state_dict(entries: Mapping[Any, Any]) -> bool:
    return all(isinstance(k, str) and isinstance(v, _Tensor) for k, v in entries.items())


def _array(tensor: _Tensor, storages: Mapping[str, bytes]) -> np.ndarray:
    numbers = np.frombuffer(storages[tensor.storage.key], tensor.storage.dtype)
    counts = (tensor.offset, *tensor.shape, *tensor.strides)
    size = math.prod(tensor.shape)
    steps = zip(tensor.shape, tensor.strides, strict=True)
    end = tensor.offset + sum((length - 1) * stride for length, stride in steps) + 1
    # With a stride of 0, a huge array could be made of one number.
    if not all(type(n) is int and n >= 0 for n in counts) or max(size, size and end) > len(numbers):
        raise ValueError(f"a tensor of the shape {tensor.shape} is larger than its storage")
    strides = tuple(stride * numbers.itemsize for stride in tensor.strides)
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides)


def _read_zip(file: io.BytesIO) -> tuple[Any, dict[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        # torch.save does not compress: what is read cannot be larger than the file.
        if sum(member.file_size for member in archive.infolist()) > file.getbuffer().nbytes:
            raise ValueError("its archive is compressed, or its members overlap")
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        prefix = pickled.removesuffix("data.pkl") + "data/"
        keys = [n.removeprefix(prefix) for n in archive.namelist() if n.startswith(prefix)]
        storages = {key: archive.read(prefix + key) for key in keys}
        return _unpickle(io.BytesIO(archive.read(pickled))), storages


def _read_legacy(file: io.BytesIO) -> tuple[Any, dict[str, bytes]]:
    magic, version = _unpickle(file), _unpickle(file)
    if (magic, version) != (_LEGACY_MAGIC, _LEGACY_VERSION):
        raise ValueError("it is no file of torch.save")
    _unpickle(file)  # about the machine that wrote it
    dtypes: dict[str, np.dtype] = {}
    content = _unpickle(file, dtypes)
    storages = {}
    for key in _unpickle(file):
        size = int.from_bytes(file.read(8), "little") * dtypes[key].itemsize
        storages[key] = file.read(size)
    return content, storages


def _unpickle(file: io.BytesIO, dtypes: dict[str, np.dtype] | None = None) -> Any:
    start = file.tell()
    for opcode, argument, _ in pickletools.genops(file):
        # The index of a memo is allocated up to, however large.
        if opcode.name.endswith("PUT") and int(argument or 0) > file.getbuffer().nbytes:
            raise ValueError("its pickle is damaged")
    file.seek(start)
    return _Unpickler(file, {} if dtypes is None else dtypes).load()


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows the names of tensors and storages, and no others."""

    def __init__(self, file: io.BytesIO, dtypes: dict[str, np.dtype]):
        super().__init__(file)
        self._dtypes = dtypes

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return name
        if f"{module}.{name}" not in _CALLABLES:
            raise ValueError(
                f"it holds {module}.{name}, and only tensors are read; save the state_dict() alone"
            )
        # A new object each time: a pickle can set attributes of what it is given.
        return functools.partial(_CALLABLES[f"{module}.{name}"])

    def persistent_load(self, pid: Any) -> _Storage:
        kind, type_name, key, _, _, *views = pid
        if kind != "storage" or type_name not in _DTYPES or any(views):
            raise ValueError("it holds a storage of an unknown kind")
        self._dtypes[key] = np.dtype(_DTYPES[type_name])
        return _Storage(key, self._dtypes[key])


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise ValueError("it holds a tensor without a storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


_CALLABLES: dict[str, Callable[..., Any]] = {
    "collections.Counter": dict,
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}
