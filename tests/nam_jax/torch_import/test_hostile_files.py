"""Hostile and damaged files of weights: refused in one short line, or right values.

Nothing in them runs, and what they promise is not allocated.
"""

import functools
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nam_jax import torch_import
from nam_jax.torch_import import files
from tests.helpers.damage import Child, damaged, damages, json_values, places, put
from tests.helpers.torch_weights.files import (
    EIGHT,
    ENTRY,
    FOLDER,
    HEAD,
    TENSOR,
    assert_refused,
    assert_same,
    literal,
    name,
    refusal,
    refused_within,
    state_dict,
    storage,
    tensor,
    text,
    write_legacy,
    write_safetensors,
    write_zip,
)

pytestmark = pytest.mark.faults


# Damage.

SOURCES = ("stored.npz", "all.safetensors", "legacy.pth", "zip.pth")
MORE_SOURCES = ("compressed.npz", "odd.pth", "odd_legacy.pth", "checkpoint.pth")
each_source = pytest.mark.parametrize("source", SOURCES)


def sound(path: Path, source: str) -> bytes:
    if path.suffix == ".npz":
        arrays = {"a": np.arange(60.0).reshape(6, 10), **torch_import.read(FOLDER / "zip.pth")}
        (np.savez if source == "stored.npz" else np.savez_compressed)(path, **arrays)
        return path.read_bytes()
    return (FOLDER / source).read_bytes()


@each_source
def test_file_cut_short_is_refused(tmp_path: Path, source: str) -> None:
    path = tmp_path / source
    data = sound(path, source)
    for length in range(0, len(data), 1 + len(data) // 150):
        path.write_bytes(data[:length])
        assert refusal(path) is not None, length


@each_source
def test_flipped_bit_is_no_other_error(tmp_path: Path, source: str) -> None:
    path = tmp_path / source
    data = sound(path, source)
    path.write_bytes(data)
    intact = torch_import.read(path)
    rng = np.random.default_rng(0)
    for position in rng.integers(len(data), size=400):
        flipped = bytearray(data)
        flipped[position] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        # Zip archives have checksums: what can be read is what was written.
        if refusal(path) is None and source in ("stored.npz", "zip.pth"):
            assert_same(torch_import.read(path), intact)


@pytest.mark.parametrize("source", [*SOURCES, *MORE_SOURCES])
@given(data=st.data())
def test_damaged_file_is_refused_or_read(
    child: Child, scratch: Path, source: str, data: st.DataObject
) -> None:
    path = scratch / source
    before = sound(path, source)
    path.write_bytes(before)
    intact = torch_import.read(path)
    path.write_bytes(damaged(before, data.draw(damages(len(before)))))
    if child.run(refusal, path) is None and zipfile.is_zipfile(path):
        # Zip archives have checksums.
        arrays = torch_import.read(path)
        assert_same(arrays, {key: intact[key] for key in arrays})


# Headers that lie.


@given(data=st.data())
def test_any_header_of_safetensors_is_refused_or_obeyed(
    child: Child, scratch: Path, data: st.DataObject
) -> None:
    path = scratch / "weights.safetensors"
    numbers = np.arange(4, dtype=np.float32)
    header: Any = {
        "a": ENTRY,
        "b": {"dtype": "F32", "shape": [1, 2], "data_offsets": [8, 16]},
        "__metadata__": {"format": "pt"},
    }
    header = json.loads(json.dumps(header))
    dtypes = st.sampled_from(["F64", "BF16", "F16", "I8", "U64", "BOOL", "F8_E4M3", "C64", "F4"])
    sizes = st.integers(-1, 17) | st.sampled_from([2**31, 2**32, 2**61, 2**62, 2**63, 2**64 - 1])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(sorted(places(header), key=str)))
        put(header, place, data.draw(dtypes | sizes | json_values))
    write_safetensors(path, header, numbers.tobytes())
    if child.run(refusal, path) is None:
        for key, array in torch_import.read(path).items():
            start, end = header[key]["data_offsets"]
            assert array.shape == tuple(header[key]["shape"])
            assert array.tobytes() == numbers.tobytes()[start:end]


@pytest.mark.parametrize(
    "header",
    [
        {"a": ENTRY | {"shape": [3]}},
        {"a": ENTRY | {"shape": [1]}},
        {"a": ENTRY | {"shape": [2**62, 4]}},
        {"a": ENTRY | {"shape": [2, 2**63]}},
        {"a": ENTRY | {"shape": [-2]}},
        {"a": ENTRY | {"data_offsets": [0, 12]}},
        {"a": ENTRY | {"data_offsets": [4, 12]}},
        {"a": ENTRY | {"data_offsets": [0, 2**40]}},
        {"a": ENTRY | {"data_offsets": [8, 0]}},
        {"a": ENTRY | {"dtype": "F31"}},
        {"a": ENTRY | {"dtype": "F64"}},
        {"a": ENTRY, "b": ENTRY},
        {"a": ENTRY, "b": ENTRY | {"data_offsets": [4, 12]}},
        b'{"a": %b, "a": %b}' % ((json.dumps(ENTRY | {"data_offsets": [0, 4]}).encode(),) * 2),
        [],
        b"\xff" * 20,
        b"[" * 100_000,
    ],
)
def test_header_at_odds_with_its_bytes_is_refused(tmp_path: Path, header: Any) -> None:
    write_safetensors(tmp_path / "weights.safetensors", header)
    assert_refused(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("length", [2**60, 2**64 - 1])
def test_header_longer_than_its_file_is_refused(tmp_path: Path, length: int) -> None:
    write_safetensors(tmp_path / "weights.safetensors", {"a": ENTRY}, length=length)
    assert_refused(tmp_path / "weights.safetensors")


DESCRIPTIONS = (
    *("<f4", ">f8", "<f2", "|b1", "<U3", "|V8", "|S0", "|O", "<M8[s]"),
    *("<f4,<i4", "<U99999999", "?", ""),
)
lengths = st.integers(-2, 13) | st.sampled_from([2**31, 2**40, 2**63, 2**64, True, 1.5, None])


@given(
    description=st.sampled_from(DESCRIPTIONS),
    shape=st.lists(lengths, max_size=3).map(tuple),
    header=st.none() | st.binary(max_size=80),
    compression=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
)
def test_any_header_of_a_npz_file_is_refused_or_obeyed(
    child: Child,
    scratch: Path,
    description: str,
    shape: tuple[Any, ...],
    header: bytes | None,
    compression: int,
) -> None:
    if header is None:
        values = {"descr": description, "fortran_order": False, "shape": shape}
        header = repr(values).encode() + b"\n"
    numbers = np.arange(6, dtype=np.float32).tobytes()
    path = scratch / "weights.npz"
    with zipfile.ZipFile(path, "w", compression) as archive:
        start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
        archive.writestr("a.npy", start + header + numbers)
    if child.run(refusal, path) is None:
        array = torch_import.read(path)["a"]
        assert array.shape == shape
        assert array.tobytes() == numbers


@pytest.mark.parametrize("shape", [(2**50,), (2**20, 2**20), (-1, -1), (3,)])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_npz_that_promises_more_than_it_holds_is_refused(
    tmp_path: Path, shape: tuple[int, ...], version: tuple[int, int]
) -> None:
    path = tmp_path / "weights.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("a.npy", "w") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        write = getattr(np.lib.format, f"write_array_header_{version[0]}_{version[1]}")
        write(file, header)
        file.write(bytes(8))
    assert_refused(path, "does not hold an array of the shape")


# Memory, and the process itself.


def npz(path: Path, promised: int, copies: int = 1) -> None:
    """Writes an array whose header, and the archive's directory, promise so many bytes."""
    header = io.BytesIO()
    values = {"descr": "|u1", "fortran_order": False, "shape": (promised,)}
    np.lib.format.write_array_header_1_0(header, values)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", header.getvalue() + bytes(1000))
        archive.filelist[0].file_size = len(header.getvalue()) + promised
        archive.filelist *= copies


def zip_member(path: Path) -> None:
    write_zip(path, state_dict(a=TENSOR), EIGHT)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/1", bytes(8))
        archive.filelist[-1].file_size = 2**40


def header_of_an_array(path: Path) -> None:
    """A header of 512 MiB, in half a megabyte."""
    start = b"\x93NUMPY\x02\x00" + (2**29).to_bytes(4, "little")
    archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with archive, archive.open("a.npy", "w") as member:
        member.write(start)
        for _ in range(2**9):
            member.write(b" " * 2**20)


def keys_without_end(path: Path) -> None:
    """A storage's key of pairs of pairs, 40 deep, which would take 2 ** 40 steps to hash."""
    pairs = b"".join(b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(40))
    keys = b"\x80\x02](" + b")q\x00" + pairs + b"e."
    write_legacy(path, state_dict(a=TENSOR), EIGHT)
    content = path.read_bytes()
    listed = content.rindex(b"\x80\x02]")
    path.write_bytes(content[:listed] + keys)


FATAL = {
    # The hash of a key nested this deep would overflow the stack.
    "nested.pth": HEAD + b"})" + b"\x85" * 500_000 + b"K\x01s.",
    # The hash of a key of 2¹⁰⁰ leaves would never end.
    "shared.pth": HEAD + b"})" + b"q\x00h\x00\x86" * 100 + b"K\x01s.",
    # A functools.partial that was told to call itself.
    "partial.pth": HEAD + name("collections", "Counter") + b"q\x00(h\x00)}Ntb" + b")R.",
    # As above, in sets.
    "set.pth": HEAD + b"\x8f()" + b"\x85" * 500_000 + b"\x90.",
    "frozen.pth": HEAD + b"()" + b"q\x00h\x00\x86" * 100 + b"\x91.",
    # 2¹⁰⁰ ways through dicts.
    "ways.pth": HEAD
    + b"}"
    + (b"q\x00}(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00u" * 100)
    + b".",
    # Names of a megabyte, two thousand times.
    "names.pth": HEAD + text("a" * 2**20) + b"q\x00(" + b"h\x00h\x00\x93" * 2000 + b"t.",
    # Keys of a megabyte above ten thousand dicts.
    "long_keys.pth": HEAD
    + (b"}" + text("a" * 2**20) + b"}(")
    + b"".join(text(str(i)) + b"}" + text("b") + TENSOR + b"s" for i in range(10_000))
    + b"us.",
    # A hundred thousand arguments, ten thousand times.
    "arguments.pth": HEAD
    + (b"(" + b"N" * 100_000 + b"tq\x00(")
    + (name("collections", "defaultdict") + b"h\x00R") * 10_000
    + b"t.",
    "array.pth": HEAD + b"\x96" + (2**40).to_bytes(8, "little") + b".",
    "digits.pth": HEAD + b"I" + b"9" * 1_000_000 + b"\n.",
}
HUGE_TENSOR = state_dict(a=tensor((2**20, 2**20), (0, 0), of=storage(size=2**60)))
HUGE: dict[str, Callable[[Path], None]] = {
    "array.npz": lambda path: npz(path, 2**40),
    "arrays.npz": lambda path: npz(path, 2**30, copies=8),
    "tensor.pth": lambda path: write_zip(path, HUGE_TENSOR, EIGHT),
    "tensor_legacy.pth": lambda path: write_legacy(path, HUGE_TENSOR, EIGHT, sizes={"0": 2**60}),
    "member.pth": zip_member,
    "text.pth": lambda path: path.write_bytes(HEAD + b"\x8d" + (2**40).to_bytes(8, "little")),
    "number.pth": lambda path: path.write_bytes(HEAD + b"\x8b" + (2**31 - 1).to_bytes(4, "little")),
    "memo.pth": lambda path: path.write_bytes(HEAD + b"}r" + b"\xff" * 4 + b"."),
    "shape.safetensors": lambda path: write_safetensors(path, {"a": ENTRY | {"shape": [2**40]}}),
    "offset.safetensors": lambda path: write_safetensors(
        path, {"a": ENTRY | {"shape": [2**38], "data_offsets": [0, 2**40]}}
    ),
    "header.npz": header_of_an_array,
    "keys.pth": keys_without_end,
    "shape.pth": lambda path: write_zip(path, state_dict(a=tensor((2**63, 2**64), (0, 0))), EIGHT),
    "header.safetensors": lambda path: write_safetensors(path, {"a": ENTRY}, length=2**40),
    **{
        file: functools.partial(write_zip, pickled=pickled, storages=EIGHT)
        for file, pickled in FATAL.items()
    },
}


@pytest.mark.parametrize("file", HUGE)
def test_no_file_takes_all_memory_or_the_process(child: Child, tmp_path: Path, file: str) -> None:
    HUGE[file](tmp_path / file)
    read = refused_within if Path("/proc/self/statm").exists() else refusal
    assert child.run(read, tmp_path / file) not in ("nothing", "MemoryError", None)


@pytest.mark.parametrize("copies", [1, 3])
def test_npz_may_not_unfold_without_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: int
) -> None:
    path, arrays = tmp_path / "weights.npz", {str(i): np.zeros(2**16) for i in range(copies)}
    size = sum(array.nbytes for array in arrays.values())
    np.savez_compressed(path, **arrays)
    monkeypatch.setattr(files, "LARGEST_UNFOLDED", size + 1000)
    assert_same(torch_import.read(path), arrays)
    monkeypatch.setattr(files, "LARGEST_UNFOLDED", size)
    assert_refused(path, "unfolds to")
    # One that is not compressed may be as large as it is.
    np.savez(path, **arrays)
    assert_same(torch_import.read(path), arrays)


# Names.


def named_npz(path: Path, key: str) -> None:
    np.savez(path, **{key: np.zeros(2)})


def named_safetensors(path: Path, key: str) -> None:
    write_safetensors(path, {key: ENTRY})


def named_pth(path: Path, key: str) -> None:
    write_zip(path, state_dict(**{key: TENSOR}), EIGHT)


@pytest.mark.parametrize("write", [named_npz, named_safetensors, named_pth])
@pytest.mark.parametrize("key", ["a\nb", "a\rb", "\x1b[2J", "\x85"])
def test_names_that_cannot_be_printed_are_refused(
    tmp_path: Path, write: Callable[[Path, str], None], key: str
) -> None:
    path = tmp_path / f"weights.{write.__name__.removeprefix('named_')}"
    write(path, "ä b")
    assert list(torch_import.read(path)) == ["ä b"]
    write(path, key)
    assert_refused(path, "cannot be printed")


@pytest.mark.parametrize("key", ["a\nb", "\x1b[2J", "spam" * 1000])
def test_messages_are_short_lines_whatever_a_file_names(tmp_path: Path, key: str) -> None:
    path = tmp_path / "weights.pth"
    for value in (
        literal(7),
        text(key) + text(key) + b"\x93",
        tensor((9,), (1,), of=storage(key=key)),
    ):
        write_zip(path, state_dict(**{key: value}), EIGHT)
        assert_refused(path)
