"""Pickles by hand, one opcode after another, in the two containers of torch.save."""

import pickle
import zipfile

import numpy as np
import pytest

from nam_jax import torch_import

# The first opcode of protocol 2.
HEAD = b"\x80\x02"
MAGIC = 0x1950A86A20F9469CFC6C


def text(value):
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def literal(value):
    """Opcodes that push a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def storage(size=2, key="0", kind="FloatStorage", more=()):
    ends = text("storage") + name("torch", kind) + text(key) + text("cpu")
    return b"(" + ends + b"".join(map(literal, (size, *more))) + b"tQ"


def tensor(shape, strides, offset=0, of=None):
    arguments = (of or storage()) + b"".join(map(literal, (offset, shape, strides)))
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def state_dict(**values):
    """A whole pickle of a dict; the values are opcodes."""
    return HEAD + b"}" + b"".join(text(k) + v + b"s" for k, v in values.items()) + b"."


def write_zip(path, pickled, storages, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)


def write_legacy(path, pickled, storages, sizes=None):
    head = b"".join(pickle.dumps(value, 2) for value in (MAGIC, 1001, {}))
    sizes = sizes or {key: len(data) // 4 for key, data in storages.items()}
    tail = b"".join(sizes[key].to_bytes(8, "little") + data for key, data in storages.items())
    path.write_bytes(head + pickled + pickle.dumps(list(storages), 2) + tail)


WRITERS = {"zip": write_zip, "legacy": write_legacy}

EIGHT = {"0": np.arange(2, dtype=np.float32).tobytes()}
SOUND = state_dict(a=tensor((2,), (1,)))
each_format = pytest.mark.parametrize("format", WRITERS)


def read(tmp_path, format, pickled, storages=EIGHT, **options):
    path = tmp_path / "weights.pth"
    WRITERS[format](path, pickled, storages, **options)
    return torch_import.read(path)


def refuse(tmp_path, format, pickled, storages=EIGHT, match="cannot be read as weights", **options):
    with pytest.raises(ValueError, match=match):
        read(tmp_path, format, pickled, storages, **options)
