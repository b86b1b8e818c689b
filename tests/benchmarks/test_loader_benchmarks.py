"""The benchmarks of the loader: their images, and processes that take turns."""

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.loader import jpegs, variants, vs_tfdata
from train.core import command_line
from train.core.errors import RunError


def refusal(module: Any, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a benchmark prints of what is wrong."""
    code = command_line.call(module.main, module.parser(), arguments)
    assert code == command_line.WRONG_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


def test_every_jpeg_file_below_a_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    names = ["a/1.JPG", "a/2.jpeg", "b.jpg"]
    for name in (*names, "c.png"):
        (tmp_path / name).touch()
    assert jpegs.photographs_in(str(tmp_path)) == [tmp_path / name for name in names]


def test_photographs_that_are_not_there_are_not_synthetic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, target = tmp_path / "empty", tmp_path / "target"
    line = refusal(jpegs, capsys, f"--dir={target}", f"--photographs={empty}")
    assert line.startswith(f"--photographs: got '{empty}', which holds no file .jpg or .jpeg;")
    assert not target.exists()


def test_datasets_are_not_mixed_and_hold_a_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [f"--dir={tmp_path}", "--count=5"]
    assert command_line.call(jpegs.main, jpegs.parser(), small) == command_line.DONE
    assert len([*(tmp_path / "folder").rglob("*.jpg")]) == 5
    line = refusal(jpegs, capsys, *small)
    assert line == f"--dir: got '{tmp_path}', which holds files; name a new directory."
    line = refusal(variants, capsys, f"--dir={tmp_path}")
    assert line.startswith(f"--dir: got '{tmp_path}' with 5 images; allowed: 256 or more, ")


def test_without_tfrecord_files_no_process_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(vs_tfdata, "start")
    line = refusal(vs_tfdata, capsys, f"--dir={tmp_path}")
    assert line.startswith(f"--dir: got '{tmp_path}', which holds no TFRecord files;")


def test_processes_are_started_with_options_that_are_there(tmp_path: Path) -> None:
    options = vs_tfdata.parser().parse_args([f"--dir={tmp_path}", "--seconds=3"])
    for name in vs_tfdata.BATCHES:
        _, _, module, *arguments = vs_tfdata.command(name, options)
        assert importlib.util.find_spec(module) == vs_tfdata.__spec__
        found = vs_tfdata.parser().parse_args(arguments)
        assert (found.serve, found.dir, found.seconds) == (name, str(tmp_path), 3)


ANSWERS = "while True: input(); print(2, 1, flush=True)"
ENDS = "input(); exit(3)"


def start_instead(monkeypatch: pytest.MonkeyPatch, programs: dict[str, str]) -> None:
    """Lets other programs take turns."""
    pipe = subprocess.PIPE

    def start(name: str, options: Any) -> vs_tfdata.Server:
        command = [sys.executable, "-c", programs[name]]
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    monkeypatch.setattr(vs_tfdata, "start", start)


def test_processes_that_take_turns_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    start_instead(monkeypatch, dict.fromkeys(vs_tfdata.BATCHES, ANSWERS))
    with vs_tfdata.serving(None) as servers:
        figures = vs_tfdata.take_turns(servers, 2)
    assert figures == {name: [(2, 1), (2, 1)] for name in servers}
    assert {server.returncode for server in servers.values()} == {-signal.SIGKILL}


def test_one_that_ends_by_itself_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = {"array_record": ANSWERS, "folder": ENDS, "tf.data": ANSWERS}
    start_instead(monkeypatch, programs)
    with (
        pytest.raises(RunError, match=r"^the process of folder has ended, with exit code 3\.$"),
        vs_tfdata.serving(None) as servers,
    ):
        vs_tfdata.take_turns(servers, 1)
    codes = [server.returncode for server in servers.values()]
    assert codes == [-signal.SIGKILL, 3, -signal.SIGKILL]
