"""Watches: how long a run has trained, and where the time before its first step goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Laps:
    """Seconds of one thing after another."""

    def __init__(self, begin: float | None = None):
        """Begins the first lap.

        Args:
          begin: Time at which it began, in seconds of `time.monotonic`; default: now.
        """
        self._begin = self._last = time.monotonic() if begin is None else begin
        self._seconds: dict[str, float] = {}

    def end(self, name: str) -> None:
        """Ends a lap, and begins the next."""
        now = time.monotonic()
        self._seconds[name] = now - self._last
        self._last = now

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self._seconds.items())
        return f"{self._last - self._begin:.1f} s: {parts}"


class Stopwatch:
    """Counts seconds, with pauses."""

    def __init__(self, seconds: float = 0.0):
        self._seconds = seconds
        self._started: float | None = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        running = 0.0 if self._started is None else time.monotonic() - self._started
        return self._seconds + running

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count what happens inside."""
        self._seconds, self._started = self.seconds, None
        yield
        self._started = time.monotonic()
