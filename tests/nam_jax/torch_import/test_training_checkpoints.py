"""Training checkpoints: which state dict is taken, and what lies beside it."""

import enum
import fractions
import pathlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nam_jax import torch_import
from nam_jax.torch_import import StateDictKeyError
from tests.helpers.real_data import real
from tests.helpers.torch_weights.files import (
    EIGHT,
    FOLDER,
    SOUND,
    TENSOR,
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
    write_legacy,
    write_zip,
)


def inner(**values: bytes) -> bytes:
    """Opcodes that push a dict."""
    return state_dict(**values)[2:-1]


# State dicts told apart by the number of their tensors.
ONE, TWO, THREE = (inner(**{str(i): TENSOR for i in range(n)}) for n in (1, 2, 3))


def taken(tmp_path: Path, key: str | None = None, **values: bytes) -> int:
    """The number of tensors in the state dict that is taken."""
    write_zip(tmp_path / "weights", state_dict(**values), EIGHT)
    return len(torch_import.read(tmp_path / "weights", key))


# Files of PyTorch itself.


@pytest.mark.parametrize("file", ["zip2", "zip5", "legacy2", "legacy5"])
def test_checkpoint_of_pytorch_with_all_sorts_beside_it_is_read(file: str) -> None:
    path = FOLDER / "training" / f"{file}.tar"
    weights = torch_import.read(FOLDER / "zip.pth")
    assert torch_import.list_state_dicts(path) == ["model", "model_ema"]
    assert_same(torch_import.read(path), weights)
    average = torch_import.read(path, "model_ema")
    assert average.pop("n_averaged") == 1
    assert_same({name.removeprefix("module."): value for name, value in average.items()}, weights)


@pytest.mark.parametrize(
    ("file", "numbers"), [("resnet20-12fca82f.th", 269_722), ("resnet56-4bfd9763.th", 853_018)]
)
def test_networks_in_circulation_are_read_as_they_are(file: str, numbers: int) -> None:
    path = real(f"weights/{file}")
    assert torch_import.list_state_dicts(path) == ["state_dict"]
    arrays = torch_import.read(path)
    # What the authors count: no statistics.
    learned = {name: value for name, value in arrays.items() if "running" not in name}
    assert sum(value.size for value in learned.values()) == numbers


# What is no tensor.


class Phase(enum.Enum):
    WARM_UP = 1


class Dotted(dict[str, Any]):
    pass


class Slots:
    __slots__ = ("a",)

    def __init__(self, a: int = 0) -> None:
        self.a = a


class Keywords:
    def __new__(cls, *, a: int) -> "Keywords":
        del a
        return super().__new__(cls)

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, int]]:
        return (), {"a": 1}


class Points(tuple[int, ...]):
    pass


loop: list[Any] = []
loop.append((loop, {"loop": loop}))
EXTRAS = {
    "enum": Phase.WARM_UP,
    "dict of another kind": Dotted(a=1),
    "slots": Slots(1),
    "keywords": Keywords(a=1),
    "tuple of another kind": Points((1, 2)),
    "class": Slots,
    "path": pathlib.PurePosixPath("a/b"),
    "fraction": fractions.Fraction(1, 3),
    "NumPy's text": np.str_("a"),
    "objects in an array": np.array(["a", None], object),
    "keys": {1: 2, (1, 2): 3, 1.5: None, b"a": 1, None: 2, Phase.WARM_UP: 3, frozenset([1]): 4},
    "nested": [({1, "a"}, {"b": [frozenset([1]), 1j, -(10**40)]})],
    "itself": loop,
}


def pushed(value: Any, protocol: int) -> bytes:
    """Opcodes that push a value, in one frame at most."""
    data = pickle.dumps(value, protocol)[2:-1]
    return data[9:] if data.startswith(pickle.FRAME) else data


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("extra", EXTRAS)
def test_anything_may_stand_beside_a_state_dict(tmp_path: Path, extra: str, protocol: int) -> None:
    value = pushed(EXTRAS[extra], protocol)
    arrays = read(tmp_path, "zip", state_dict(before=value, state_dict=SOUND[2:-1], after=value))
    np.testing.assert_array_equal(arrays["a"], [0, 1])


@pytest.mark.parametrize(
    "value",
    [
        b"(" + name("__main__", "Old") + literal(1) + b"o}b",
        b"I4294967296\n",
        b"I01\n",
        name("__builtin__", "set") + b"](K\x01e\x85R",
        name("collections", "OrderedDict") + b"](](K\x01K\x02ee\x85R",
        tensor((2,), (1,), of=storage(more=(("0", 1, 1),))),
        tensor((2,), (1,), of=storage(kind="SpamStorage")),
        b"(" + text("module") + name("a", "Net") + text("net.py") + text("class Net: …") + b"tQ",
    ],
)
@each_format
def test_python_2_and_old_pytorch_may_stand_beside_a_state_dict(
    tmp_path: Path, format: str, value: bytes
) -> None:
    arrays = read(tmp_path, format, state_dict(optimizer=value, state_dict=SOUND[2:-1]))
    np.testing.assert_array_equal(arrays["a"], [0, 1])


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.float64(1), r"b \(numpy.*scalar\)"),
        (Slots(1), r"b \(.*Slots\)"),
        ({1, 2}, r"b \((a|__builtin__\.|builtins\.) ?set\)"),
        (7, r"b \(int\)"),
        (None, r"b \(NoneType\)"),
        ({"c": 1}, r"b \(dict\)"),
    ],
)
def test_in_the_state_dict_it_is_refused_by_name(
    tmp_path: Path, protocol: int, value: Any, named: str
) -> None:
    entries = inner(a=TENSOR, b=pushed(value, protocol))
    refuse(tmp_path, "zip", state_dict(model=entries), match=f"its model holds {named}, and only")


def test_tensor_that_is_stored_negated_is_refused(tmp_path: Path) -> None:
    numbers = (0, (2,), (1,), False, None, {"neg": True})
    opcodes = name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage()
    negated = opcodes + b"".join(map(literal, numbers)) + b"tR"
    write_zip(tmp_path / "weights", state_dict(a=TENSOR, b=negated), EIGHT)
    assert_refused(tmp_path / "weights", r" b \(torch\.Tensor with metadata: resolve_neg\(\)")


def test_keys_of_a_state_dict_are_texts(tmp_path: Path) -> None:
    entries = b"}" + literal(3) + TENSOR + b"s" + text("a") + TENSOR + b"s"
    refuse(tmp_path, "zip", state_dict(net=entries), match=r"its net holds <int> \(Tensor\)")


def test_only_the_storages_of_the_state_dict_are_read(tmp_path: Path) -> None:
    path, other = tmp_path / "weights", tensor((2,), (1,), of=storage(key="1"))
    write_zip(
        path, state_dict(average=inner(b=other), model=SOUND[2:-1]), {"1": b"averaged"} | EIGHT
    )
    # The archive has a checksum of every member.
    path.write_bytes(path.read_bytes().replace(b"averaged", b"AVERAGED"))
    np.testing.assert_array_equal(torch_import.read(path)["a"], [0, 1])
    with pytest.raises(ValueError, match="CRC"):
        torch_import.read(path, "average")


def test_legacy_storages_beside_those_of_the_state_dict_are_passed_over(tmp_path: Path) -> None:
    path, other = tmp_path / "weights", tensor((2,), (1,), of=storage(key="1"))
    pickled = state_dict(average=inner(b=other), model=SOUND[2:-1])
    write_legacy(path, pickled, {"1": np.ones(500, np.float32).tobytes()} | EIGHT)
    np.testing.assert_array_equal(torch_import.read(path)["a"], [0, 1])
    np.testing.assert_array_equal(torch_import.read(path, "average")["b"], [1, 1])


# Which state dict.


@pytest.mark.parametrize(
    "key", ["state_dict", "model", "net", "model_state_dict", "params", "state.model"]
)
def test_network_is_found_by_its_usual_name(tmp_path: Path, key: str) -> None:
    first, *rest = reversed(key.split("."))
    value = {first: TWO}
    for outer in rest:
        value = {outer: inner(**value)}
    others = {"rng": TENSOR, "criterion": THREE, "ema": THREE, "optimizer": inner(a=THREE)}
    assert taken(tmp_path, None, **others, **value) == 2
    assert torch_import.list_state_dicts(tmp_path / "weights") == [key, "ema", "criterion"]
    assert taken(tmp_path, key, **others, **value) == 2


@pytest.mark.parametrize(
    "key",
    ["model_ema", "state_dict_ema", "ema", "ema_state_dict", "averaged_model", "params_ema"],
)
def test_average_is_taken_by_its_key_or_alone(tmp_path: Path, key: str) -> None:
    both = {key: TWO, "model": ONE, "criterion": THREE}
    assert taken(tmp_path, None, **both) == 1
    assert taken(tmp_path, key, **both) == 2
    assert torch_import.list_state_dicts(tmp_path / "weights") == ["model", key, "criterion"]
    assert taken(tmp_path, None, **{key: TWO, "criterion": THREE}) == 2
    assert taken(tmp_path, f"{key}.module", **{key: inner(module=TWO), "model": ONE}) == 2


def test_only_one_is_taken_whatever_its_name(tmp_path: Path) -> None:
    assert taken(tmp_path, None, epoch=literal(3), spam=inner(eggs=TWO)) == 2


def test_of_several_one_has_to_be_named(tmp_path: Path) -> None:
    both = {"student": ONE, "teacher": TWO}
    with pytest.raises(StateDictKeyError, match=r"give the key of one: teacher, student$"):
        taken(tmp_path, None, **both)
    assert taken(tmp_path, "student", **both) == 1


def test_what_is_far_smaller_is_not_the_network(tmp_path: Path) -> None:
    large = inner(**{str(i): TENSOR for i in range(30)})
    assert taken(tmp_path, None, state=inner(epoch=literal(1), rng=TENSOR), ema=large) == 30
    # Which is the network cannot be told from the name that is not usual.
    with pytest.raises(StateDictKeyError, match=r"give the key of one: backbone, params$"):
        taken(tmp_path, None, params=ONE, backbone=large)
    assert taken(tmp_path, None, params=THREE, backbone=large) == 3


def test_key_may_go_on_with_a_prefix_of_names(tmp_path: Path) -> None:
    names = {"model.a": TENSOR, "model.b.c": TENSOR, "models.d": TENSOR, "loss.weight": literal(1)}
    write_zip(tmp_path / "weights", state_dict(state_dict=inner(**names)), EIGHT)
    actual = torch_import.read(tmp_path / "weights", "state_dict.model")
    assert list(actual) == ["a", "b.c"]
    with pytest.raises(StateDictKeyError, match=r"no state dict 'state_dict\.mode'"):
        torch_import.read(tmp_path / "weights", "state_dict.mode")
    np.savez(tmp_path / "w.npz", **{name: np.zeros(1) for name in names})
    assert list(torch_import.read(tmp_path / "w.npz", "model.b")) == ["c"]


def test_refusal_names_the_other_state_dicts(tmp_path: Path) -> None:
    write_zip(tmp_path / "weights", state_dict(model=inner(a=TENSOR, b=literal(1)), ema=ONE), EIGHT)
    assert_refused(tmp_path / "weights", r"its model holds b \(int\).*; other state dicts: ema$")


def test_unknown_key_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(StateDictKeyError, match=r"no state dict 'net'; there are model, ema$"):
        taken(tmp_path, "net", model=ONE, ema=ONE, epoch=literal(1))
    many = {f"net{i}": ONE for i in range(15)}
    with pytest.raises(StateDictKeyError, match=r"net4 and 10 more$"):
        taken(tmp_path, "net", **many)


@pytest.mark.parametrize("file", ["zip.pth", "all.safetensors", "weights.npz"])
def test_file_that_is_a_state_dict_has_no_keys(tmp_path: Path, file: str) -> None:
    np.savez(tmp_path / "weights.npz", a=np.zeros(2))
    path = (tmp_path if file.endswith("npz") else FOLDER) / file
    assert torch_import.list_state_dicts(path) == [""]
    with pytest.raises(
        StateDictKeyError, match="no state dict 'model'; the file is one: leave the key"
    ):
        torch_import.read(path, "model")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"N", "only a pickled NoneType"),
        (TENSOR, "only a pickled Tensor"),
        (b"](" + ONE + b"e", "only a pickled list"),
        (name("net", "ResNet") + b")\x81}b", r"only a pickled net\.ResNet; load it in PyTorch"),
        (inner(model=name("net", "ResNet") + b")R"), r"model \(net\.ResNet\); load it in PyT"),
        (inner(state=b"}" + literal(0) + ONE + b"s"), r"state \(dict\)"),
    ],
)
@each_format
def test_what_has_no_state_dict_is_refused(
    tmp_path: Path, format: str, content: bytes, message: str
) -> None:
    refuse(tmp_path, format, b"\x80\x02" + content + b".", match=message)


def test_dict_that_holds_itself_is_searched_once(tmp_path: Path) -> None:
    # {"state": itself, "net": {…}}
    pickled = b"\x80\x02}q\x00" + text("state") + b"h\x00s" + text("net") + TWO + b"s."
    write_zip(tmp_path / "weights", pickled, EIGHT)
    assert torch_import.list_state_dicts(tmp_path / "weights") == ["net"]


def test_deeply_nested_state_dict_is_not_searched_for(tmp_path: Path) -> None:
    value = ONE
    for _ in range(20_000):
        value = b"}" + text("model") + value + b"s"
    write_zip(tmp_path / "weights", b"\x80\x02" + value + b".", EIGHT)
    assert_refused(tmp_path / "weights", "no state dict of tensors alone, but model")
