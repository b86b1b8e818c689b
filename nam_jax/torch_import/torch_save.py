"""Files of torch.save, without PyTorch.

Both formats are read: the zip archives of PyTorch 1.6 and later, and the pickles with
appended storages before. Of the storages, only those of the state dict that is taken.
"""

import io
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nam_jax.torch_import import checkpoint, restricted_pickle
from nam_jax.torch_import.restricted_pickle import Tensor
from nam_jax.torch_import.wording import NotWeightsError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001


class _Saved(NamedTuple):
    """What was saved, with `Tensor` for every tensor, and what reads storages by their keys."""

    content: Any
    storages: Callable[[set[str]], dict[str, bytes]]


def read(path: Path, key: str | None) -> dict[str, np.ndarray]:
    """Reads a state dict of a file of torch.save.

    Args:
      path: File of torch.save.
      key: Dotted key of the state dict, see `checkpoint.take`.

    Returns:
      Arrays by name: views of what the file holds.

    Raises:
      StateDictKeyError: see `checkpoint.take`.
      Exception: Of any kind, where the file is damaged or the state dict holds other things
        than tensors.
    """
    saved = _open(path)
    tensors = checkpoint.take(saved.content, key)
    storages = saved.storages({tensor.storage.key for tensor in tensors.values()})
    return {name: _array(tensor, storages) for name, tensor in tensors.items()}


def keys(path: Path) -> list[str]:
    """The dotted keys of the state dicts in a file of torch.save, as `checkpoint.find` has them.

    Args:
      path: File of torch.save.

    Raises:
      Exception: Of any kind, where the file is damaged.
    """
    return [found.key for found in checkpoint.find(_open(path).content)]


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


def _open(path: Path) -> _Saved:
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    return _open_zip(path) if is_zip else _open_legacy(path)


def _open_zip(path: Path) -> _Saved:
    with zipfile.ZipFile(path) as archive:
        _check_members(archive, path.stat().st_size)
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it is a zip archive, but not one of torch.save")
        folder = pickles[0].removesuffix("data.pkl")
        byte_order = f"{folder}byteorder"
        if byte_order in archive.namelist() and archive.read(byte_order) != b"little":
            raise NotWeightsError("it was written by a big-endian machine: save it on another")
        content = restricted_pickle.load(io.BytesIO(archive.read(pickles[0])))

    def storages(keys: set[str]) -> dict[str, bytes]:
        with zipfile.ZipFile(path) as archive:
            members = {key: f"{folder}data/{key}" for key in keys}
            present = set(archive.namelist())
            return {k: archive.read(name) for k, name in members.items() if name in present}

    return _Saved(content, storages)


def _check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Makes sure that no more is read than the file holds: torch.save does not compress."""
    members = archive.infolist()
    stored = all(
        member.compress_type == zipfile.ZIP_STORED and member.compress_size == member.file_size
        for member in members
    )
    if not stored or sum(member.file_size for member in members) > size:
        raise ValueError("its archive is compressed, or its members overlap")


def _open_legacy(path: Path) -> _Saved:
    # A file on disk would allocate whatever a pickle asks it for.
    file = io.BytesIO(path.read_bytes())
    if (restricted_pickle.load(file), restricted_pickle.load(file)) != (
        LEGACY_MAGIC,
        _LEGACY_VERSION,
    ):
        raise ValueError("it is no file of torch.save")
    restricted_pickle.load(file)  # about the machine that wrote it
    dtypes: dict[str, np.dtype] = {}
    content = restricted_pickle.load(file, dtypes)
    listed = restricted_pickle.load(file)

    def storages(keys: set[str]) -> dict[str, bytes]:
        found = {}
        for key in listed:
            # Of others already the hash may take forever.
            if type(key) is not str or key not in dtypes:
                raise ValueError(
                    "something in it stands in the place of a storage, and is none, or of an "
                    "unknown kind"
                )
            size = int.from_bytes(file.read(8), "little") * dtypes[key].itemsize
            if key in keys:
                found[key] = file.read(size)
            else:
                file.seek(min(size, len(file.getbuffer())), io.SEEK_CUR)
        return found

    return _Saved(content, storages)
