"""State dicts from files. Nothing in a file is executed."""

import contextlib
import io
import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nam_jax.torch_import import checkpoint, kinds, torch_save
from nam_jax.torch_import.checkpoint import StateDictKeyError
from nam_jax.torch_import.wording import NotWeightsError

StateDict = dict[str, np.ndarray]

# What the arrays of a .npz file may take in memory, where that is more than the file's own size.
LARGEST_UNFOLDED = 2**32
# Of an array in such a file; NumPy takes none of more than 10,000 bytes.
LONGEST_HEADER = 2**14


def read(path: str | os.PathLike[str], key: str | None = None) -> StateDict:
    """Reads a state dict from a file of PyTorch, safetensors or NumPy (.npz).

    What kind it is, the content tells; the suffix may be any. Files of torch.save are read
    without PyTorch and without running any code of theirs: in the state dict, everything but
    tensors is refused, and what else is in a checkpoint is passed over.

    In a checkpoint the network's state dict is found under its usual names (`state_dict`,
    `model`, `net` and the like, also one in another), or else the averaged one (such as
    `model_ema`), or else the only one; a key takes any other that `list_state_dicts` gives, or
    of one the entries whose names begin alike.

    Args:
      path: File of weights.
      key: Dotted key of the state dict in a checkpoint, such as `state_dict_ema` (default: it
        is found), or such a key and a prefix of names: `state_dict.model` takes `model.fc.weight`
        as `fc.weight`, and nothing beside `model`.

    Returns:
      Arrays by name.

    Raises:
      StateDictKeyError: there is no state dict of this key, or several may be meant; it is a
        `ValueError`.
      ValueError: it is a pipe or a device, no file of weights, damaged, or its state dict holds
        other things than tensors.
      OSError: the file cannot be opened.
      ImportError: For a file of safetensors, the package of that name is missing.

    Example:
      >>> import nam_jax, numpy as np, pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "weights.npz")
      >>> np.savez(path, **{"fc.bias": np.zeros(3)})
      >>> nam_jax.torch_import.read(path)
      {'fc.bias': array([0., 0., 0.])}
    """
    path = _checked(path)
    with _in_a_line(path):
        state_dict = _read(path, key or None)
        if not all(name.isprintable() for name in state_dict):
            raise NotWeightsError(
                "a name of an array holds characters that cannot be printed: give it another"
            )
        return state_dict


def list_state_dicts(path: str | os.PathLike[str]) -> list[str]:
    """Lists the state dicts of a file by the keys that `read` takes.

    Args:
      path: File of weights.

    Returns:
      Dotted keys, first the one that `read` takes by itself, if there is such; an empty one is that
      of the whole file.

    Raises:
      ValueError, OSError: see `read`.
    """
    path = _checked(path)
    with _in_a_line(path):
        return torch_save.keys(path) if kinds.kind(path) == "torch" else [""]


def _read(path: Path, key: str | None) -> StateDict:
    kind = kinds.kind(path)
    if kind == "torch":
        return torch_save.read(path, key)
    arrays = _read_npz(path) if kind == "npz" else _read_safetensors(path)
    chosen = checkpoint.below(arrays, key or "")
    if key and not chosen:
        raise checkpoint.unknown_key(key, [""])
    return chosen


def _checked(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory: name the file of weights in it.")
    # Others may have no end, or never begin.
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a pipe or a device: name a file of weights.")
    with path.open("rb"):
        return path  # A missing file is reported as such, whatever a reader makes of it.


@contextlib.contextmanager
def _in_a_line(path: Path) -> Iterator[None]:
    """Makes of any error a short line that names the file."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"{path} needs the package safetensors; get it with pip install safetensors."
        ) from error
    # What a damaged file makes a reader raise is not limited to a few kinds.
    except Exception as error:
        told = StateDictKeyError if isinstance(error, StateDictKeyError) else ValueError
        is_whole = isinstance(error, StateDictKeyError | NotWeightsError | OSError | MemoryError)
        advice = "" if is_whole else "; fetch the file again, or save it anew"
        raise told(f"{path} cannot be read as weights: {_line(error)}{advice}") from error


def _line(error: Exception) -> str:
    """What went wrong, in a line; what a file calls its parts may be long and of many lines."""
    text = "".join(char if char.isprintable() else " " for char in str(error))
    return text if len(text) <= 250 else f"{text[:250]}…"


def _read_npz(path: Path) -> StateDict:
    with zipfile.ZipFile(path) as archive:
        # A few megabytes can unfold to gigabytes.
        size = sum(member.file_size for member in archive.infolist())
        if size > max(path.stat().st_size, LARGEST_UNFOLDED):
            raise NotWeightsError(
                f"it unfolds to {size:,} bytes; at most {LARGEST_UNFOLDED:,} are read"
            )
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
