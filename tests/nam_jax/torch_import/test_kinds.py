"""Files that are taken for weights, and are none: one line says what each is and what to do."""

import os
import pickle
import zipfile

import numpy as np
import pytest

from nam_jax import torch_import
from tests.helpers.torch_weights.files import FOLDER, MAGIC, assert_refused, literal


@pytest.fixture
def path(tmp_path):
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
def test_what_it_is_is_said(path, name):
    content, message = OTHERS[name]
    path.write_bytes(content)
    assert_refused(path, message)


ARCHIVES = {
    "keras": (["metadata.json", "config.json", "model.weights.h5"], "Keras model: .*npz"),
    "wrapped": (["model/resnet.pth", "model/readme"], "unpack it; it holds model/resnet.pth"),
    "nothing": ([], "it holds nothing"),
    "torchscript": (["m/data.pkl", "m/code/__torch__.py", "m/constants.pkl"], "TorchScript"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_what_an_archive_is_is_said(path, name):
    members, message = ARCHIVES[name]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in members:
            archive.writestr(member, literal(1))
    assert_refused(path, message)


def test_names_of_arrays_may_be_those_of_torchscript(path):
    np.savez(path.with_suffix(".npz"), **{"a/code/b": np.zeros(1), "b/constants.pkl": np.zeros(1)})
    assert list(torch_import.read(path.with_suffix(".npz"))) == ["a/code/b", "b/constants.pkl"]


def test_torchscript_of_pytorch_is_refused():
    assert_refused(FOLDER / "script.pth", r"TorchScript archive: load it with torch\.jit\.load")


def test_missing_file_is_reported_as_missing(path):
    for function in (torch_import.read, torch_import.list_state_dicts):
        with pytest.raises(FileNotFoundError):
            function(path)


def test_directory_is_reported_as_such(path):
    path.mkdir()
    with pytest.raises(IsADirectoryError, match=r"is a directory: name the file of weights in it"):
        torch_import.read(path)


def test_pipe_is_refused_and_not_waited_for(path):
    os.mkfifo(path)
    with pytest.raises(ValueError, match=r"weights\.pth is a pipe or a device, not a file\.$"):
        torch_import.read(path)
