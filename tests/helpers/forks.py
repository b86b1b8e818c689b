"""Commands in processes of their own, forked off one that has imported the libraries.

Each is as good as a fresh start, which would take seconds. A command is run up to its work.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tests.helpers.commands import REPOSITORY

# What hangs is killed after so long, and so ends with another exit code.
LIMIT_SECONDS = 60
# What a command prints in place of its work, before its config in JSON.
BEGINS = "the work begins"

LIBRARIES = (
    *(
        "train.core.engine.loop",
        "train.visualize.trained_network",
        "train.core.devices.program_cost",
        "train.core.plotting",
        "train.prepare.shrink",
    ),
    *("absl.app", "ml_collections.config_flags", "matplotlib.pyplot"),
)
# Where the work of the commands begins, or a cluster, or a file of this machine, would be asked.
WORK = (
    ("jax.distributed", "initialize"),
    ("jax.experimental.topologies", "get_topology_desc"),
    ("train.compare.runs", "read"),
    ("train.prepare.shrink", "shrink"),
    ("train.core.data.sources.registry", "describe"),
    ("train.core.data.sources.registry", "open_split"),
    ("train.core.engine.experiment", "build"),
    ("train.report.run_page", "write_page"),
    ("train.visualize.trained_network", "load"),
)


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class Forks:
    """The process that commands are forked off."""

    def __init__(self, process: subprocess.Popen[str]):
        self._process = process

    def call(self, command: str, *arguments: str) -> Result:
        """Runs a command of `train` up to its work."""
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps([command, arguments]), file=self._process.stdin, flush=True)
        return Result(*json.loads(self._process.stdout.readline()))


@contextlib.contextmanager
def started() -> Iterator[Forks]:
    """Starts the process that commands are forked off, and ends it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.forks"],
        cwd=REPOSITORY,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        try:
            yield Forks(process)
        finally:
            process.kill()


def serve() -> None:
    """Runs the commands that come in, a line each."""
    for library in LIBRARIES:
        importlib.import_module(library)
    # It reads the command line as it is imported.
    assert "train.core.command_line" not in sys.modules
    # Looking for garbage would copy all of the memory into each child.
    gc.disable()
    for line in sys.stdin:
        print(json.dumps(_fork(*json.loads(line))), flush=True)


def _fork(command: str, arguments: Sequence[str]) -> Result:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            signal.alarm(LIMIT_SECONDS)
            os._exit(_run(command, arguments))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
        return Result(code, *texts)


def _run(command: str, arguments: Sequence[str]) -> int:
    sys.argv = [command, *arguments]
    try:
        for place, name in WORK:
            setattr(importlib.import_module(place), name, _begin)
        # As in a fresh start the command itself is not imported yet.
        sys.modules.pop(f"train.{command}", None)
        runpy.run_module(f"train.{command}", run_name="__main__", alter_sys=True)
        code: Any = 0
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code or 0


def _begin(*arguments: Any, **options: Any) -> None:
    from train.core import command_line

    print(BEGINS)
    if command_line.CONFIG.value:
        print(json.dumps(command_line.CONFIG.value.to_dict()))
    sys.exit(0)


if __name__ == "__main__":
    serve()
