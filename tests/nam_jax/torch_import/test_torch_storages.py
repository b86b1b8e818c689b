"""Tensors of .pth files: views of what the file holds, and of nothing beyond it."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nam_jax import torch_import
from tests.helpers import pickles
from tests.helpers.pickles import (
    EIGHT,
    HEAD,
    SOUND,
    each_format,
    literal,
    name,
    read,
    refuse,
    state_dict,
    storage,
    tensor,
    text,
)


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


@each_format
@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        HEAD,
        HEAD + b".",
        HEAD + b"}",
        HEAD + b"N.",
        HEAD + b"].",
        HEAD + b"K\x01.",
        state_dict(a=b"K\x01"),
        state_dict(a=b"N"),
        state_dict(state_dict=state_dict(a=b"N")[2:-1]),
        state_dict(a=tensor((2,), (1,)), b=b"K\x01"),
        HEAD + b"}K\x01" + tensor((2,), (1,)) + b"s.",
        b"\x80\x63}.",
        b"\x80\x05\x97.",
        b"\x80\x02\x82\x01.",
        HEAD + b"\x95" + b"\xff" * 8 + b"}.",
        HEAD + b"\x8d" + (2**60).to_bytes(8, "little") + b".",
        HEAD + b"\x96" + (2**60).to_bytes(8, "little") + b".",
        HEAD + b"\x8b" + (2**31 - 1).to_bytes(4, "little") + b".",
        HEAD + b"]" * 100_000 + b"a" * 99_999 + b".",
        HEAD + b"(" * 100_000 + b"t" * 100_000 + b".",
    ],
)
def test_pickles_of_something_else_are_refused(tmp_path, format, pickled):
    refuse(tmp_path, format, pickled)


@each_format
@pytest.mark.parametrize("put", [b"r" + b"\xff" * 4, b"p4000000000\n", b"p" + b"9" * 30 + b"\n"])
def test_memo_is_not_allocated_up_to_an_index(tmp_path, format, put):
    # Python's own unpickler takes 32 GB for the first.
    arrays = read(tmp_path, format, state_dict(a=tensor((2,), (1,)) + put))
    np.testing.assert_array_equal(arrays["a"], [0, 1])


FATAL = {
    # The hash of a key nested this deep would overflow the stack.
    "nested": HEAD + b"})" + b"\x85" * 3_000_000 + b"K\x01s.",
    # The hash of a key of 2¹⁰⁰ leaves would never end.
    "shared": HEAD + b"})" + b"q\x00h\x00\x86" * 100 + b"K\x01s.",
    # A functools.partial that was told to call itself.
    "partial": HEAD + name("collections", "Counter") + b"q\x00(h\x00)}Ntb" + b")R.",
}


@pytest.mark.parametrize("kind", FATAL)
def test_no_pickle_takes_the_process_down(tmp_path, kind):
    path = tmp_path / "weights.pth"
    pickles.write_zip(path, FATAL[kind], EIGHT)
    # In a process of its own, which may crash or hang.
    script = "import sys; from nam_jax import torch_import; torch_import.read(sys.argv[1])"
    child = [sys.executable, "-c", script, str(path)]
    root = Path(__file__).parents[3]
    done = subprocess.run(child, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "cannot be read as weights" in done.stderr


# The archive.


@pytest.mark.parametrize("size", [8, 100_000])
def test_compressed_archive_is_refused(tmp_path, size):
    path = tmp_path / "weights.pth"
    pickles.write_zip(path, SOUND, {"0": bytes(size)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed, or its members overlap"):
        torch_import.read(path)


def test_overlapping_members_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", SOUND)
        archive.writestr("archive/data/0", bytes(10_000))
        archive.filelist += archive.filelist[-1:] * 100
    with pytest.raises(ValueError, match="compressed, or its members overlap"):
        torch_import.read(path)


@pytest.mark.parametrize(
    "names", [["data.pkl"], ["a/data.pkl", "b/data.pkl"], ["a/spam"], ["a/data.pkl", "b/data/0"]]
)
def test_archive_of_other_members_is_refused(tmp_path, names):
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        for member in names:
            archive.writestr(member, SOUND)
    with pytest.raises(ValueError, match=r"weights\.pth cannot be read as weights"):
        torch_import.read(path)


def test_name_of_the_archive_does_not_matter(tmp_path):
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("resnet/18/data.pkl", SOUND)
        archive.writestr("resnet/18/data/0", EIGHT["0"])
        archive.writestr("resnet/18/version", "3\n")
    np.testing.assert_array_equal(torch_import.read(path)["a"], [0, 1])


def test_numbers_of_a_big_endian_machine_are_not_misread(tmp_path):
    path = tmp_path / "weights.pth"
    big = np.arange(2, dtype=">f4").tobytes()
    pickles.write_zip(path, SOUND, {"0": big})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", "big")
    with pytest.raises(ValueError, match="big-endian"):
        torch_import.read(path)
