"""Right and wrong command lines of every command."""

from typing import NamedTuple

import pytest

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
            "seeds": Options(["0", "3,1,2"], [*LISTS, "1.5", str(2**32)]),
            "sparsity": Options(["0", "1e-4,1e-3"], [*LISTS, "1e39"]),
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
SURPLUS = ["surplus", "-- surplus", "-", "", " ", "-1", "--=1", "=", "configs", "数"]
# What a config's file may hold that gives no config.
CONFIG_FILES = {
    "nothing": b"",
    "no text": b"\xff\xfe\x00",
    "a zero": b"get_config = 1\0",
    "no function": b"get_config = 1",
    "no Python": b"def get_config(:",
    "an import": b"import no_such_module",
    "a number": b"def get_config(): return 3",
    "a dict": b"def get_config(): return {'seed': 0}",
    "an object": b"get_config = object",
    "a key": b"def get_config(): raise KeyError('a\\nb')",
    "recursion": b"def get_config(): return get_config()",
    "an end": b"import sys\ndef get_config(): sys.exit(0)",
    "memory": b"def get_config(): return bytearray(2**60)",
    "an odd value": b"from train.config import default_config as made\n"
    b"def get_config():\n    config = made()\n    config.seed = 10**5000\n    return config",
}


def right_line(name, run, without=None):
    """A command with arguments that are right, but for one that may be left out."""
    base = [argument.format(run=run) for argument in COMMANDS[name].base]
    return [name.split()[0], *(a for a in base if not a.startswith(f"--{without}="))]


def all_values(kind):
    """Every command with every right, or every wrong, value of every option."""
    return [
        pytest.param(name, option, value, id=f"{name}-{option}-{value[:20]}")
        for name, command in COMMANDS.items()
        for option, values in command.options.items()
        for value in getattr(values, kind)
    ]
