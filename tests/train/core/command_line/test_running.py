"""How commands end: exit codes, one line of what is wrong, and help that fits a screen."""

import errno
import functools
import io
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import commands
from tests.helpers.commands import NAMES, REPOSITORY, call
from train.core import command_line
from train.core.command_line.running import PREEMPTED
from train.core.command_line.values import output
from train.core.devices import processes
from train.core.errors import PreemptedError
from train.core.monitor.terminal import Display

slow = functools.partial(pytest.param, marks=pytest.mark.slow)
DIGITS = ("--config", "configs/digits_resnet20.py")
# JAX looks for other processes only before it has looked at its devices.
ALONE = "--num_processes=1"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "--config is missing"),
        (("--config", "nowhere.py"), "nowhere.py"),
        ((*DIGITS, "--config.model.nam=nam"), "did you mean config.model.name?"),
        (
            (*DIGITS, "--config.seed=first"),
            "config.seed: got 'first'; allowed: 0 to",
        ),
        (
            (*DIGITS, "--config.epochs=2.5"),
            "config.epochs: got '2.5'; allowed: 1 to 2³¹ − 1, a whole number",
        ),
        ((*DIGITS, "--config.model=resnet18"), "did you mean config.model.name?"),
        ((*DIGITS, "--config.l=3"), "config.l: there is no such field"),
        ((*DIGITS, "--config.data.name=cifar-100"), "config.data.name: got 'cifar-100'"),
        ((*DIGITS, "--config.data.eval_split=x"), "config.data.eval_split: digits has"),
        ((*DIGITS, "--config.model.name=resnet19"), "one of resnet18, resnet34"),
        ((*DIGITS, "--config.data.name=cifar10", "--config.data.dir=no"), "tfds build cifar10"),
        ((*DIGITS, "surplus"), "unknown argument 'surplus'"),
        ((*DIGITS, "--worckdir=x"), "worckdir"),
    ],
)
def test_one_line_and_exit_code_2(
    arguments: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    result = call("main", *arguments, ALONE, "--workdir", str(tmp_path / "run"))
    assert result.code == 2, result.err
    assert expected in result.err
    assert result.err.startswith("error: ")
    assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def get_config(:", "invalid syntax"),
        ("CONFIG = 1", "get_config"),
        ("def get_config(): return None", "returns nothing"),
        ("def get_config(): raise ValueError('out of cheese')", "out of cheese"),
        (
            "from train.config import default_config\n"
            "def get_config():\n"
            "    config = default_config()\n"
            "    config.batch_siz = 3\n"
            "    return config\n",
            "batch_siz",
        ),
    ],
)
def test_broken_config_file(source: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(source)
    result = call("main", "--config", str(tmp_path / "broken.py"))
    assert result.code == 2
    assert expected in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("command", NAMES)
def test_help_fits_a_screen_and_shows_an_example(command: str) -> None:
    result = call(command, "--help")
    assert result.code == 0
    lines = result.out.splitlines()
    assert len(lines) <= 24
    assert all(len(line) <= 80 for line in lines)
    options = r" ([\w-]+ )?--(config|workdir) (configs/\w+\.py|runs/\w+)"
    example = rf"python -m train\.{command}" + ("" if command == "config" else options)
    assert any(re.match(example, line.strip()) for line in lines)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (DIGITS, "name what to do: check or shrink."),
        (("chek", *DIGITS), "name what to do: check or shrink; got 'chek'."),
        (("check", "now", *DIGITS), "unknown argument 'now'"),
        (("shrink", *DIGITS), "--out is missing"),
        (
            ("check", *DIGITS),
            "digits is no dataset of records on disk, and needs no check; allowed: ",
        ),
        (
            ("shrink", *DIGITS, "--out=new"),
            "digits cannot be shrunk; datasets of TFDS and folders of images can.",
        ),
    ],
)
def test_wrong_call_of_prepare(arguments: tuple[str, ...], expected: str) -> None:
    result = call("prepare", *arguments)
    assert result.code == 2
    assert expected in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("name", ["config.json", "checkpoints"])
def test_odd_directory_of_a_run(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("[1, 2]")
    result = call("main", *DIGITS, ALONE, "--config.steps=1", "--workdir", str(tmp_path))
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert len(result.err.splitlines()) == 1


def test_memory_that_runs_out_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code = command_line.call(
        lambda options: bytearray(2**60), command_line.Parser("It takes memory.", ""), []
    )
    assert code == 1
    assert re.fullmatch(r"error: there is not enough memory: .+\n", capsys.readouterr().err)


# Of two tasks one fails, and the other when it is cancelled for that.
TWO_ERRORS = """
import asyncio
from train.core import command_line

async def fails():
    raise OSError("the first error")

async def fails_later():
    try:
        await asyncio.sleep(60)
    finally:
        raise OSError("the second error")

async def both():
    await asyncio.gather(fails_later(), fails())

command_line.run(lambda options: asyncio.run(both()), command_line.Parser("It fails.", ""))
"""


def test_of_several_errors_at_once_one_line_is_left() -> None:
    result = subprocess.run(
        [sys.executable, "-c", TWO_ERRORS],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (1, "error: the first error.\n")


@pytest.mark.parametrize(
    ("arguments", "redirection", "code", "said"),
    [
        ("train.config", "> /dev/full", 1, r"error: .*No space left on device\.\n"),
        slow("train.config --help", "> /dev/full", 1, r"error: .*No space left on device\.\n"),
        slow("train.config --help", ">&-", 0, ""),
        slow("train.config", ">&-", 0, ""),
        # A pipe whose reader is gone by then.
        ("train.config --help", "| exec 0<&-", 1, ""),
    ],
)
def test_output_that_cannot_be_written(
    arguments: str, redirection: str, code: int, said: str
) -> None:
    shell = f"set -o pipefail; (sleep 0.2; exec {sys.executable} -m {arguments}) {redirection}"
    result = subprocess.run(
        ["bash", "-c", shell], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert result.returncode == code
    assert re.fullmatch(said, result.stderr)


def test_characters_that_the_output_lacks_are_written_in_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    result = commands.run_process(*DIGITS, command="train.summary")
    assert (result.returncode, result.stderr) == (0, "")
    assert r"8 \xd7 8 \xd7 1" in result.stdout


def test_empty_workdir_is_refused() -> None:
    result = call("main", *DIGITS, "--workdir", "")
    assert result.code == 2
    assert "--workdir is empty" in result.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("report",), "there is no such directory"),
        (("compare", "--report"), "there is no finished run of a comparison"),
    ],
)
def test_directory_that_is_not_there(
    arguments: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    result = call(*arguments, f"--workdir={tmp_path / 'nowhere'}")
    assert result.code == 2
    assert expected in result.err
    assert len(result.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_evaluate_without_a_run(tmp_path: Path) -> None:
    result = call("evaluate", *DIGITS, "--workdir", str(tmp_path))
    assert result.code == 2
    assert "there is no run" in result.err


def test_evaluate_names_the_checkpoints_that_can_be_chosen() -> None:
    result = call("evaluate", *DIGITS, "--which", "worst")
    assert result.code == 2
    assert "last" in result.err
    assert "best" in result.err


@pytest.mark.parametrize("name", [".", "nowhere/figures.json"])
def test_file_that_could_not_be_written_is_refused_before_the_work(name: str) -> None:
    result = call("compile", *DIGITS, "--topology=v5e:2x2", f"--json={name}")
    assert result.code == 2
    assert re.fullmatch(r"error: --json: got .*directory that is there\.\n", result.err)


def test_file_that_can_be_written(tmp_path: Path) -> None:
    assert output(str(tmp_path / "new")) == tmp_path / "new"


ARGUMENTS = {
    "benchmark": (*DIGITS, "--steps=0"),
    "compare": (*DIGITS, "--workdir=new", "--attention="),
    "compile": DIGITS,
    "config": (),
    "evaluate": (*DIGITS, "--which=worst"),
    "export": (*DIGITS, "--out=new", "--format=spam"),
    "main": (*DIGITS, "--flagfile=/dev/zero"),
    "prepare": ("chek", *DIGITS),
    "report": (),
    "summary": (*DIGITS, "--config.model.attention=spam"),
    "visualize": ("--split=test",),
}


@pytest.mark.parametrize("command", ["main", "visualize"])
def test_a_process_ends_as_the_call_does(command: str) -> None:
    fresh = commands.run_process(*ARGUMENTS[command], command=f"train.{command}")
    assert call(command, *ARGUMENTS[command]) == (fresh.returncode, fresh.stdout, fresh.stderr)


@pytest.mark.parametrize("command", NAMES)
def test_every_command_runs_its_own_main(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # First, or it would import a copy of the module that is taken out below.
    expected = call(command, *ARGUMENTS[command])
    codes = []

    def run(main: Any, parser: Any) -> None:
        codes.append(command_line.call(main, parser, ARGUMENTS[command]))

    monkeypatch.setattr(command_line, "run", run)
    # Run a second time beside what is imported, which Python warns of.
    monkeypatch.delitem(sys.modules, commands.module(command).__name__)
    runpy.run_module(f"train.{command}", run_name="__main__")
    assert expected == (*codes, *capsys.readouterr())


class Gone(io.StringIO):
    """Output that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.faults
def test_a_saved_stop_is_one_also_where_the_output_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stopped(options: Any) -> None:
        raise PreemptedError("stopped after step 1, which is saved")

    monkeypatch.setattr(sys, "stdout", Gone())
    parser = command_line.Parser("Stops.", "stop")
    assert command_line.call(stopped, parser, []) == PREEMPTED


@pytest.mark.faults
def test_a_stop_is_heard_also_where_the_output_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(file: int, text: bytes) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with processes.Preemption() as preemption:
        with monkeypatch.context() as broken:
            broken.setattr(os, "write", gone)
            broken.setattr(sys, "stdout", Gone())
            row = {"step": 1, "epoch": 0.1, "split": "eval", "loss": 1.0, "top1_error": 50.0}
            with pytest.raises(BrokenPipeError):
                Display(2).show(row, 1.0)
            signal.raise_signal(signal.SIGINT)
            # What is due before the checkpoint.
            Display(2).show(row, 1.0)
        assert preemption.reached()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("benchmark", *DIGITS, "--seconds=1"), "--seconds goes with --loader-only"),
        (("benchmark", *DIGITS, "--workers=1"), "--workers goes with --loader-only"),
        (("benchmark", *DIGITS, "--loader-only", "--attention=nam"), "--loader-only runs no"),
        (("prepare", "check", *DIGITS, "--out=copy"), "--out: check writes nothing"),
        (("compare", "--report", "--workdir=new", "--seeds=0"), "--seeds: --report is of all"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(
    arguments: tuple[str, ...], expected: str
) -> None:
    result = call(*arguments)
    assert result.code == 2
    assert expected in result.err
