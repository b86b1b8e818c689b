"""State dicts from files. Nothing in a file is executed."""

import io
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nam_jax.torch_import import torch_save

StateDict = dict[str, np.ndarray]

# What the arrays of a .npz file may take in memory, where that is more than the file's own size.
LARGEST_UNFOLDED = 2**32
# Of an array in such a file; NumPy takes none of more than 10,000 bytes.
LONGEST_HEADER = 2**14


def read(path: str | os.PathLike[str]) -> StateDict:
    """Reads a state dict from a file.

    `.pth` and `.pt` files of torch.save are read without PyTorch and without running any
    code of theirs: everything but tensors in dicts, lists and plain values is refused. Where
    the state dict is an entry of a checkpoint (`state_dict`, `model_state_dict`, `model` or
    `net`), it is taken from there.

    Args:
      path: File whose name ends in `.npz`, `.safetensors`, `.pth`, `.pth.tar` or `.pt`.

    Returns:
      Arrays by name.

    Raises:
      ValueError: the suffix is another, the path is that of a pipe or a device, or the file is
        damaged or holds other things than arrays.
      OSError: the file cannot be opened.
      ImportError: For a `.safetensors` file, the package of that name is missing.

    Example:
      >>> import nam_jax, numpy as np, pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "weights.npz")
      >>> np.savez(path, **{"fc.bias": np.zeros(3)})
      >>> nam_jax.torch_import.read(path)
      {'fc.bias': array([0., 0., 0.])}
    """
    path = Path(path)
    suffix = next((s for s in SUFFIXES if path.name.lower().endswith(s)), None)
    if suffix is None:
        raise ValueError(f"{path}: the suffix has to be one of {', '.join(SUFFIXES)}.")
    # Others may have no end, or never begin.
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"{path} is a pipe or a device, not a file.")
    with path.open("rb"):
        pass  # A missing file is reported as such, whatever the reader makes of it.
    try:
        state_dict = _READERS[suffix](path)
        if not all(name.isprintable() for name in state_dict):
            raise ValueError("a name of an array holds characters that cannot be printed")
        return state_dict
    except ImportError as error:
        raise ImportError(
            f"{path}: reading it needs safetensors: pip install safetensors"
        ) from error
    # What a damaged file makes a reader raise is not limited to a few kinds.
    except Exception as error:
        raise ValueError(f"{path} cannot be read as weights: {_line(error)}") from error


def _line(error: Exception) -> str:
    """What went wrong, in a line; what a file calls its parts may be long and of many lines."""
    text = "".join(char if char.isprintable() else " " for char in str(error))
    return text if len(text) <= 300 else f"{text[:300]}…"


def _read_npz(path: Path) -> StateDict:
    with zipfile.ZipFile(path) as archive:
        # A few megabytes can unfold to gigabytes.
        size = sum(member.file_size for member in archive.infolist())
        if size > max(path.stat().st_size, LARGEST_UNFOLDED):
            raise ValueError(f"it unfolds to {size:,} bytes, which is too much for weights")
        for member in archive.infolist():
            _check_size(archive, member)
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _check_size(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Refuses an array whose header promises more than the file holds, before it is made."""
    # Others unfold without a limit, whatever size they declare.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename} is compressed in an unknown way")
    with archive.open(member) as file:
        # One may declare a header of gigabytes.
        start = io.BytesIO(file.read(LONGEST_HEADER))
        version = np.lib.format.read_magic(start)
        headers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in headers:
            raise ValueError(f"{member.filename} has the unknown format {version}")
        shape, _, dtype = headers[version](start)
        size = math.prod(shape) * dtype.itemsize
        if dtype.itemsize == 0 or size != member.file_size - start.tell():
            raise ValueError(f"{member.filename} does not hold an array of the shape {shape}")


def _read_safetensors(path: Path) -> StateDict:
    from safetensors.numpy import load_file

    return load_file(path)


_READERS: dict[str, Callable[[Path], StateDict]] = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".pth": torch_save.read,
    ".pth.tar": torch_save.read,
    ".pt": torch_save.read,
}

# Of the files that are read.
SUFFIXES = tuple(_READERS)
