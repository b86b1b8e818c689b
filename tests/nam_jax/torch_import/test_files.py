"""Files of weights: what PyTorch, NumPy and safetensors write is read; what is none is named."""

import functools
import os
import pickle
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from nam_jax import ChannelNAM, torch_import
from tests.helpers.torch_weights.files import (
    EIGHT,
    ENTRY,
    FOLDER,
    MAGIC,
    SOUND,
    assert_refused,
    assert_same,
    each_format,
    literal,
    name,
    read,
    refuse,
    state_dict,
    storage,
    tensor,
    text,
    write_safetensors,
    write_zip,
)

FILES = ("zip.pth", "legacy.pth", "odd.pth", "odd_legacy.pth", "checkpoint.pth", "all.safetensors")
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
    assert_refused(FOLDER / "module.pth", r"only a pickled torch\..*ModuleDict; load it in PyTorch")


@pytest.mark.parametrize("as_path", [str, Path])
def test_path_may_be_text(as_path):
    assert_same(torch_import.read(as_path(FOLDER / "zip.pth")), expected("zip.pth"))


@pytest.mark.parametrize("suffix", ["", ".th", ".pth.tar", ".bin", ".npz", ".safetensors"])
@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "all.safetensors"])
def test_suffix_does_not_matter(tmp_path, name, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes((FOLDER / name).read_bytes())
    assert_same(torch_import.read(path), expected(name))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_read(tmp_path, save):
    arrays = expected("zip.pth") | {"fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3))}
    with (tmp_path / "weights.pth").open("wb") as file:
        save(file, **arrays)
    actual = torch_import.read(tmp_path / "weights.pth")
    assert_same(actual, arrays)
    assert actual["fortran"].dtype == np.float64


def test_safetensors_by_hand(tmp_path):
    # The control of the headers in test_hostile_files.py.
    write_safetensors(tmp_path / "weights.safetensors", {"a": ENTRY})
    assert_same(torch_import.read(tmp_path / "weights.safetensors"), {"a": np.zeros(2, np.float32)})


# Tensors of .pth files: views of what the file holds, and of nothing beyond it.


@each_format
@pytest.mark.parametrize(
    ("shape", "strides", "offset", "expected"),
    [
        ((2,), (1,), 0, [0, 1]),
        ((1,), (1,), 1, [1]),
        ((1, 2), (7, 1), 0, [[0, 1]]),
        ((), (), 1, 1),
        ((0, 3), (3, 1), 0, np.zeros((0, 3))),
        ([2], [1], 0, [0, 1]),
    ],
)
def test_views(tmp_path, format, shape, strides, offset, expected):
    array = read(tmp_path, format, state_dict(a=tensor(shape, strides, offset)))["a"]
    assert array.shape == np.shape(expected)
    np.testing.assert_array_equal(array, expected)


@each_format
@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((3,), (1,), 0),
        ((2,), (1,), 1),
        ((2,), (2,), 0),
        ((1,), (1,), 2),
        ((2**40,), (0,), 0),
        ((2**40, 2**40), (0, 0), 0),
        ((2,), (-1,), 1),
        ((-1,), (1,), 0),
        ((-2, -1), (1, 1), 0),
        ((2,), (1,), -1),
        ((1,), (1,), 2**70),
        ((2**70,), (1,), 0),
        ((2,), (2**70,), 0),
        ((2,), (1, 1), 0),
        ((2, 1), (1,), 0),
        ((True,), (1,), 0),
        ((1.0,), (1,), 0),
        (("a", 2**60), (1, 1), 0),
        (([0], 2**60), (1, 1), 0),
        ((1,), ("a",), 0),
        ((1,), (1,), "0"),
        ((1,), (1,), 0.0),
        (7, (1,), 0),
        (None, None, None),
    ],
)
def test_views_beyond_the_storage_are_refused(tmp_path, format, shape, strides, offset):
    refuse(tmp_path, format, state_dict(a=tensor(shape, strides, offset)))


def test_shape_is_not_computed_with_before_it_is_checked(tmp_path):
    # "a" times three billion is a text of three gigabytes.
    refuse(tmp_path, "zip", state_dict(a=tensor(("a", 2), (1, 1))), match="whole numbers")


@each_format
@pytest.mark.parametrize(
    "of",
    [
        storage(key="1"),
        storage(kind="LongStorage") + b"0K\x01",
        storage(kind="SpamStorage"),
        literal("FloatStorage"),
        literal(None),
        b"(" + text("storage") + b"tQ",
        b"(" + text("module") + name("torch", "FloatStorage") + literal(("0", "cpu", 2)) + b"tQ",
        b"K\x01Q",
        # A view of a part of another storage, as files before PyTorch 0.4 have them.
        storage(more=(("0", 1, 1),)),
    ],
)
def test_tensors_need_a_storage(tmp_path, format, of):
    refuse(tmp_path, format, state_dict(a=tensor((2,), (1,), of=of)))


@each_format
@pytest.mark.parametrize("kind", ["FloatStorage", "DoubleStorage", "HalfStorage"])
def test_storage_may_be_larger_than_it_says(tmp_path, format, kind):
    # What counts are the bytes of the file.
    of = storage(size=2**60, kind=kind)
    refuse(tmp_path, format, state_dict(a=tensor((5,), (1,), of=of)))


@pytest.mark.parametrize("size", [0, 1])
def test_legacy_storage_of_a_smaller_size_is_refused(tmp_path, size):
    refuse(tmp_path, "legacy", SOUND, sizes={"0": size})


@pytest.mark.parametrize("size", [3, 2**31, 2**60])
def test_legacy_storage_is_as_large_as_the_rest_of_the_file(tmp_path, size):
    arrays = read(tmp_path, "legacy", SOUND, sizes={"0": size})
    np.testing.assert_array_equal(arrays["a"], [0, 1])


# The archive.


@pytest.mark.parametrize("size", [8, 100_000])
def test_compressed_archive_is_refused(tmp_path, size):
    options = {"compression": zipfile.ZIP_DEFLATED, "match": "compressed, or its members overlap"}
    refuse(tmp_path, "zip", SOUND, {"0": bytes(size)}, **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def test_overlapping_members_are_refused(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", SOUND)
        archive.writestr("archive/data/0", bytes(10_000))
        archive.filelist += archive.filelist[-1:] * 100
    assert_refused(path, "or its members overlap; fetch the file again, or save it anew$")


@pytest.mark.parametrize(
    "names", [["data.pkl"], ["a/data.pkl", "b/data.pkl"], ["a/spam"], ["a/data.pkl", "b/data/0"]]
)
def test_archive_of_other_members_is_refused(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for member in names:
            archive.writestr(member, SOUND)
    assert_refused(path)


def test_name_of_the_archive_does_not_matter(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("resnet/18/data.pkl", SOUND)
        archive.writestr("resnet/18/data/0", EIGHT["0"])
        archive.writestr("resnet/18/version", "3\n")
    np.testing.assert_array_equal(torch_import.read(path)["a"], [0, 1])


def test_numbers_of_a_big_endian_machine_are_not_misread(path):
    write_zip(path, SOUND, {"0": np.arange(2, dtype=">f4").tobytes()})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", "big")
    assert_refused(path, "big-endian machine: save it on another$")


# Files that are taken for weights, and are none: one line says what each is and what to do.


@pytest.fixture
def weights(tmp_path):
    return tmp_path / "weights.pth"


POINTER = b"""version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 12345
"""
# How ONNX models begin, of PyTorch and of others: version, producer or graph.
ONNX = b'\x08\x08\x12\x07pytorch\x1a\x052.3.0:\xa5{"'
OTHERS = {
    "empty": (b"", "is empty: fetch it again"),
    "pointer": (POINTER, "Git LFS pointer, .*git lfs pull"),
    "page": (b"\n<!DOCTYPE html>\n<html><head>", "web page, .* download that one"),
    "page with a mark": (b"\xef\xbb\xbf<HTML>", "web page"),
    "error of a store": (b'<?xml version="1.0"?><Error><Code>AccessDenied', "web page"),
    "error": (b"404: Not Found", "text that begins with '404: Not Found'"),
    "json": (b'{"metadata": {}, "weight_map": {}}\n', "text that begins with"),
    "json of an error": (b'{"data":{"message": "no such file"}}', "text that begins with"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(90), "HDF5 file, as Keras writes.*npz"),
    "onnx": (ONNX, "ONNX model: save the network's state_dict"),
    "onnx of a graph": (b"\x08\x0a\x3a\x80\x01" + bytes(200), "ONNX model"),
    "npy": (b"\x93NUMPY\x01\x00v\x00{'descr'", "one NumPy array: .*numpy.savez"),
    "tflite": (b"\x1c\x00\x00\x00TFL3" + bytes(90), "TensorFlow Lite"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(90), "unpack it"),
    "tar": (b"sys_info".ljust(257, b"\0") + b"ustar  ", "unpack it"),
    "pickle": (pickle.dumps({"a": np.zeros(2)}, 4), "a pickle, but not one of torch.save"),
    "pickle of 2": (pickle.dumps([MAGIC + 1], 2), "a pickle, but not one of torch.save"),
    "zeros": (bytes(1000), "no file of torch.save, safetensors or NumPy"),
    "cut short": ((FOLDER / "zip.pth").read_bytes()[:2000], "damaged or cut short: fetch it"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_it_is_is_said(weights, name):
    content, message = OTHERS[name]
    weights.write_bytes(content)
    assert_refused(weights, message)


ARCHIVES = {
    "keras": (["metadata.json", "config.json", "model.weights.h5"], "Keras model: .*npz"),
    "wrapped": (["model/resnet.pth", "model/readme"], "unpack it; it holds model/resnet.pth"),
    "nothing": ([], "it holds nothing"),
    "torchscript": (["m/data.pkl", "m/code/__torch__.py", "m/constants.pkl"], "TorchScript"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_what_an_archive_is_is_said(weights, name):
    members, message = ARCHIVES[name]
    with zipfile.ZipFile(weights, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in members:
            archive.writestr(member, literal(1))
    assert_refused(weights, message)


def test_names_of_arrays_may_be_those_of_torchscript(weights):
    np.savez(
        weights.with_suffix(".npz"), **{"a/code/b": np.zeros(1), "b/constants.pkl": np.zeros(1)}
    )
    assert list(torch_import.read(weights.with_suffix(".npz"))) == ["a/code/b", "b/constants.pkl"]


def test_torchscript_of_pytorch_is_refused():
    assert_refused(FOLDER / "script.pth", r"TorchScript archive: load it with torch\.jit\.load")


def test_missing_file_is_reported_as_missing(weights):
    for function in (torch_import.read, torch_import.list_state_dicts):
        with pytest.raises(FileNotFoundError):
            function(weights)


def test_directory_is_reported_as_such(weights):
    weights.mkdir()
    with pytest.raises(IsADirectoryError, match=r"is a directory: name the file of weights in it"):
        torch_import.read(weights)


def test_pipe_is_refused_and_not_waited_for(weights):
    os.mkfifo(weights)
    with pytest.raises(
        ValueError, match=r"weights\.pth is a pipe or a device: name a file of weights\.$"
    ):
        torch_import.read(weights)
