"""What tests run over: values, some of them slow; what fields and options allow, or nearly do."""

import math
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import strategies as st

from train.core.config.fields import FIELDS


def with_slow(
    name: str, values: Iterable[Any], slow: Collection[Any], **options: Any
) -> pytest.MarkDecorator:
    """Runs a test over `values`, over those that are `slow` in `make test-all` alone."""
    cases = [pytest.param(v, marks=pytest.mark.slow) if v in slow else v for v in values]
    return pytest.mark.parametrize(name, cases, **options)


WHOLE = [
    *(0, 1, -1, 2, 3, 4, 5, 7, 8, 16, 64, 1000, 2**20, 10**6, 10**9),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, -(2**63), 10**400, 10**4000),
]
NUMBERS = [
    *(0.0, -0.0, 1e-3, 0.1, 0.5, 1 - 1e-16, 1.0, 1.5, 10.0, 1e6, -0.5),
    *(5e-324, 1e-300, 1.1e-38, 1.2e-38, 1e-20, 1e20, 3.4e38, 3.5e38, 1e308),
    *(math.inf, -math.inf, math.nan),
]
TEXTS = [
    *("", " ", ".", "..", "../..", "/", "-1", "None", "a,b", "a:b", "a/b", "a" * 5000, "~nobody"),
    *("a\nb", "a\0b", "a\rb", "a\u2028b", "\x1b[31m", "\udc80", "数字", "ｄｉｇｉｔｓ", "digits²"),
    *("%s", "{}", "train[", "train[:", "train[:50%]", "train+test", "train[:0]", "all", "test"),
    *("train[5:2]", "all[:2]"),
    *("digits/a", "digits:1", "digits:..", "a/..", "tiny:1.0.0", "tiny/1.0.0", "tiny:9.9.9"),
]
# Names that fields allow.
NAMES = {
    **{name: spec.names for name, spec in FIELDS.items() if spec.names},
    "model.pretrained": ("", "weights.pth"),
    "model.pretrained_key": ("", "model_ema"),
    "data.name": ("digits", "folder"),
    "data.dir": ("/nowhere",),
    "data.train_split": ("train", "test"),
    "data.eval_split": ("train", "test"),
}

numbers = st.sampled_from(NUMBERS) | st.floats()
OF_KIND = {
    int: st.sampled_from(WHOLE) | st.integers(),
    float: numbers | st.integers(-2, 10),
    bool: st.booleans(),
    str: st.sampled_from(TEXTS) | st.text(),
    tuple: st.lists(numbers, max_size=5).map(tuple)
    | st.lists(st.floats(0, 1), max_size=5, unique=True).map(sorted)
    | st.tuples(st.floats(0, 1), st.floats(0, 1))
    | st.sampled_from([(0.5,) * 10**5, tuple(i / 1000 for i in range(1, 1000))]),
}
foreign = st.sampled_from(
    [
        *(None, True, False, 0, 1, 1.0, "1", "True", b"1", (), [], (1,), ("a",), ((1,),), {}),
        *(2**31, 10**400, -(10**400), {"a": 1}, {1: 2}, {1, 2}, 1j, int, object(), range(3), len),
        *(np.float32(1), np.int64(1), np.bool_(True), np.str_("a"), np.ones(3), np.ones((2, 2))),
    ]
)


def of_kind(name):
    """Values of the type that a field has, allowed or not."""
    strategy = OF_KIND[type(FIELDS[name].default)]
    return st.sampled_from(NAMES[name]) | strategy if name in NAMES else strategy


def allowed(name):
    """Values that a field allows by itself."""
    return of_kind(name).filter(FIELDS[name].test)


# Command lines.

CONFIG = "--config=configs/digits_resnet20.py"
COUNTS = ["0", "-1", "1.5", "two", "nan", "1e3", "9" * 5000, "²", "1,2", " ", "0x"]
LISTS = [",", "a,", "1,,2", "1,1", "-1", "nan", "inf", "1e400", "1;2", "one", "9" * 5000, "²"]
WRONG_NAMES = ["nam,", "nam,nam", "NAM", "none nam", "注意", "nam,se,?", "n" * 5000]
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
ATTENTION = Options(["nam", "none,se,nam_tied"], WRONG_NAMES)
ALSO = Options(
    ["seed=1", "loss=sigmoid+loss_threshold=0.2"],
    [
        "seed",
        "=",
        "+",
        "sed=1",
        "seed=-1",
        "seed=1+seed=2",
        "loss_threshold=0.2",
        "1" * 5000,
        "²=1",
    ],
)
WHICH = Options(["last", "best", "best_ema"], ["worst", "LAST", "last,best", " "])

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
    "evaluate": Command([CONFIG], {"workdir": WORKDIR, "which": WHICH, "json": JSON}),
    "evaluate --gates": Command([CONFIG, "--gates"], {}),
    "export": Command(
        ["--workdir=new", "--out=new.onnx"],
        {
            "workdir": WORKDIR,
            "which": WHICH,
            "out": Options(["new", "new.onnx"], [*FILES, "README.md"]),
            "format": Options(["stablehlo", "onnx"], ["ONNX", "onnx,stablehlo", " "]),
            "data_dir": Options(["new"], []),
        },
    ),
    "export with switches": Command(
        ["--workdir=new", "--out=new.onnx", "--raw", "--probabilities", "--overwrite"], {}
    ),
    "summary": Command([CONFIG], {"attention": ATTENTION}),
    "prepare": Command(
        ["check", "--config=configs/cifar100_resnet20.py"], {"out": Options([], ["new"])}
    ),
    "prepare shrink": Command(
        ["shrink", "--config=configs/cifar100_resnet20.py", "--out=new"],
        {"out": Options(["new", "~nobody_here/new"], [])},
    ),
    "benchmark": Command(
        [CONFIG],
        {
            "attention": ATTENTION,
            "also": ALSO,
            "steps": Options(["1", "1000"], [*COUNTS, str(10**9)]),
            "json": JSON,
        },
    ),
    "benchmark --loader-only": Command(
        ["--loader-only", "--config=configs/imagenet_resnet50.py"],
        {
            "also": ALSO,
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
    "compare --report": Command(["--workdir=new", "--report"], {}),
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
            "split": Options(["train", "test[:5]"], []),
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
