"""Files of weights: what PyTorch, NumPy and safetensors write is read, damage is a ValueError."""

import functools
import json
import os
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from nam_jax import ChannelNAM, torch_import
from tests.helpers.networks import GOLDEN

FOLDER = GOLDEN / "torch"
FILES = ("zip.pth", "legacy.pth", "odd.pth", "odd_legacy.pth", "checkpoint.pth", "all.safetensors")
SUFFIXES = (".npz", ".safetensors", ".pth", ".pt")
DTYPES = {
    "bfloat16": jnp.bfloat16,
    "transposed": jnp.bfloat16,
    "half": np.float16,
    "double": np.float64,
    "bool": np.bool_,
    "zero_dimensions": np.int64,
}


@functools.cache
def expected(name):
    with np.load(FOLDER / "expected.npz") as file:
        prefix = f"{name}:"
        return {k.removeprefix(prefix): file[k] for k in file.files if k.startswith(prefix)}


def assert_same(actual, wanted):
    assert set(actual) == set(wanted)
    for name, value in wanted.items():
        assert actual[name].shape == value.shape
        np.testing.assert_array_equal(actual[name].astype(value.dtype), value, err_msg=name)


@pytest.mark.parametrize("name", FILES)
def test_every_array_of_pytorch_is_read(name):
    assert_same(torch_import.read(FOLDER / name), expected(name))


@pytest.mark.parametrize("name", ["odd.pth", "odd_legacy.pth", "all.safetensors"])
def test_dtypes_are_kept(name):
    arrays = torch_import.read(FOLDER / name)
    assert {key: arrays[key].dtype for key in DTYPES} == {k: np.dtype(v) for k, v in DTYPES.items()}
    assert arrays["middle"].dtype == np.float32


def test_checkpoint_of_data_parallel_is_imported():
    state_dict = torch_import.read(FOLDER / "checkpoint.pth")
    wanted = expected("checkpoint.pth")
    variables = torch_import.variables(ChannelNAM(), state_dict, (1, 2, 3, 4))
    norm = variables["params"]["nam_bn"] | variables["batch_stats"]["nam_bn"]
    leaves = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    for ours, theirs in leaves.items():
        np.testing.assert_array_equal(norm[ours], wanted[f"module.bn2.{theirs}"])


def test_pickled_module_is_refused():
    with pytest.raises(ValueError, match=r"module.pth .* only tensors are read; save the state_d"):
        torch_import.read(FOLDER / "module.pth")


@pytest.mark.parametrize("as_path", [str, Path])
def test_path_may_be_text(as_path):
    assert_same(torch_import.read(as_path(FOLDER / "zip.pth")), expected("zip.pth"))


def test_pt_is_pth(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes((FOLDER / "zip.pth").read_bytes())
    assert_same(torch_import.read(path), expected("zip.pth"))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_read(tmp_path, save):
    arrays = expected("zip.pth") | {"fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3))}
    save(tmp_path / "weights.npz", **arrays)
    actual = torch_import.read(tmp_path / "weights.npz")
    assert_same(actual, arrays)
    assert actual["fortran"].dtype == np.float64


# What cannot be read.


def make(path):
    """A sound file, of any suffix."""
    sources = {".safetensors": "all.safetensors", ".pth": "legacy.pth", ".pt": "zip.pth"}
    if path.suffix == ".npz":
        np.savez(path, **expected("zip.pth"))
    else:
        path.write_bytes((FOLDER / sources[path.suffix]).read_bytes())
    return path.read_bytes()


def read_or_refuse(path):
    """The arrays, or None where a ValueError names the file; nothing else is raised."""
    try:
        return torch_import.read(path)
    except ValueError as error:
        message = str(error)
    assert str(path) in message
    return None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_file_cut_short_is_refused(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    data = make(path)
    for length in range(0, len(data), 1 + len(data) // 150):
        path.write_bytes(data[:length])
        assert read_or_refuse(path) is None, length


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_flipped_bit_is_no_other_error(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    data = make(path)
    intact = torch_import.read(path)
    rng = np.random.default_rng(0)
    for position in rng.integers(len(data), size=400):
        damaged = bytearray(data)
        damaged[position] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        arrays = read_or_refuse(path)
        # Zip archives have checksums: what can be read is what was written.
        if arrays is not None and suffix in (".npz", ".pt"):
            assert_same(arrays, intact)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("data", [b"", b"spam", b"PK\x05\x06" + bytes(18), bytes(1000)])
def test_what_is_no_such_file_is_refused(tmp_path, suffix, data):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(data)
    # An archive of nothing is a .npz of nothing.
    assert read_or_refuse(path) == ({} if suffix == ".npz" and data[:2] == b"PK" else None)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_file_is_reported_as_missing(tmp_path, suffix):
    with pytest.raises(FileNotFoundError):
        torch_import.read(tmp_path / f"weights{suffix}")


def test_folder_is_reported_as_such(tmp_path):
    (tmp_path / "weights.pth").mkdir()
    with pytest.raises(IsADirectoryError):
        torch_import.read(tmp_path / "weights.pth")


def test_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "weights.npz")
    with pytest.raises(ValueError, match=r"weights\.npz is a pipe or a device, not a file\.$"):
        torch_import.read(tmp_path / "weights.npz")


@pytest.mark.parametrize("name", ["weights.h5", "weights", "weights.npy"])
def test_other_suffixes_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"has to be one of \.npz, \.safetensors, \.pth, \.pt"):
        torch_import.read(tmp_path / name)


def test_npz_with_pickled_objects_is_refused(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, a=np.array([{}, None], dtype=object))
    with pytest.raises(ValueError, match=r"weights\.npz cannot be read"):
        torch_import.read(path)


@pytest.mark.parametrize("shape", [(2**50,), (2**20, 2**20), (-1, -1), (3,)])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_npz_that_promises_more_than_it_holds_is_refused(tmp_path, shape, version):
    path = tmp_path / "weights.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("a.npy", "w") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        write = getattr(np.lib.format, f"write_array_header_{version[0]}_{version[1]}")
        write(file, header)
        file.write(bytes(8))
    with pytest.raises(ValueError, match="does not hold an array of the shape"):
        torch_import.read(path)


def safetensors_file(path, header, data=bytes(8), length=None):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(encoded) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + encoded + data)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def test_safetensors_by_hand(tmp_path):
    # The control of the next test.
    safetensors_file(tmp_path / "weights.safetensors", {"a": ENTRY})
    assert_same(torch_import.read(tmp_path / "weights.safetensors"), {"a": np.zeros(2, np.float32)})


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ({"a": ENTRY | {"shape": [3]}}, None),
        ({"a": ENTRY | {"shape": [2**40]}}, None),
        ({"a": ENTRY | {"shape": [2**62, 4]}}, None),
        ({"a": ENTRY | {"shape": [-2]}}, None),
        ({"a": ENTRY | {"data_offsets": [0, 2**40]}}, None),
        ({"a": ENTRY | {"data_offsets": [8, 0]}}, None),
        ({"a": ENTRY | {"dtype": "F31"}}, None),
        ({"a": ENTRY, "b": ENTRY}, None),
        ({"a": ENTRY}, 2**60),
        ({"a": ENTRY}, 2**64 - 1),
        ([], None),
        (b"\xff" * 20, None),
        (b"[" * 100_000, None),
    ],
)
def test_safetensors_with_a_lying_header_is_refused(tmp_path, header, length):
    path = tmp_path / "weights.safetensors"
    safetensors_file(path, header, length=length)
    assert read_or_refuse(path) is None
