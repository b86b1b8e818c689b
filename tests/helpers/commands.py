"""Commands, in the tests' own process, or in some of their own as a user starts them."""

import dataclasses
import importlib
import importlib.util
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from train.core import command_line

REPOSITORY = Path(__file__).parents[2]
# All commands, such as `main` and `compare`.
NAMES = sorted(
    path.stem
    for path in (REPOSITORY / "train").iterdir()
    if path.stem != "core" and not path.stem.startswith("__")
)
# A lost process is noticed after so long.
HEARTBEAT_SECONDS = 10
# Everything ends within this; only what hangs does not.
LIMIT_SECONDS = 600

# For processes that run longer than they compile.
OPTIMIZED = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "false", "XLA_FLAGS": ""}

# What trains: the command, or the same with the smallest network in place of the config's.
MAIN, TINY = "train.main", "tests.helpers.tiny"
# Attention would make compiling half as long again.
PLAIN = ("--config.model.attention=none", "--config.optimizer.sparsity=0")

Process = subprocess.Popen[str]

# What a command prints in place of its work, before its config in JSON.
BEGINS = "the work begins"
# Where the work of the commands begins, or a cluster would be asked.
WORK = (
    ("jax.distributed", "initialize"),
    ("jax.experimental.topologies", "get_topology_desc"),
    ("train.core.devices.compilation_cache", "enable"),
    ("train.evaluate", "build_evaluation"),
    ("train.core.engine.trained_network", "of_run"),
    ("train.core.engine.trained_network", "of_file"),
    ("train.summary", "source_of"),
    ("train.prepare.__main__", "check_dataset"),
    ("train.prepare.__main__", "source_of"),
    ("train.benchmark.__main__", "measure_variants"),
    ("train.benchmark.loader", "run_all"),
    ("train.compare.__main__", "train_all"),
    ("train.compare.__main__", "write_tables"),
    ("train.report.run_page", "render"),
    ("train.visualize.__main__", "visualize_pretrained"),
    ("train.visualize.__main__", "visualize_run"),
)


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class _WorkBeginsError(BaseException):
    """A command has come to its work."""


def module_name(command: str) -> str:
    """The name of a command's module, such as `train.main` or `train.compare.__main__`."""
    name = f"train.{command}"
    is_folder = importlib.util.find_spec(name).submodule_search_locations is not None
    return f"{name}.__main__" if is_folder else name


def module(command: str) -> Any:
    """The module of a command."""
    return importlib.import_module(module_name(command))


def call(command: str, *arguments: str) -> Result:
    """Runs a command of `train`, or of another package by its dotted name."""
    of = module(command)
    out, err, code = io.StringIO(), io.StringIO(), 0
    options: list[Any] = []

    def main(parsed: Any) -> None:
        options.append(parsed)
        of.main(parsed)

    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = command_line.call(main, of.parser(), arguments)
        except _WorkBeginsError:
            print(BEGINS)
            if getattr(options[0], "config", None):
                print(json.dumps(dataclasses.asdict(options[0].config)))
    return Result(code, out.getvalue(), err.getvalue())


@contextmanager
def no_work() -> Iterator[None]:
    """Ends every command where its work begins."""

    def begin(*arguments: Any, **options: Any) -> None:
        raise _WorkBeginsError

    with pytest.MonkeyPatch.context() as patch:
        for place, name in WORK:
            patch.setattr(importlib.import_module(place), name, begin)
        yield


def run_process(*arguments: str, command: str = MAIN) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, from the root of the repository."""
    return subprocess.run(
        [sys.executable, "-m", command, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@contextmanager
def started(
    count: int,
    workdir: Path,
    *arguments: str,
    module: str = MAIN,
    devices: int = 2,
    own: Callable[[int], Sequence[str]] = lambda i: (),
    **environment: str,
) -> Iterator[list[Process]]:
    """Starts the processes of a run on the digits; none of them outlives the block.

    Args:
      count: Number of processes; one alone has no others to find.
      workdir: Directory of the run.
      *arguments: Arguments of all processes.
      module: Module that is run, `MAIN` or `TINY`.
      devices: Number of virtual devices of each process.
      own: Gives the further arguments of a process, by its number.
      **environment: Environment variables of all processes.
    """
    command = [sys.executable, "-m", module, "--config", "configs/digits_resnet20.py"]
    flags = (f"--coordinator=localhost:{free_port()}", f"--num_processes={count}")
    shared = (*flags, f"--heartbeat_seconds={HEARTBEAT_SECONDS}", "--workdir", str(workdir))
    virtual = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    processes = [
        subprocess.Popen(
            [*command, *shared, f"--process_id={i}", *arguments, *own(i)],
            cwd=REPOSITORY,
            env=os.environ | virtual | environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for i in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def finish(processes: Sequence[Process]) -> list[tuple[int, str, str]]:
    """Exit code, standard output and standard error of each."""
    outputs = [process.communicate(timeout=LIMIT_SECONDS) for process in processes]
    return [(p.returncode, *output) for p, output in zip(processes, outputs, strict=True)]


def run(count: int, workdir: Path, *arguments: str, **options: Any) -> list[str]:
    """Trains to the end; what each process printed."""
    with started(count, workdir, *arguments, **options) as processes:
        results = finish(processes)
    assert [code for code, _, _ in results] == [0] * count, results
    return [out for _, out, _ in results]


def rows(workdir: Path, split: str = "train") -> list[dict[str, Any]]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [row for row in map(json.loads, lines) if row["split"] == split]


def last_row(workdir: Path) -> dict[str, Any]:
    """The last whole row of a run that may be writing; empty before the first."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    return json.loads(whole[-1]) if whole else {}


def summary(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "summary.json").read_text())


def saved(workdir: Path) -> list[int]:
    """Steps of the finished checkpoints."""
    return sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal())


def wait_for(condition: Callable[[], Any], process: Process) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
