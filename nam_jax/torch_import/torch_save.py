"""Files of torch.save, without PyTorch.

Both formats are read: the zip archives of PyTorch 1.6 and later, and the pickles with
appended storages before.
"""

import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nam_jax.torch_import import restricted_pickle
from nam_jax.torch_import.restricted_pickle import Items, Tensor

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001

# Where a training checkpoint keeps its state dict.
_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "net")


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads the state dict of a file of torch.save.

    Args:
      path: File of torch.save.

    Returns:
      Arrays by name: views of what the file holds.

    Raises:
      Exception: Of any kind, where the file is damaged or holds other things than tensors.
    """
    file = io.BytesIO(path.read_bytes())
    is_zip = zipfile.is_zipfile(file)
    file.seek(0)
    content, storages = _read_zip(file) if is_zip else _read_legacy(file)
    return {name: _array(tensor, storages) for name, tensor in _state_dict(content).items()}


def _state_dict(content: Any) -> Mapping[str, Tensor]:
    whole = _entries(content)
    parts = [_entries(whole[key]) for key in _STATE_DICT_KEYS if key in whole]
    for entries in [whole, *parts]:
        if entries and all(type(k) is str and type(v) is Tensor for k, v in entries.items()):
            return entries
    others = [
        f"{str(key)[:80]} ({type(value).__name__})"
        for key, value in (parts or [whole])[0].items()
        if type(value) is not Tensor
    ]
    raise ValueError(
        f"it holds no state dict of tensors alone, but {', '.join(others[:10]) or 'nothing'}"
    )


def _entries(content: Any) -> dict[Any, Any]:
    if type(content) is Items:
        return {key: value for key, value in content.pairs if type(key) is str}
    return content if type(content) is dict else {}


def _array(tensor: Tensor, storages: Mapping[str, bytes]) -> np.ndarray:
    if tensor.storage.key not in storages:
        raise ValueError(f"the storage {tensor.storage.key} of a tensor is missing")
    numbers = np.frombuffer(storages[tensor.storage.key], tensor.storage.dtype)
    size = math.prod(tensor.shape)
    steps = zip(tensor.shape, tensor.strides, strict=True)
    end = tensor.offset + sum((length - 1) * stride for length, stride in steps) + 1
    # With a stride of 0, a huge array could be made of one number.
    if max(size, end if size else tensor.offset) > len(numbers):
        raise ValueError(f"a tensor of the shape {tensor.shape} is larger than its storage")
    strides = tuple(stride * numbers.itemsize for stride in tensor.strides)
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides)


def _read_zip(file: io.BytesIO) -> tuple[Any, dict[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        # What is read so cannot be larger than the file: torch.save does not compress.
        sizes = [member.file_size for member in archive.infolist()]
        stored = all(m.compress_type == zipfile.ZIP_STORED for m in archive.infolist())
        if not stored or sum(sizes) > file.getbuffer().nbytes:
            raise ValueError("its archive is compressed, or its members overlap")
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it is a zip archive, but not one of torch.save")
        folder = pickles[0].removesuffix("data.pkl")
        byte_order = f"{folder}byteorder"
        if byte_order in archive.namelist() and archive.read(byte_order) != b"little":
            raise ValueError("it was written by a big-endian machine")
        prefix = f"{folder}data/"
        keys = [n.removeprefix(prefix) for n in archive.namelist() if n.startswith(prefix)]
        storages = {key: archive.read(prefix + key) for key in keys}
        return restricted_pickle.load(io.BytesIO(archive.read(pickles[0]))), storages


def _read_legacy(file: io.BytesIO) -> tuple[Any, dict[str, bytes]]:
    if not file.getbuffer().nbytes:
        raise ValueError("it is empty")
    if (restricted_pickle.load(file), restricted_pickle.load(file)) != (
        _LEGACY_MAGIC,
        _LEGACY_VERSION,
    ):
        raise ValueError("it is no file of torch.save")
    restricted_pickle.load(file)  # about the machine that wrote it
    dtypes: dict[str, np.dtype] = {}
    content = restricted_pickle.load(file, dtypes)
    storages = {}
    for key in restricted_pickle.load(file):
        # Of others already the hash may take forever.
        if type(key) is not str:
            raise ValueError("it lists a storage that is none")
        size = int.from_bytes(file.read(8), "little") * dtypes[key].itemsize
        storages[key] = file.read(size)
    return content, storages
