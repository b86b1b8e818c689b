"""Where the time from the command to the first step goes."""

import time


class Laps:
    """Seconds of one thing after another."""

    def __init__(self, begin: float | None = None):
        """Begins the first lap.

        Args:
          begin: when, of `time.monotonic`; default: now.
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
