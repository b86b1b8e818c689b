"""One run at a time writes to a directory; the lock of a dead one is taken over."""

import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from etils import epath

from tests.helpers.commands import REPOSITORY
from train.core.errors import ConfigError, RunError
from train.core.workdir import lock
from train.core.workdir.lock import locked

HERE = socket.gethostname()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners that beat, and are looked at, often; they have as long as ever to show their life."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.02)
    often = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: time.sleep(0.02))
    monkeypatch.setattr(lock, "time", often)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For owners that are silent however long one waits."""
    monkeypatch.setattr(lock, "DEAD_SECONDS", 0.3)


@pytest.fixture(params=["disk", "disk without locks", "bucket"])
def directory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def refuse(*args: object) -> None:
        raise OSError("no locks available")

    if request.param == "disk without locks":
        monkeypatch.setattr("fcntl.flock", refuse)
    if request.param == "bucket":
        monkeypatch.setattr(lock, "is_bucket", lambda path: True)
    return tmp_path


def write(directory: Path, **changes: Any) -> None:
    owner = {"host": HERE, "pid": os.getpid(), "token": "of another start", "beat": 0}
    (directory / "lock").write_text(json.dumps(owner | changes))


def read(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "lock").read_text())


@contextmanager
def beating(directory: Path, **owner: Any) -> Iterator[None]:
    """An owner that lives."""
    end = threading.Event()

    def beat() -> None:
        number = 1
        while not end.wait(0.02):
            # Whole, as the reader has to find it.
            (directory / "next").mkdir(exist_ok=True)
            write(directory / "next", **owner, beat=number)
            (directory / "next" / "lock").replace(directory / "lock")
            number += 1

    write(directory, **owner)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def wait_for_a_beat(directory: Path) -> None:
    before, deadline = read(directory)["beat"], time.monotonic() + 60
    while read(directory)["beat"] <= before:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def dead_pid() -> int:
    with subprocess.Popen(["true"]) as process:
        return process.pid


def test_directory_in_use_is_refused_and_names_its_owner(directory: Path) -> None:
    with (
        locked(directory),
        pytest.raises(ConfigError, match=rf"going on in it, process {os.getpid()} on {HERE}\."),
        locked(directory),
    ):
        pass
    with locked(directory):
        assert read(directory)["pid"] == os.getpid()
    assert not (directory / "lock").exists()


def test_owner_gives_signs_of_life(directory: Path) -> None:
    with locked(directory) as held:
        wait_for_a_beat(directory)
        held.check_held()


def test_lock_of_a_dead_process_here_is_taken_at_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "DEAD_SECONDS", 3600.0)
    write(directory, pid=dead_pid())
    with locked(directory):
        assert read(directory)["pid"] == os.getpid()


def test_lock_of_a_killed_run_is_taken_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "DEAD_SECONDS", 3600.0)
    code = "import sys, time\nfrom etils import epath\nfrom train.core.workdir.lock import locked\n"
    code += "with locked(epath.Path(sys.argv[1])):\n    print(flush=True)\n    time.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        match = rf"process {process.pid} on {HERE}"
        with pytest.raises(ConfigError, match=match), locked(tmp_path):
            pass
        process.kill()
        process.wait()
    with locked(tmp_path):
        pass


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("shift", [-86400, 0, 86400])
def test_silent_owner_elsewhere_is_taken_for_dead_by_no_clock(
    directory: Path, shift: int, capsys: pytest.CaptureFixture[str]
) -> None:
    write(directory, host="elsewhere", pid=7)
    now = time.time() + shift
    os.utime(directory / "lock", (now, now))
    began = time.monotonic()
    with locked(directory):
        assert time.monotonic() - began >= lock.DEAD_SECONDS
        assert read(directory)["host"] == HERE
    assert "process 7 on elsewhere holds the directory; waiting" in capsys.readouterr().out


def test_living_owner_elsewhere_is_respected(directory: Path) -> None:
    with (
        beating(directory, host="elsewhere", pid=7),
        pytest.raises(ConfigError, match="process 7 on elsewhere"),
        locked(directory),
    ):
        pass
    assert read(directory)["host"] == "elsewhere"


@pytest.mark.usefixtures("impatient")
def test_number_of_a_dead_process_that_another_one_has_now(directory: Path) -> None:
    write(directory)
    with locked(directory):
        assert read(directory)["token"] != "of another start"


def test_where_the_system_has_a_lock_that_number_costs_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "DEAD_SECONDS", 3600.0)
    write(tmp_path)
    with locked(tmp_path):
        assert read(tmp_path)["token"] != "of another start"


def test_process_of_another_user_lives(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    # As where the other one has no lock of the system either.
    monkeypatch.setattr("fcntl.flock", refuse)
    with (
        beating(directory, pid=1),
        pytest.raises(ConfigError, match=f"process 1 on {HERE}"),
        locked(directory),
    ):
        pass


def test_owner_that_ends_while_another_waits_leaves_it_the_directory(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "DEAD_SECONDS", 3600.0)
    write(directory, host="elsewhere", pid=7)
    threading.Timer(0.3, (directory / "lock").unlink).start()
    with locked(directory):
        assert read(directory)["pid"] == os.getpid()
        with pytest.raises(ConfigError, match="another run is going on"), locked(directory):
            pass


def test_owner_that_ends_while_another_opens_its_file_leaves_it_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, calls = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / "lock").unlink()
        flock(descriptor, operation)

    monkeypatch.setattr("fcntl.flock", late)
    with locked(tmp_path):
        assert read(tmp_path)["pid"] == os.getpid()
    assert len(calls) == 2


def test_signs_of_life_go_on_after_a_full_disk(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def fail(*_: object) -> None:
        failed.set()
        raise OSError(28, "No space left on device")

    with locked(directory) as held:
        place = held._place
        with monkeypatch.context() as patch:
            patch.setattr(type(place), "write", fail)
            assert failed.wait(60)
        wait_for_a_beat(directory)


def test_owner_that_lost_the_directory_stops_and_leaves_it(directory: Path) -> None:
    with locked(directory) as held:
        deadline = time.monotonic() + 60
        # Again and again: the owner may be about to write over it.
        while held._thread.is_alive() and time.monotonic() < deadline:
            write(directory, host="elsewhere", pid=7)
            time.sleep(0.05)
        with pytest.raises(RunError, match="process 7 on elsewhere took the directory over"):
            held.check_held()
    assert read(directory)["host"] == "elsewhere"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"host": 1}', b'{"pid": "7"}', b"\0" * 600, b"\xff"]
)
def test_lock_that_names_nobody_is_taken(directory: Path, content: bytes) -> None:
    (directory / "lock").write_bytes(content)
    with locked(directory):
        assert read(directory)["pid"] == os.getpid()


def test_lock_that_cannot_be_removed_hides_no_error(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system")

    def end() -> None:
        with locked(directory):
            monkeypatch.setattr(type(epath.Path(directory)), "unlink", refuse)
            raise RunError("what ended the run")

    with pytest.raises(RunError, match=r"^what ended the run$"):
        end()


def test_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(ConfigError, match=rf"--workdir {tmp_path}: Is a directory"):
        locked(tmp_path).__enter__()
