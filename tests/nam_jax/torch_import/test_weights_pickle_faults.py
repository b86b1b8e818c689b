"""Hostile pickles in files of weights: what they call is not called, wherever it stands in them.

What the calls would do is make a file.
"""

import contextlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import pickles
from tests.helpers.commands import call
from tests.helpers.pickles import EIGHT, literal, name, storage, tensor, text
from tests.helpers.weights import refusal
from tests.nam_jax.torch_import.test_torch_pickles import NO_CALL, calls

SOUND = tensor((2,), (1,))

# Opcodes that push a value, of which the given ones push a part.
PLACES: dict[str, Callable[[bytes], bytes]] = {
    "item of a list": lambda part: b"]" + part + b"a",
    "one of several items": lambda part: b"](" + literal(7) + part + b"e",
    "item of a tuple": lambda part: b"(" + literal("spam") + part + b"t",
    "value of a dict": lambda part: b"}" + text("spam") + part + b"s",
    "key of a dict": lambda part: b"}" + part + literal(7) + b"s",
    "pairs of an ordered dict": lambda part: name("collections", "OrderedDict") + part + b"\x85R",
    "state of an ordered dict": lambda part: (
        name("collections", "OrderedDict") + b")R" + part + b"b"
    ),
    "storage of a tensor": lambda part: tensor((2,), (1,), of=part),
    "part of a storage": lambda part: b"(" + text("storage") + part + literal("0") + b"tQ",
    "part of a tensor": lambda part: (
        name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage() + part + b"tR"
    ),
    "parameter": lambda part: name("torch._utils", "_rebuild_parameter") + part + b"\x85R",
    "remembered": lambda part: part + b"q\x07",
}
nested = st.lists(st.sampled_from(list(PLACES)), max_size=4)


class Unpickler(pickle.Unpickler):
    """Python's own, where PyTorch is not installed."""

    def find_class(self, module: str, attribute: str) -> Any:
        is_torch = module.startswith("torch")
        return (lambda *_: None) if is_torch else super().find_class(module, attribute)

    def persistent_load(self, _: Any) -> None:
        return None


def run_all(pickled: bytes) -> None:
    # What comes after the call may be at odds with what it gave.
    with contextlib.suppress(Exception):
        Unpickler(io.BytesIO(pickled)).load()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.mark.parametrize("call", calls(""))
@given(around=nested, format=st.sampled_from(list(pickles.WRITERS)))
def test_calls_are_refused_wherever_they_stand(
    scratch: Path, call: str, around: list[str], format: str
) -> None:
    mark = scratch / "mark"
    part = calls(mark)[call]
    for place in around:
        part = PLACES[place](part)
    pickled = pickles.state_dict(sound=SOUND, hostile=part)
    pickles.WRITERS[format](scratch / "weights.pth", pickled, EIGHT)
    assert "only tensors are read" in (refusal(scratch / "weights.pth") or "")
    assert not mark.exists()
    # The control: Python's own unpickler runs it.
    run_all(pickled)
    assert mark.exists() == (call not in NO_CALL)
    mark.unlink(missing_ok=True)


class Touch:
    """An object whose pickle makes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_objects_in_a_npz_file_are_not_made(tmp_path: Path) -> None:
    path, mark = tmp_path / "weights.npz", tmp_path / "mark"
    np.savez(path, sound=np.zeros(2), hostile=np.array([Touch(mark)], object))
    assert "hostile" in (refusal(path) or "")
    assert not mark.exists()
    with np.load(path, allow_pickle=True) as control:
        control["hostile"]
    assert mark.exists()


def test_run_with_a_hostile_file_ends_in_one_line(tmp_path: Path) -> None:
    path, mark = tmp_path / "weights.pth", tmp_path / "mark"
    pickles.write_zip(path, pickles.state_dict(hostile=calls(mark)["reduce"]), EIGHT)
    arguments = ("--config=configs/digits_resnet20.py", f"--config.model.pretrained={path}")
    done = call(*arguments, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: config.model.pretrained: {path} cannot be read")
    assert len(done.stderr.splitlines()) == 1
    assert not mark.exists()
