"""The lock on a run's directory: one run at a time writes there.

The file `lock` names its owner and holds a number that grows while the owner lives. No clock
counts: a run on another host is taken for dead when the number stays for a minute. On one host
the system tells at once, for it takes its own lock back when a process ends, however that ends.
"""

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import NamedTuple

from etils import epath

from train.core.errors import ConfigError, LostError, RunError
from train.core.workdir.storage import is_bucket, read_text, reporting, write_text, writing_run

BEAT_SECONDS = 10.0
DEAD_SECONDS = 60.0


class Owner(NamedTuple):
    """Who holds a directory.

    Attributes:
      host: Name of its machine.
      pid: Number of its process there.
      token: Random text that no other start has.
      beat: Number that grows while the owner lives.
    """

    host: str
    pid: int
    token: str
    beat: int = 0


class Lock:
    """A held directory."""

    def __init__(self, place: "_Place", owner: Owner):
        self._place, self._owner = place, owner
        self._other: Owner | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check_held(self) -> None:
        """Checks that the directory is still this run's.

        Raises:
          LostError: another run took it over.
        """
        if self._other:
            raise LostError(
                f"process {self._other.pid} on {self._other.host} took the directory over: this "
                f"run gave no sign of life for {DEAD_SECONDS:.0f} seconds, or both began at once. "
                "That one goes on; give each run a directory of its own."
            )

    def release(self) -> None:
        """Gives the directory back."""
        self._end.set()
        self._thread.join()
        # What ended the run already matters more; a lock that is left behind does no harm.
        with suppress(OSError, RunError):
            named = self._place.read()
            if named and named.token == self._owner.token:
                self._place.clear()

    def _beat(self) -> None:
        while not self._end.wait(BEAT_SECONDS):
            # A full disk or a lost network shows where something is saved.
            with suppress(OSError, RunError):
                named = self._place.read()
                if named and named.token != self._owner.token:
                    self._other = named
                    return
                self._owner = self._owner._replace(beat=self._owner.beat + 1)
                self._place.write(self._owner)


@contextmanager
def locked(workdir: epath.Path) -> Iterator[Lock]:
    """Keeps other runs out of a directory.

    Waits up to a minute for a sign of life where an owner on another host left its name.

    Args:
      workdir: Directory of the run; it is made where it is missing.

    Raises:
      ConfigError: another run is going on there, or nothing can be written there.
    """
    path = workdir / "lock"
    owner = Owner(socket.gethostname(), os.getpid(), secrets.token_hex(8))
    with closing(_Place(path) if is_bucket(workdir) else _File(path)) as place:
        with writing_run(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            _take(place, owner, workdir)
        lock = Lock(place, owner)
        try:
            yield lock
        finally:
            lock.release()


def _take(place: "_Place", owner: Owner, workdir: epath.Path) -> None:
    while True:
        is_ours = place.seize()
        other = place.read()
        if is_ours is False or (other and not _is_gone(other, place, is_ours)):
            who = f"process {other.pid} on {other.host}" if other else "another process"
            raise ConfigError(
                f"--workdir {workdir}: another run is going on in it, {who}. Wait for its end, or "
                "give this run a directory of its own."
            )
        place.write(owner)
        if place.read() == owner:
            return
        # The owner before has ended meanwhile, and removed the file that was opened here.
        place.close()


def _is_gone(owner: Owner, place: "_Place", is_ours: bool | None) -> bool:
    if owner.host == socket.gethostname() and (is_ours or not _runs(owner.pid)):
        return True
    print(
        f"process {owner.pid} on {owner.host} holds the directory; waiting up to "
        f"{DEAD_SECONDS:.0f} seconds for a sign of life",
        flush=True,
    )
    deadline = time.monotonic() + DEAD_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(1.0, DEAD_SECONDS / 10))
        named = place.read()
        if named != owner:
            return named is None
    return True


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class _Place:
    """Where a lock lies: in a bucket, whose system has none of its own."""

    def __init__(self, path: epath.Path):
        self._path = path

    def seize(self) -> bool | None:
        """Whether the system gave its lock, None where it has none."""
        return None

    def read(self) -> Owner | None:
        """Who is named as the owner."""
        try:
            owner = Owner(**json.loads(read_text(self._path) or ""))
        # Whatever else may be in it names nobody.
        except (TypeError, ValueError):
            return None
        return owner if isinstance(owner.pid, int) else None

    def write(self, owner: Owner) -> None:
        """Names the owner."""
        write_text(self._path, json.dumps(owner._asdict()))

    def clear(self) -> None:
        """Removes the name."""
        with reporting(self._path):
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Gives the system its lock back."""


class _File(_Place):
    """In a directory, of whose lock the system knows too."""

    # All of it is written at once, over what was there.
    _LENGTH = 512
    _descriptor: int | None = None

    def seize(self) -> bool | None:
        while True:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError:
                return None  # Some network file systems have no locks.
            # The owner before may have removed the file in between.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self._path), os.fstat(self._descriptor)):
                    return True
            self.close()

    def write(self, owner: Owner) -> None:
        text = json.dumps(owner._asdict()).ljust(self._LENGTH - 1) + "\n"
        assert self._descriptor is not None
        os.pwrite(self._descriptor, text.encode(), 0)
        os.ftruncate(self._descriptor, self._LENGTH)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
