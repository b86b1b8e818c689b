"""Where the time from the command to the first step goes."""

import time

# Of the first import of the package, with which a command begins.
BEGIN = time.monotonic()


class Laps:
    """Seconds of one thing after another."""

    def __init__(self, begin: float):
        """Begins the first lap.

        Args:
          begin: when, of `time.monotonic`.
        """
        self._begin = self._last = begin
        self._seconds: dict[str, float] = {}

    def end(self, name: str) -> None:
        """Ends a lap, and begins the next."""
        now = time.monotonic()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now

    def __str__(self) -> str:
        """The sum and the parts, in seconds."""
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self._seconds.items())
        return f"{self._last - self._begin:.1f} s: {parts}"
