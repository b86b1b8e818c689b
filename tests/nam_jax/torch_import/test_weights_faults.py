"""Damaged files of weights: refused in one line, or right values."""

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nam_jax import torch_import
from tests.helpers import pickles
from tests.helpers.damage import Child, damaged, damages, json_values, places, put
from tests.helpers.pickles import EIGHT, literal, storage, tensor, text
from tests.helpers.weights import refusal
from tests.nam_jax.torch_import.test_torch_files import ENTRY, FOLDER, assert_same, safetensors_file
from tests.train.core.engine.test_pretrained import load, save
from train.core.errors import ConfigError


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    process = Child()
    yield process
    process.pool.shutdown()


SOURCES = (
    "zip.pth",
    "odd.pth",
    "legacy.pth",
    "odd_legacy.pth",
    "checkpoint.pth",
    "all.safetensors",
)


def sound(path: Path, source: str) -> bytes:
    if path.suffix == ".npz":
        arrays = {"a": np.arange(60.0).reshape(6, 10), "b": np.ones((2, 3), np.float32)}
        (np.savez if source == "stored.npz" else np.savez_compressed)(path, **arrays)
        return path.read_bytes()
    return (FOLDER / source).read_bytes()


@pytest.mark.parametrize("source", [*SOURCES, "stored.npz", "compressed.npz"])
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
    safetensors_file(path, header, numbers.tobytes())
    if child.run(refusal, path) is None:
        for key, array in torch_import.read(path).items():
            start, end = header[key]["data_offsets"]
            assert array.shape == tuple(header[key]["shape"])
            assert array.tobytes() == numbers.tobytes()[start:end]


@pytest.mark.parametrize(
    "header",
    [
        {"a": ENTRY | {"data_offsets": [0, 12]}},
        {"a": ENTRY, "b": ENTRY | {"data_offsets": [4, 12]}},
        {"a": ENTRY | {"data_offsets": [4, 12]}},
        {"a": ENTRY | {"dtype": "F64"}},
        {"a": ENTRY | {"shape": [1]}},
        {"a": ENTRY | {"shape": [2, 2**63]}},
        b'{"a": %b, "a": %b}' % ((json.dumps(ENTRY | {"data_offsets": [0, 4]}).encode(),) * 2),
    ],
    ids=["beyond", "overlapping", "gap", "dtype", "shape", "overflow", "twice"],
)
def test_header_at_odds_with_its_bytes_is_refused(tmp_path: Path, header: Any) -> None:
    safetensors_file(tmp_path / "weights.safetensors", header, bytes(8))
    assert refusal(tmp_path / "weights.safetensors") is not None


descriptions = st.sampled_from(
    [
        "<f4",
        ">f8",
        "<f2",
        "|b1",
        "<U3",
        "|V8",
        "|S0",
        "|O",
        "<M8[s]",
        "<f4,<i4",
        "<U99999999",
        "?",
        "",
    ]
)
lengths = st.integers(-2, 13) | st.sampled_from([2**31, 2**40, 2**63, 2**64, True, 1.5, None])


@given(
    description=descriptions,
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


# Names.


def named_npz(path: Path, key: str) -> None:
    np.savez(path, **{key: np.zeros(2)})


def named_safetensors(path: Path, key: str) -> None:
    safetensors_file(path, {key: ENTRY})


def named_pth(path: Path, key: str) -> None:
    pickles.write_zip(path, pickles.state_dict(**{key: tensor((2,), (1,))}), EIGHT)


@pytest.mark.parametrize("write", [named_npz, named_safetensors, named_pth])
@pytest.mark.parametrize("key", ["a\nb", "a\rb", "\x1b[2J", "\x85"])
def test_names_that_cannot_be_printed_are_refused(
    tmp_path: Path, write: Callable[[Path, str], None], key: str
) -> None:
    path = tmp_path / f"weights.{write.__name__.removeprefix('named_')}"
    write(path, "ä b")
    assert list(torch_import.read(path)) == ["ä b"]
    write(path, key)
    assert "cannot be printed" in (refusal(path) or "")


@pytest.mark.parametrize("key", ["a\nb", "\x1b[2J", "spam" * 1000])
def test_messages_are_short_lines_whatever_a_file_names(tmp_path: Path, key: str) -> None:
    path = tmp_path / "weights.pth"
    for value in (
        literal(7),
        text(key) + text(key) + b"\x93",
        tensor((9,), (1,), of=storage(key=key)),
    ):
        pickles.write_zip(path, pickles.state_dict(**{key: value}), EIGHT)
        assert refusal(path) is not None


# Of a run.


@pytest.mark.parametrize("value", [1e39, -1e300, np.inf])
def test_numbers_too_large_for_float32_are_refused(tmp_path: Path, value: float) -> None:
    save(tmp_path / "weights.npz", 10, "nam_channel")
    state_dict = dict(np.load(tmp_path / "weights.npz"))
    state_dict["bn1.bias"][3] = value
    np.savez(tmp_path / "weights.npz", **state_dict)
    with pytest.raises(ConfigError, match=r"^config\.model\.pretrained: .* not finite in float32"):
        load(tmp_path / "weights.npz")


@pytest.mark.parametrize(
    "path", ["~spam/weights.pth", "a\0b.npz", "a/" * 3000 + "b.npz", "/dev/a.pt"]
)
def test_path_that_leads_nowhere_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=r"^config\.model\.pretrained: "):
        load(Path(path))
