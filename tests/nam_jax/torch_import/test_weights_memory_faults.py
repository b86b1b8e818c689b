"""Files of weights that promise more than they hold: what they promise is not allocated."""

import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from nam_jax import torch_import
from nam_jax.torch_import import files
from tests.helpers import pickles
from tests.helpers.damage import Child
from tests.helpers.pickles import EIGHT, HEAD, storage, tensor
from tests.helpers.weights import refusal, refused_within
from tests.nam_jax.torch_import.test_torch_files import ENTRY, assert_same, safetensors_file


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    process = Child()
    yield process
    process.pool.shutdown()


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
    pickles.write_zip(path, pickles.state_dict(a=tensor((2,), (1,))), EIGHT)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/1", bytes(8))
        archive.filelist[-1].file_size = 2**40


def header_of_an_array(path: Path) -> None:
    """A header of 512 MiB, in half a megabyte."""
    start = b"\x93NUMPY\x02\x00" + (2**29).to_bytes(4, "little")
    archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
    with archive, archive.open("a.npy", "w") as member:
        member.write(start)
        for _ in range(2**9):
            member.write(b" " * 2**20)


def keys_without_end(path: Path) -> None:
    """A storage's key of pairs of pairs, 40 deep, which would take 2 ** 40 steps to hash."""
    pairs = b"".join(b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(40))
    keys = b"\x80\x02](" + b")q\x00" + pairs + b"e."
    pickles.write_legacy(path, pickles.state_dict(a=tensor((2,), (1,))), EIGHT)
    content = path.read_bytes()
    listed = content.rindex(b"\x80\x02]")
    path.write_bytes(content[:listed] + keys)


HUGE_TENSOR = pickles.state_dict(a=tensor((2**20, 2**20), (0, 0), of=storage(size=2**60)))
HUGE: dict[str, Callable[[Path], None]] = {
    "array.npz": lambda path: npz(path, 2**40),
    "arrays.npz": lambda path: npz(path, 2**30, copies=8),
    "tensor.pth": lambda path: pickles.write_zip(path, HUGE_TENSOR, EIGHT),
    "tensor_legacy.pth": lambda path: pickles.write_legacy(
        path, HUGE_TENSOR, EIGHT, sizes={"0": 2**60}
    ),
    "member.pth": zip_member,
    "text.pth": lambda path: path.write_bytes(HEAD + b"\x8d" + (2**40).to_bytes(8, "little")),
    "number.pth": lambda path: path.write_bytes(HEAD + b"\x8b" + (2**31 - 1).to_bytes(4, "little")),
    "memo.pth": lambda path: path.write_bytes(HEAD + b"}r" + b"\xff" * 4 + b"."),
    "shape.safetensors": lambda path: safetensors_file(path, {"a": ENTRY | {"shape": [2**40]}}),
    "offset.safetensors": lambda path: safetensors_file(
        path, {"a": ENTRY | {"shape": [2**38], "data_offsets": [0, 2**40]}}
    ),
    "header.npz": header_of_an_array,
    "keys.pth": keys_without_end,
    "shape.pth": lambda path: pickles.write_zip(
        path, pickles.state_dict(a=tensor((2**63, 2**64), (0, 0))), EIGHT
    ),
    "header.safetensors": lambda path: safetensors_file(path, {"a": ENTRY}, length=2**40),
}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc")
@pytest.mark.parametrize("file", HUGE)
def test_what_a_file_promises_is_not_allocated(child: Child, tmp_path: Path, file: str) -> None:
    HUGE[file](tmp_path / file)
    assert child.run(refused_within, tmp_path / file) not in ("nothing", "MemoryError")


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
    assert "unfolds to" in (refusal(path) or "")
    # One that is not compressed may be as large as it is.
    np.savez(path, **arrays)
    assert_same(torch_import.read(path), arrays)
