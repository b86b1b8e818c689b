"""Signs of life of what takes long: how far it is, and how long it may still take.

On a terminal a line that is rewritten and goes away with the work; elsewhere, as in a log file, a
line now and then. They go to stderr: stdout has the results alone.
"""

import contextlib
import datetime
import shutil
import sys
import threading
import time
from collections.abc import Iterator

# Seconds without a line before the first sign, and between two.
PATIENCE = 5.0
TERMINAL_SECONDS = 1.0
LOG_SECONDS = 30.0

# Goes to the beginning of a terminal's line, and clears it.
CLEAR = "\r\x1b[K"

# What is going on, the innermost last: it alone gives signs.
_all: list["Work"] = []
_is_hushed = False


class Work:
    """Something that takes long."""

    def __init__(self, what: str, total: int | None, unit: str, patience: float):
        """Begins it; see `busy`."""
        self._what = what
        self._total = total
        self._unit = unit
        self._done = 0
        self._begin = time.monotonic()
        self._due = self._begin + patience
        self._patience = patience
        self._is_told = False

    def advance(self, count: int = 1) -> None:
        """Counts what is done of the total."""
        self._done += count

    def postpone(self) -> None:
        """Begins the wait for a sign anew: another line shows that all is well."""
        self._due = time.monotonic() + self._patience
        # It takes the place of this one, also where it comes to the terminal through a pipe.
        if sys.stderr.isatty():
            self.end()

    def tick(self) -> None:
        """Gives a sign if one is due."""
        if self is not _all[-1] or time.monotonic() < self._due or _is_hushed:
            return
        is_terminal = sys.stderr.isatty()
        self._due = time.monotonic() + (TERMINAL_SECONDS if is_terminal else LOG_SECONDS)
        self._is_told = True
        line = str(self)
        if is_terminal:
            # A line that wraps could not be rewritten.
            columns = shutil.get_terminal_size().columns
            print(f"{CLEAR}{line[: columns - 1]}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Takes the line away, or ends the lines, if there were any."""
        if not self._is_told:
            return
        self._is_told = False
        if sys.stderr.isatty():
            print(CLEAR, end="", file=sys.stderr, flush=True)
        else:
            print(f"{self._what}: took {_duration(self._seconds)}", file=sys.stderr, flush=True)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._begin

    def __str__(self) -> str:
        parts = [f"{_duration(self._seconds)} so far"]
        if self._total is None and self._done:
            parts = [f"{self._done:,} {self._unit}", *parts]
        if self._total:
            share = f"{100 * self._done / self._total:.0f} %"
            parts = [f"{self._done:,} of {self._total:,} {self._unit}, {share}", *parts]
        if self._total and self._done:
            left = self._seconds / self._done * (self._total - self._done)
            parts.append(f"{_duration(left)} left")
        return f"{self._what}: {', '.join(parts)}"


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


@contextlib.contextmanager
def busy(
    what: str, total: int | None = None, unit: str = "", patience: float | None = None
) -> Iterator[Work]:
    """Shows that what happens inside is going on, if it takes longer than a few seconds.

    Args:
      what: Name of the work, such as `reading train`.
      total: Number that `advance` counts up to; None: it is not known.
      unit: Name of what is counted, such as `images`.
      patience: Seconds without a line before the first sign; None: PATIENCE.

    Example:
      >>> from train.core.devices.busy import busy
      >>> with busy("counting", total=3, unit="sheep") as work:
      ...     for _ in range(3):
      ...         work.advance()
    """
    work = Work(what, total, unit, PATIENCE if patience is None else patience)
    _all.append(work)
    is_over = threading.Event()
    thread = threading.Thread(target=_watch, args=(work, is_over), daemon=True)
    thread.start()
    try:
        yield work
    finally:
        is_over.set()
        thread.join()
        _all.remove(work)
        # It may go to a file on a full disk, or nowhere.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            work.end()


def _watch(work: Work, is_over: threading.Event) -> None:
    while not is_over.wait(TERMINAL_SECONDS):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            work.tick()


def hush() -> None:
    """Gives no signs any more: another process does."""
    global _is_hushed
    _is_hushed = True


def postpone() -> None:
    """Postpones the signs of all that is going on: a line is about to be printed."""
    for work in _all:
        # See `busy`.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            work.postpone()
