"""What a pickle may hold: nothing in it runs, and what is not sound is refused."""

import contextlib
import io
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.commands import REPOSITORY, call
from tests.helpers.torch_weights.files import (
    EIGHT,
    HEAD,
    MAGIC,
    SOUND,
    TENSOR,
    WRITERS,
    assert_refused,
    each_format,
    literal,
    name,
    read,
    refusal,
    refuse,
    state_dict,
    storage,
    tensor,
    text,
    write_zip,
)


@each_format
def test_sound_file_by_hand(tmp_path, format):
    # The control of all tests below.
    arrays = read(tmp_path, format, SOUND)
    np.testing.assert_array_equal(arrays["a"], np.array([0, 1], np.float32))
    assert list(arrays) == ["a"]


def test_state_dict_of_python_2_is_read(tmp_path):
    # It pickles an ordered dict as a list of pairs, and texts as bytes.
    pairs = b"](](U\x03a\xe9b" + TENSOR + b"ee"
    arrays = read(tmp_path, "legacy", HEAD + name("collections", "OrderedDict") + pairs + b"\x85R.")
    assert list(arrays) == ["aéb"]
    np.testing.assert_array_equal(arrays["aéb"], [0, 1])


def calls(mark):
    """Opcodes that call something; what it would do is make a file."""
    command = text(f"touch {mark}")
    code = text(f"__import__('pathlib').Path({str(mark)!r}).touch()")
    path = name("pathlib", "PosixPath") + b"(" + text(str(mark)) + b"tR"
    nested = text("os") + text("path.os.system")
    return {
        "reduce": name("os", "system") + b"(" + command + b"tR",
        "reduce of another module": name("posix", "system") + b"(" + command + b"tR",
        "eval": name("builtins", "eval") + b"(" + code + b"tR",
        "python 2": name("__builtin__", "eval") + b"(" + code + b"tR",
        # getattr(PosixPath(mark), "touch")(), all of it builtins.
        "getattr": name("builtins", "getattr") + b"(" + path + text("touch") + b"tR" + b")R",
        "stack_global": text("os") + text("system") + b"\x93" + b"(" + command + b"tR",
        "inst": b"(" + command + b"ios\nsystem\n",
        "obj": b"(" + name("os", "system") + command + b"o",
        "newobj": name("logging", "FileHandler") + b")\x81}" + b"b",
        "newobj_ex": name("subprocess", "Popen") + b")}" + b"\x92",
        "nested name": b"\x80\x04" + nested + b"\x93(" + command + b"tR",
    }


NO_CALL = ("newobj", "newobj_ex")  # these only make an object
each_call = pytest.mark.parametrize("call", list(calls("")))


@each_call
def test_calls_do_what_they_say(tmp_path, call):
    # The control of the next test.
    mark = tmp_path / "mark"
    opcodes = calls(mark)[call]
    try:
        pickle.loads(HEAD + opcodes + b".")
    except Exception:
        assert call in NO_CALL
    assert mark.exists() == (call not in NO_CALL)


# What each of them calls last, as the file has it.
NAMED = {
    **dict.fromkeys(("reduce", "stack_global", "obj"), "os.system"),
    "reduce of another module": "posix.system",
    "eval": "builtins.eval",
    "python 2": "__builtin__.eval",
    "getattr": "builtins.getattr",
    "newobj": "logging.FileHandler",
    "newobj_ex": "subprocess.Popen",
    "nested name": "os.path.os.system",
}


@each_format
@pytest.mark.parametrize("call", NAMED)
def test_calls_in_a_state_dict_are_refused_by_name(tmp_path, format, call):
    mark = tmp_path / "mark"
    pickled = state_dict(a=TENSOR, b=calls(mark)[call])
    refuse(tmp_path, format, pickled, match=rf"b \({re.escape(NAMED[call])}\)")
    assert not mark.exists()


@each_format
@pytest.mark.parametrize("call", NAMED)
def test_calls_beside_a_state_dict_do_nothing(tmp_path, format, call):
    mark = tmp_path / "mark"
    pickled = state_dict(before=calls(mark)[call], model=SOUND[2:-1], b=calls(mark)[call])
    np.testing.assert_array_equal(read(tmp_path, format, pickled)["a"], [0, 1])
    assert not mark.exists()


@pytest.mark.parametrize("call", ["reduce", "inst", "obj", "stack_global"])
@pytest.mark.parametrize("part", range(5))
def test_calls_are_refused_in_every_pickle_of_a_legacy_file(tmp_path, part, call):
    parts = [pickle.dumps(value, 2) for value in (MAGIC, 1001, {})]
    parts += [SOUND, pickle.dumps(["0"], 2)]
    parts[part] = HEAD + calls(tmp_path / "mark")[call] + b"." + parts[part]
    path = tmp_path / "weights.pth"
    path.write_bytes(b"".join(parts))
    assert_refused(path)
    assert not (tmp_path / "mark").exists()


# Opcodes that push a value, of which the given ones push a part.
PLACES = {
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

    def find_class(self, module, attribute):
        is_torch = module.startswith("torch")
        return (lambda *_: None) if is_torch else super().find_class(module, attribute)

    def persistent_load(self, _):
        return None


def run_all(pickled):
    # What comes after the call may be at odds with what it gave.
    with contextlib.suppress(Exception):
        Unpickler(io.BytesIO(pickled)).load()


@pytest.mark.faults
@each_call
@given(around=nested, format=st.sampled_from(list(WRITERS)))
def test_calls_are_refused_wherever_they_stand(tmp_path_factory, call, around, format):
    folder = tmp_path_factory.getbasetemp()
    mark = folder / "mark"
    part = calls(mark)[call]
    for place in around:
        part = PLACES[place](part)
    WRITERS[format](folder / "weights.pth", state_dict(model=SOUND[2:-1], hostile=part), EIGHT)
    refusal(folder / "weights.pth")
    assert not mark.exists()
    pickled = state_dict(sound=TENSOR, hostile=part)
    refuse(folder, format, pickled)
    assert not mark.exists()
    # The control: Python's own unpickler runs it.
    run_all(pickled)
    assert mark.exists() == (call not in NO_CALL)
    mark.unlink(missing_ok=True)


class Touch:
    """An object whose pickle makes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.faults
def test_objects_in_a_npz_file_are_not_made(tmp_path):
    path, mark = tmp_path / "weights.npz", tmp_path / "mark"
    np.savez(path, sound=np.zeros(2), hostile=np.array([Touch(mark)], object))
    assert_refused(path, "hostile")
    assert not mark.exists()
    with np.load(path, allow_pickle=True) as control:
        control["hostile"]
    assert mark.exists()


@pytest.mark.faults
def test_run_with_a_hostile_file_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    path, mark = tmp_path / "weights.pth", tmp_path / "mark"
    write_zip(path, state_dict(hostile=calls(mark)["reduce"]), EIGHT)
    arguments = ("--config=configs/digits_resnet20.py", f"--config.model.pretrained={path}")
    done = call("main", *arguments, f"--workdir={tmp_path / 'run'}", "--num_processes=1")
    assert done.code == 2
    assert done.err.startswith(f"error: config.model.pretrained: {path} cannot be read")
    assert len(done.err.splitlines()) == 1
    assert not mark.exists()


@each_format
@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("torch", "load"),
        ("torch", "_DTYPES"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch.storage", "_load_from_bytes"),
        ("collections", "OrderedDict.__init__"),
        ("collections", "_sys"),
        ("nam_jax.torch_import.torch_save", "_tensor"),
        ("torch.jit._pickle", "build_intlist"),
        ("", "collections.OrderedDict "),
    ],
)
def test_names_beside_the_known_ones_are_refused(tmp_path, format, module, attribute):
    opcodes = text(module) + text(attribute) + b"\x93"
    refuse(tmp_path, format, state_dict(a=opcodes), match=re.escape(f"{module}.{attribute}"))


@pytest.mark.parametrize(
    "operation",
    [
        *("INST", "EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER", "READONLY_BUFFER"),
        *("DICT", "LIST", "DUP", "UNICODE", "STRING", "FLOAT", "LONG"),
    ],
)
def test_operations_beside_the_known_ones_are_refused(tmp_path, operation):
    pickled = HEAD + b")" + getattr(pickle, operation) + SOUND
    refuse(tmp_path, "zip", pickled, match=f"it holds the operation {operation}, which torch.save")


@pytest.mark.parametrize("known", [("collections", "OrderedDict"), ("torch", "FloatStorage")])
@pytest.mark.parametrize("operations", [b")\x81", b")}\x92", b"K\x01a", b"K\x01K\x01s", b"(\x90"])
def test_only_placeholders_are_made_and_filled(tmp_path, known, operations):
    refuse(tmp_path, "zip", state_dict(a=name(*known) + operations), match="pickle is damaged")


KNOWN = [
    ("collections", "OrderedDict"),
    ("collections", "Counter"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
]
STATES = {
    "dict": b"}" + text("spam") + b"K\x01s",
    "setattr": b"N}" + text("spam") + b"K\x01s\x86",
    # Were it the function itself that is set, the strides would have a default ever after.
    "defaults": b"N}" + text("__defaults__") + literal(((1,),)) + b"s\x86",
    # The state of a functools.partial: the function to call, arguments, attributes.
    "another function": b"(" + name("collections", "OrderedDict") + b")}Nt",
    "no function": b"(K\x01)}Nt",
}


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("called", [b"", b")R"])
def test_what_a_file_sets_does_not_last(tmp_path, known, state, called):
    value = name(*known) + STATES[state] + b"b" + called
    refuse(tmp_path, "zip", state_dict(a=value))
    without_strides = b"(" + storage() + literal(0) + literal((2,)) + b"tR"
    short = name("torch._utils", "_rebuild_tensor_v2") + without_strides
    refuse(tmp_path, "zip", state_dict(a=short))
    np.testing.assert_array_equal(read(tmp_path, "zip", SOUND)["a"], [0, 1])


def test_attributes_of_a_state_dict_are_ignored(tmp_path):
    # torch.save stores the versions of modules as an attribute of the OrderedDict.
    ordered = name("collections", "OrderedDict") + b")R"
    entries = ordered + text("a") + TENSOR + b"s"
    metadata = b"}" + text("_metadata") + ordered + text("") + b"}s" + b"s"
    arrays = read(tmp_path, "zip", HEAD + entries + metadata + b"b.")
    np.testing.assert_array_equal(arrays["a"], [0, 1])


@pytest.mark.parametrize("attribute", ["items", "values", "keys", "__class__"])
def test_attributes_of_a_state_dict_replace_nothing(tmp_path, attribute):
    ordered = name("collections", "OrderedDict") + b")R"
    entries = ordered + text("a") + literal("spam") + b"s"
    state = b"}" + text(attribute) + name("collections", "OrderedDict") + b"s"
    # "spam" is no tensor, whatever its dict says of its items.
    refuse(tmp_path, "zip", HEAD + entries + state + b"b.", match="state dict")


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
        state_dict(a=TENSOR, b=b"K\x01"),
        HEAD + b"}K\x01" + TENSOR + b"s.",
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
    # Python's own unpickler, where it is the one in C, takes 32 GB for the first.
    arrays = read(tmp_path, format, state_dict(a=TENSOR + put))
    np.testing.assert_array_equal(arrays["a"], [0, 1])
