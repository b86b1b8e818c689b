"""Files of weights made by hand, sound and hostile, and how they are refused.

The pickles of torch.save are written one opcode after another.
"""

import json
import pickle
import re
import resource
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nam_jax import torch_import
from tests.helpers.networks import GOLDEN

# Files that PyTorch and safetensors wrote.
FOLDER = GOLDEN / "torch"

MOST_BYTES = 2**28  # what reading a small file may take in memory
LONGEST_MESSAGE = 301

# The first opcode of protocol 2.
HEAD = b"\x80\x02"
MAGIC = 0x1950A86A20F9469CFC6C


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def literal(value: Any) -> bytes:
    """Opcodes that push a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def storage(size: int = 2, key: str = "0", kind: str = "FloatStorage", more: Any = ()) -> bytes:
    ends = text("storage") + name("torch", kind) + text(key) + text("cpu")
    return b"(" + ends + b"".join(map(literal, (size, *more))) + b"tQ"


def tensor(shape: Any, strides: Any, offset: Any = 0, of: bytes | None = None) -> bytes:
    arguments = (of or storage()) + b"".join(map(literal, (offset, shape, strides)))
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def state_dict(**values: bytes) -> bytes:
    """A whole pickle of a dict; the values are opcodes."""
    return HEAD + b"}" + b"".join(text(k) + v + b"s" for k, v in values.items()) + b"."


EIGHT = {"0": np.arange(2, dtype=np.float32).tobytes()}
TENSOR = tensor((2,), (1,))
SOUND = state_dict(a=TENSOR)


def write_zip(
    path: Path, pickled: bytes, storages: dict[str, bytes], compression: int = zipfile.ZIP_STORED
) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)


def write_legacy(
    path: Path, pickled: bytes, storages: dict[str, bytes], sizes: dict[str, int] | None = None
) -> None:
    head = b"".join(pickle.dumps(value, 2) for value in (MAGIC, 1001, {}))
    sizes = sizes or {key: len(data) // 4 for key, data in storages.items()}
    tail = b"".join(sizes[key].to_bytes(8, "little") + data for key, data in storages.items())
    path.write_bytes(head + pickled + pickle.dumps(list(storages), 2) + tail)


WRITERS = {"zip": write_zip, "legacy": write_legacy}
each_format = pytest.mark.parametrize("format", WRITERS)

# An array in the header of a file of safetensors.
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write_safetensors(
    path: Path, header: Any, data: bytes = bytes(8), length: int | None = None
) -> None:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(encoded) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + encoded + data)


def read(folder: Path, format: str, pickled: bytes, storages: Any = EIGHT, **options: Any) -> Any:
    WRITERS[format](folder / "weights.pth", pickled, storages, **options)
    return torch_import.read(folder / "weights.pth")


def refuse(
    folder: Path,
    format: str,
    pickled: bytes,
    storages: Any = EIGHT,
    match: str = "",
    **options: Any,
) -> None:
    WRITERS[format](folder / "weights.pth", pickled, storages, **options)
    assert_refused(folder / "weights.pth", match)


def assert_refused(path: Path, match: str = "") -> None:
    reason = refusal(path)
    assert reason is not None
    assert re.search(match, reason), reason


def refusal(path: Path) -> str | None:
    """Why a file is not read, in one short line; None where it is read."""
    try:
        torch_import.read(path)
    except ValueError as error:
        message = str(error)
    else:
        return None
    beginning = f"{path} cannot be read as weights: "
    assert message.startswith(beginning)
    reason = message.removeprefix(beginning)
    assert reason.isprintable()
    assert len(reason) <= LONGEST_MESSAGE
    return reason


def refused_within(path: Path) -> str:
    """What made the reader refuse a file, with little more memory than is taken already."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MOST_BYTES, before[1]))
    try:
        torch_import.read(path)
    except ValueError as error:
        return type(error.__cause__).__name__
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    return "nothing"


def assert_same(actual: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert set(actual) == set(wanted)
    for key, value in wanted.items():
        assert actual[key].shape == value.shape
        np.testing.assert_array_equal(actual[key].astype(value.dtype), value, err_msg=key)
