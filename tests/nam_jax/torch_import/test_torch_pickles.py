"""Hostile .pth files: nothing in them runs, and what is not sound is a ValueError."""

import pickle

import numpy as np
import pytest

from nam_jax import torch_import
from tests.helpers import pickles
from tests.helpers.pickles import (
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
def test_sound_file_by_hand(tmp_path, format):
    # The control of all tests below.
    arrays = read(tmp_path, format, SOUND)
    np.testing.assert_array_equal(arrays["a"], np.array([0, 1], np.float32))
    assert list(arrays) == ["a"]


# Calls. What they would do is make a file, named on the command line of each.


def calls(mark):
    command = text(f"touch {mark}")
    code = text(f"__import__('pathlib').Path({str(mark)!r}).touch()")
    path = name("pathlib", "PosixPath") + b"(" + text(str(mark)) + b"tR"
    # getattr(PosixPath(mark), "touch")(), all of it builtins.
    touch = name("builtins", "getattr") + b"(" + path + text("touch") + b"tR" + b")R"
    return {
        "reduce": name("os", "system") + b"(" + command + b"tR",
        "reduce of another module": name("posix", "system") + b"(" + command + b"tR",
        "eval": name("builtins", "eval") + b"(" + code + b"tR",
        "python 2": name("__builtin__", "eval") + b"(" + code + b"tR",
        "getattr": touch,
        "stack_global": text("os") + text("system") + b"\x93" + b"(" + command + b"tR",
        "inst": b"(" + command + b"ios\nsystem\n",
        "obj": b"(" + name("os", "system") + command + b"o",
        "newobj": name("logging", "FileHandler") + b")\x81}" + b"b",
        "newobj_ex": name("subprocess", "Popen") + b")}" + b"\x92",
        "nested name": b"\x80\x04"
        + text("os")
        + text("path.os.system")
        + b"\x93("
        + command
        + b"tR",
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


@each_format
@each_call
def test_calls_are_refused(tmp_path, format, call):
    mark = tmp_path / "mark"
    refuse(
        tmp_path,
        format,
        state_dict(a=calls(mark)[call]),
        match="it holds .* and only tensors are read",
    )
    assert not mark.exists()


@pytest.mark.parametrize("call", ["reduce", "inst", "obj", "stack_global"])
@pytest.mark.parametrize("part", range(5))
def test_calls_are_refused_in_every_pickle_of_a_legacy_file(tmp_path, part, call):
    parts = [pickle.dumps(value, 2) for value in (pickles.MAGIC, 1001, {})]
    parts += [SOUND, pickle.dumps(["0"], 2)]
    parts[part] = HEAD + calls(tmp_path / "mark")[call] + b"." + parts[part]
    path = tmp_path / "weights.pth"
    path.write_bytes(b"".join(parts))
    with pytest.raises(ValueError, match=r"weights\.pth cannot be read"):
        torch_import.read(path)
    assert not (tmp_path / "mark").exists()


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
    refuse(tmp_path, format, state_dict(a=opcodes), match="only tensors are read")


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
    entries = ordered + text("a") + tensor((2,), (1,)) + b"s"
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
