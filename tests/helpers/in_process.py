"""Commands in the tests' own process, wholly or up to their work."""

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from train.core import command_line

# What a command prints in place of its work, before its config in JSON.
BEGINS = "the work begins"
# Where the work of the commands begins, or a cluster would be asked.
WORK = (
    ("jax.distributed", "initialize"),
    ("jax.experimental.topologies", "get_topology_desc"),
    ("train.core.devices.compilation_cache", "enable"),
    ("train.evaluate", "build_experiment"),
    ("train.summary", "source_of"),
    ("train.prepare.__main__", "check"),
    ("train.prepare.__main__", "shrink"),
    ("train.benchmark.__main__", "measure_attentions"),
    ("train.benchmark.loader", "run"),
    ("train.compare.__main__", "train_all"),
    ("train.compare.__main__", "write_tables"),
    ("train.report.run_page", "write_page"),
    ("train.visualize.__main__", "visualize_run"),
)


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class _WorkBeginsError(BaseException):
    """A command has come to its work."""


def module(command: str) -> Any:
    """The module of a command, such as `main` or `compare`."""
    name = f"train.{command}"
    is_folder = importlib.util.find_spec(name).submodule_search_locations is not None
    return importlib.import_module(f"{name}.__main__" if is_folder else name)


def call(command: str, *arguments: str) -> Result:
    """Runs a command of `train`, or of another package by its dotted name."""
    of = module(command)
    out, err, code = io.StringIO(), io.StringIO(), 0
    options: list[Any] = []

    def main(parsed: Any) -> None:
        options.append(parsed)
        of.main(parsed)

    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = command_line.call(main, of.parser(), arguments)
        except _WorkBeginsError:
            print(BEGINS)
            if getattr(options[0], "config", None):
                print(json.dumps(dataclasses.asdict(options[0].config)))
    return Result(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def no_work() -> Iterator[None]:
    """Ends every command where its work begins."""

    def begin(*arguments: Any, **options: Any) -> None:
        raise _WorkBeginsError

    with pytest.MonkeyPatch.context() as patch:
        for place, name in WORK:
            patch.setattr(importlib.import_module(place), name, begin)
        yield
