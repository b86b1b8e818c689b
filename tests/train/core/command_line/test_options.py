"""Wrong command lines of every command: exit code 2 and one line; right ones reach the work."""

import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import digits_resnet20
from tests.helpers.commands import BEGINS, NAMES, REPOSITORY, call, module, no_work
from tests.helpers.values import (
    COMMANDS,
    CONFIG,
    CONFIG_FILES,
    COUNTS,
    FOREIGN,
    LISTS,
    SURPLUS,
    TEXTS,
    UNPRINTABLE,
    WRONG_NAMES,
    all_values,
    allowed,
    right_line,
)
from train.core.config.checks import validate
from train.core.config.fields import FIELDS, replaced
from train.core.errors import ConfigError

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module", autouse=True)
def _up_to_the_work():
    with no_work():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A directory that looks like that of a run."""
    path = tmp_path_factory.mktemp("run")
    (path / "config.json").write_text("{}")
    return path


def assert_right(result, name):
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("seed = 0" if name == "config" else BEGINS)


def assert_refused(result):
    assert (result.code, result.out) == (2, ""), result
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith("error: ")
    assert len(result.err) < 2100


@pytest.mark.parametrize("command", NAMES)
def test_no_option_is_left_out_here(command):
    entries = [entry for name, entry in COMMANDS.items() if name.split()[0] == command]
    known = {f"--{option}" for entry in entries for option in entry.options}
    known |= {argument.partition("=")[0] for entry in entries for argument in entry.base}
    there = re.findall(r"^  (--[\w-]+)", module(command).parser().format_help(), re.MULTILINE)
    assert set(there) - {"--config"} <= known


@pytest.mark.parametrize("name", COMMANDS)
def test_right_line_reaches_the_work(run, name):
    assert_right(call(*right_line(name, run)), name)


@pytest.mark.parametrize(("name", "option", "value"), all_values("right"))
def test_right_value_reaches_the_work(run, name, option, value):
    command, *arguments = right_line(name, run, without=option)
    assert_right(call(command, *arguments, f"--{option}={value}"), name)
    assert_right(call(command, f"--{option}", value, *arguments), name)


def test_options_that_belong_together_reach_the_work():
    cluster = ("--coordinator=localhost:1", "--num_processes=2", "--process_id=1")
    assert_right(call("main", CONFIG, *cluster), "main")


def test_fields_may_stand_before_the_config():
    result = call("main", "--config.seed=5", CONFIG)
    assert_right(result, "main")
    assert json.loads(result.out.splitlines()[1])["seed"] == 5


@pytest.mark.parametrize(("name", "option", "value"), all_values("wrong"))
def test_wrong_value_is_refused(run, name, option, value):
    result = call(*right_line(name, run, without=option), f"--{option}={value}")
    assert_refused(result)
    assert f"--{option}" in result.err


OPTIONS = [(name, option) for name, command in COMMANDS.items() for option in command.options]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_empty_and_missing_values_are_refused(run, name, option):
    command, *arguments = right_line(name, run, without=option)
    for empty in ([f"--{option}="], [f"--{option}", ""]):
        result = call(command, *empty, *arguments)
        assert_refused(result)
        assert f"--{option}" in result.err
    assert_refused(call(command, *arguments, f"--{option}"))


SWITCHES = [
    (name, argument)
    for name, command in COMMANDS.items()
    for argument in command.base
    if argument.startswith("--") and "=" not in argument
]


@pytest.mark.parametrize(("name", "switch"), SWITCHES)
def test_switch_takes_no_value(run, name, switch):
    result = call(*right_line(name, run), f"{switch}=true")
    assert_refused(result)
    assert f"{switch}: takes no value" in result.err


@given(case=st.sampled_from(OPTIONS), value=st.sampled_from(UNPRINTABLE))
def test_values_that_cannot_be_printed_are_refused(run, case, value):
    name, option = case
    assert_refused(call(*right_line(name, run), f"--{option}={value}"))


@given(
    name=st.sampled_from(list(COMMANDS)),
    argument=st.sampled_from([*FOREIGN, *SURPLUS]),
    is_first=st.booleans(),
)
def test_what_is_no_option_is_refused(run, name, argument, is_first):
    command, *arguments = right_line(name, run)
    pieces = argument.split(" ", 1)
    line = [*pieces, *arguments] if is_first else [*arguments, *pieces]
    assert_refused(call(command, *line))


@pytest.mark.parametrize(
    ("command", "arguments", "expected"),
    [
        ("main", (), "--config is missing"),
        ("main", ("--config.seed=1",), "--config is missing"),
        ("main", ("--config",), "config"),
        ("main", ("--config=",), "config"),
        ("main", (CONFIG, CONFIG), "--config is given twice"),
        ("main", (CONFIG, "--config", "configs/cifar100_resnet20.py"), "--config is given twice"),
        ("evaluate", ("--which=best",), "--config is missing"),
        ("prepare", (CONFIG,), "check or shrink"),
        ("prepare", ("shrink", "--config=configs/cifar100_resnet20.py"), "--out is missing"),
        ("compile", (CONFIG,), "--topology is missing"),
        ("compare", (CONFIG,), "--workdir is missing"),
        ("compare", ("--workdir=new",), "--config is missing"),
        ("report", (), "--workdir is missing"),
        ("visualize", ("--workdir=new",), "--images or --split"),
        ("visualize", ("--split=test",), "--workdir is missing"),
    ],
)
def test_what_is_missing_or_doubled_is_named(command, arguments, expected):
    result = call(command, *arguments)
    assert_refused(result)
    assert expected in result.err
    assert not (REPOSITORY / "new").exists()


def test_help_wins_over_what_is_wrong():
    for line in (("--worckdir=x", "--help"), ("-h", "--config.seed=first"), ("--which", "--help")):
        result = call("evaluate", *line)
        assert (result.code, result.err) == (0, "")
        assert result.out.startswith("usage: python -m train.evaluate")


def test_switch_alone_is_on():
    assert not digits_resnet20.get_config().data.flip
    result = call("main", CONFIG, "--config.data.flip")
    assert_right(result, "main")
    assert json.loads(result.out.splitlines()[1])["data"]["flip"] is True


def config_file(tmp_path, *lines, before=""):
    """A config file of the digits, with further lines in its function."""
    path = tmp_path / "own.py"
    own = "".join(f"    {line}\n" for line in lines)
    path.write_text(
        f"{before}from configs import digits_resnet20\n\n\ndef get_config():\n"
        f"    config = digits_resnet20.get_config()\n{own}    return config\n"
    )
    return f"--config={path}"


def test_command_line_mends_what_clashes_in_a_config_file(tmp_path):
    lines = ("config.model.attention = 'se'", "config.optimizer.sparsity = 1e-4")
    file = config_file(tmp_path, *lines)
    assert_right(call("main", file, "--config.optimizer.sparsity=0"), "main")
    result = call("main", file)
    assert_refused(result)
    assert result.err.startswith("error: config.optimizer.sparsity: 0.0001 with config.model.att")


def test_config_file_with_a_dataclass_of_its_own(tmp_path):
    before = (
        "from __future__ import annotations\nimport dataclasses\n\n\n"
        "@dataclasses.dataclass\nclass Own:\n    seed: int = 7\n\n\n"
    )
    result = call("main", config_file(tmp_path, "config.seed = Own().seed", before=before))
    assert_right(result, "main")
    assert json.loads(result.out.splitlines()[1])["seed"] == 7


@pytest.mark.parametrize("override", [(), ("--config.data.flip",), ("--config.seed=1",)])
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("del config.seed", "config.seed: missing"),
        ("del config.data", "config.data"),
        ("config.data = config", "config.data: there is no such field"),
        ("config.data = 3", "config.data: there is no such field"),
    ],
)
def test_config_file_with_a_field_that_is_none(tmp_path, line, expected, override):
    result = call("main", config_file(tmp_path, line), *override)
    assert_refused(result)
    assert result.err.startswith(f"error: {expected}")


@pytest.mark.parametrize("kind", CONFIG_FILES)
def test_odd_config_file_is_refused(kind, tmp_path):
    path = tmp_path / "config.py"
    path.write_bytes(CONFIG_FILES[kind])
    assert_refused(call("main", f"--config={path}", "--config.epochs=1"))
    assert_refused(call("main", f"--config={path}"))
    assert_refused(call("main", f"--config={tmp_path}"))


words = st.sampled_from([*TEXTS, *COUNTS, *LISTS, *WRONG_NAMES, *UNPRINTABLE]) | st.text()
texts = words.filter(lambda text: "\0" not in text)
options = st.sampled_from([*FIELDS, *(option for _, option in OPTIONS), "config", "report"])
arguments = st.one_of(
    st.builds("--{}={}".format, options, texts),
    st.builds("-{}".format, options),
    st.builds("--no{}".format, options),
    st.builds("--config.{}={}".format, st.sampled_from(list(FIELDS)), texts),
    st.builds("--{}".format, texts),
    st.sampled_from([*FOREIGN, *SURPLUS, CONFIG, "--workdir=new", "--help"]),
    texts,
)
# Those would ask Google for a bucket.
no_buckets = st.lists(arguments, max_size=6).filter(
    lambda line: not any("gs://" in part for part in line)
)


@given(name=st.sampled_from(list(COMMANDS)), more=no_buckets, is_based=st.booleans())
def test_any_arguments_are_right_or_refused(run, name, more, is_based):
    command, *arguments = right_line(name, run)
    result = call(command, *(arguments if is_based else []), *more)
    if result.code == 0:
        assert result.err == ""
        assert result.out
    else:
        assert_refused(result)


@given(name=st.sampled_from(list(FIELDS)), text=texts)
def test_any_text_of_a_field_is_right_or_the_field_is_named(name, text):
    result = call("main", CONFIG, f"--config.{name}={text}")
    if result.code == 0:
        assert_right(result, "main")
    else:
        assert_refused(result)
        assert f"config.{name}" in result.err


def as_text(value):
    return value if isinstance(value, str) else repr(value)


def refused_field(config):
    """Which field makes a config be refused, None where none does."""
    try:
        return validate(config)
    except ConfigError as error:
        return str(error).partition(":")[0]


@given(data=st.data())
def test_texts_of_values_are_those_values(data):
    names = data.draw(st.lists(st.sampled_from(list(FIELDS)), max_size=8, unique=True))
    values = {name: data.draw(allowed(name)) for name in names}
    overrides = [f"--config.{name}={as_text(value)}" for name, value in values.items()]
    result = call("main", CONFIG, *overrides)
    config = replaced(digits_resnet20.get_config(), values)
    field = refused_field(config)
    if field:
        assert_refused(result)
        assert result.err.startswith(f"error: {field}:")
        return
    assert_right(result, "main")
    assert json.loads(result.out.splitlines()[1]) == json.loads(
        json.dumps(dataclasses.asdict(config))
    )
