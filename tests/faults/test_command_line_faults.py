"""Wrong command lines of every command: exit code 2 and one line; right ones reach the work."""

import json
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import digits_resnet20
from tests.faults import forks
from tests.faults.config_values import TEXTS, allowed
from tests.train.commands import call
from train.config import FIELDS
from train.errors import ConfigError
from train.validation import validate

CONFIG = "--config=configs/digits_resnet20.py"
COUNTS = ["0", "-1", "1.5", "two", "nan", "1e3", "9" * 5000, "²", "1,2", " ", "0x"]
LISTS = [",", "a,", "1,,2", "1,1", "-1", "nan", "inf", "1e400", "1;2", "one", "9" * 5000, "²"]
NAMES = ["nam,", "nam,nam", "NAM", "none nam", "注意", "nam,se,?", "n" * 5000]
DIRECTORIES = ["s3://a/b", "gs://", "gs://a", "gs:///a", "://"]
FILES = [".", "nowhere/new.json", "~nobody_here/new.json", "README.md/new.json", "n" * 5000]
UNPRINTABLE = ["a\nb", "a\rb", "\x1b[2J", "\udc80", "a\u2028b"]


class Options(NamedTuple):
    """Values of an option: some that are right, and some that are wrong."""

    right: list[str]
    wrong: list[str]


class Command(NamedTuple):
    """A command: arguments that are right, and what may stand beside them."""

    base: list[str]
    options: dict[str, Options]


WORKDIR = Options(["new", "~/new", "~nobody_here/new", "新しい", "a b"], DIRECTORIES)
JSON = Options(["new.json"], FILES)
ATTENTION = Options(["nam", "none,se,nam_tied"], NAMES)
WHICH = Options(["last", "best"], ["worst", "LAST", "last,best", " "])

COMMANDS = {
    "main": Command(
        [CONFIG],
        {
            "workdir": WORKDIR,
            "profile": Options(["1:1", "3:10"], ["0:1", "2:1", "1", ":", "1:²", "9" * 5000 + ":1"]),
            "num_processes": Options(["1"], COUNTS),
            "process_id": Options([], ["0", *COUNTS]),
            "coordinator": Options([], ["localhost:1", "localhost", ":1", "a:b"]),
            "heartbeat_seconds": Options(["5"], [*COUNTS, str(10**12)]),
        },
    ),
    "evaluate": Command([CONFIG], {"workdir": WORKDIR, "which": WHICH}),
    "summary": Command([CONFIG], {"attention": ATTENTION}),
    "prepare": Command(
        ["check", "--config=configs/cifar100_resnet20.py"], {"out": Options(["new"], [])}
    ),
    "prepare shrink": Command(
        ["shrink", "--config=configs/cifar100_resnet20.py", "--out=new"],
        {"out": Options(["new", "~nobody_here/new"], [])},
    ),
    "benchmark": Command(
        [CONFIG],
        {
            "attention": ATTENTION,
            "steps": Options(["1", "1000"], [*COUNTS, str(10**9)]),
            "json": JSON,
        },
    ),
    "benchmark --loader-only": Command(
        ["--loader-only", "--config=configs/imagenet_resnet50.py"],
        {
            "workers": Options(["1", "1,2,64"], [*LISTS[:3], *COUNTS[:8], str(10**6)]),
            "seconds": Options(["0.1", "60"], ["0", "-1", "nan", "inf", "1e308", "two", "²"]),
            "json": JSON,
        },
    ),
    "compile": Command(
        [CONFIG, "--topology=v5e:2x2"],
        {
            "topology": Options(["v4:2x2x1"], ["v5e", ":", "v5e:2", "v5e:²x2", "v" * 5000]),
            "json": JSON,
        },
    ),
    "compare": Command(
        [CONFIG, "--workdir=new"],
        {
            "workdir": WORKDIR,
            "attention": ATTENTION,
            "seeds": Options(["0", "3,1,2"], [*LISTS, "1.5", str(2**31)]),
            "sparsity": Options(["0", "1e-4,1e-3"], [*LISTS, "1e10"]),
            "only": Options(["1/1", "2/2"], ["0/1", "2/1", "1/3", "1", "/", "9" * 5000 + "/1"]),
        },
    ),
    "report": Command(["--workdir={run}"], {"workdir": Options([], ["nowhere", *DIRECTORIES])}),
    "visualize": Command(
        ["--workdir=new", "--split=test"],
        {
            "workdir": WORKDIR,
            "count": Options(["1", "100"], [*COUNTS, "101"]),
            "layer": Options(["layer4_2/attention"], []),
            "which": WHICH,
            "data_dir": Options(["new"], []),
            "out": Options(["new.png"], FILES),
            "images": Options([], [",", "a.png,", "a.png"]),
        },
    ),
    "config": Command([], {}),
}
# Options that libraries define, some of which would run forever, and those that nothing does.
FOREIGN = [
    *("--flagfile=/dev/zero", "--flagfile", "--undefok=config", "--pdb", "--run_with_pdb", "--v=1"),
    *("--only_check_args", "--helpfull", "--helpxml", "-?", "--log_dir=/", "--profile_file=x"),
    *("--grain_py_debug_mode", "--alsologtostderr", "--xla", "-x", "--WORKDIR=x", "---workdir=x"),
    *("--no", "--nono", "--config.", "--config.=1", "--noconfig.data", "--數=1", "-é", "--a b=1"),
]
SURPLUS = [
    "surplus",
    "-- surplus",
    "-",
    "",
    " ",
    "-1",
    "--=1",
    "=",
    "configs/digits_resnet20.py",
    "数",
]


@pytest.fixture(scope="module")
def commands():
    with forks.started() as started:
        yield started


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A directory that looks like that of a run."""
    path = tmp_path_factory.mktemp("run")
    (path / "config.json").write_text("{}")
    return path


def right_line(name, run, without=None):
    """A command with arguments that are right, but for one that may be left out."""
    base = [argument.format(run=run) for argument in COMMANDS[name].base]
    return [name.split()[0], *(a for a in base if not a.startswith(f"--{without}="))]


def assert_right(result, name):
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("seed = 0" if name == "config" else forks.BEGINS)


def assert_refused(result):
    assert (result.code, result.out) == (2, ""), result
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith("error: ")
    assert len(result.err) < 2100


def all_values(kind):
    return [
        (name, option, value)
        for name, command in COMMANDS.items()
        for option, values in command.options.items()
        for value in getattr(values, kind)
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_right_line_reaches_the_work(commands, run, name):
    assert_right(commands.call(*right_line(name, run)), name)


@pytest.mark.parametrize(("name", "option", "value"), all_values("right"))
def test_right_value_reaches_the_work(commands, run, name, option, value):
    command, *arguments = right_line(name, run, without=option)
    assert_right(commands.call(command, *arguments, f"--{option}={value}"), name)
    assert_right(commands.call(command, f"--{option}", value, *arguments), name)


def test_options_that_belong_together_reach_the_work(commands):
    cluster = ("--coordinator=localhost:1", "--num_processes=2", "--process_id=1")
    assert_right(commands.call("main", CONFIG, *cluster), "main")


def test_comparison_of_finished_runs_needs_no_config(commands):
    assert_right(commands.call("compare", "--report", "--workdir=new"), "compare")


@pytest.mark.parametrize(("name", "option", "value"), all_values("wrong"))
def test_wrong_value_is_refused(commands, run, name, option, value):
    result = commands.call(*right_line(name, run, without=option), f"--{option}={value}")
    assert_refused(result)
    assert f"--{option}" in result.err


OPTIONS = [(name, option) for name, command in COMMANDS.items() for option in command.options]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_empty_and_missing_values_are_refused(commands, run, name, option):
    command, *arguments = right_line(name, run, without=option)
    for empty in ([f"--{option}="], [f"--{option}", ""]):
        result = commands.call(command, *empty, *arguments)
        assert_refused(result)
        assert f"--{option}" in result.err
    assert_refused(commands.call(command, *arguments, f"--{option}"))


@given(case=st.sampled_from(OPTIONS), value=st.sampled_from(UNPRINTABLE))
def test_values_that_cannot_be_printed_are_refused(commands, run, case, value):
    name, option = case
    assert_refused(commands.call(*right_line(name, run), f"--{option}={value}"))


@given(
    name=st.sampled_from(list(COMMANDS)),
    argument=st.sampled_from([*FOREIGN, *SURPLUS]),
    is_first=st.booleans(),
)
def test_what_is_no_option_is_refused(commands, run, name, argument, is_first):
    command, *arguments = right_line(name, run)
    pieces = argument.split(" ", 1)
    line = [*pieces, *arguments] if is_first else [*arguments, *pieces]
    assert_refused(commands.call(command, *line))


@pytest.mark.parametrize(
    ("command", "arguments", "expected"),
    [
        ("main", (), "--config is missing"),
        ("main", ("--config.seed=1",), "--config is missing"),
        ("main", ("--config.seed=1", CONFIG), "config.seed"),
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
def test_what_is_missing_or_doubled_is_named(commands, command, arguments, expected):
    result = commands.call(command, *arguments)
    assert_refused(result)
    assert expected in result.err


CONFIG_FILES = {
    "nothing": b"",
    "no text": b"\xff\xfe\x00",
    "a zero": b"get_config = 1\0",
    "no function": b"get_config = 1",
    "no Python": b"def get_config(:",
    "an import": b"import no_such_module",
    "a number": b"def get_config(): return 3",
    "a dict": b"def get_config(): return {'seed': 0}",
    "an empty config": b"from ml_collections import ConfigDict as get_config",
    "a key": b"def get_config(): raise KeyError('a\\nb')",
    "recursion": b"def get_config(): return get_config()",
    "memory": b"def get_config(): return bytearray(2**60)",
    "an odd value": b"from train.config import default_config as made\n"
    b"def get_config():\n    config = made()\n    config.seed = 10**5000\n    return config",
}


@pytest.mark.parametrize("kind", CONFIG_FILES)
def test_odd_config_file_is_refused(commands, kind, tmp_path):
    path = tmp_path / "config.py"
    path.write_bytes(CONFIG_FILES[kind])
    assert_refused(commands.call("main", f"--config={path}", "--config.seed=1"))
    assert_refused(commands.call("main", f"--config={path}"))
    assert_refused(commands.call("main", f"--config={tmp_path}"))


words = st.sampled_from([*TEXTS, *COUNTS, *LISTS, *NAMES, *UNPRINTABLE]) | st.text()
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
def test_any_arguments_are_right_or_refused(commands, run, name, more, is_based):
    command, *arguments = right_line(name, run)
    result = commands.call(command, *(arguments if is_based else []), *more)
    if result.code == 0:
        assert result.err == ""
        assert result.out
    else:
        assert_refused(result)


@given(name=st.sampled_from(list(FIELDS)), text=texts)
def test_any_text_of_a_field_is_right_or_the_field_is_named(commands, name, text):
    result = commands.call("main", CONFIG, f"--config.{name}={text}")
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
def test_texts_of_values_are_those_values(commands, data):
    names = data.draw(st.lists(st.sampled_from(list(FIELDS)), max_size=8, unique=True))
    values = {name: data.draw(allowed(name)) for name in names}
    overrides = [f"--config.{name}={as_text(value)}" for name, value in values.items()]
    result = commands.call("main", CONFIG, *overrides)
    config = digits_resnet20.get_config()
    config.update_from_flattened_dict(values)
    field = refused_field(config)
    if field:
        assert_refused(result)
        assert result.err.startswith(f"error: {field}:")
        return
    assert_right(result, "main")
    assert json.loads(result.out.splitlines()[1]) == json.loads(json.dumps(config.to_dict()))


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("main", (CONFIG, "--flagfile=/dev/zero")),
        ("compare", (CONFIG, "--workdir=new", "--attention=")),
        ("config", ()),
    ],
)
def test_fresh_process_ends_as_a_forked_one(commands, command, arguments):
    fresh = call(*arguments, command=f"train.{command}")
    assert commands.call(command, *arguments) == (fresh.returncode, fresh.stdout, fresh.stderr)
