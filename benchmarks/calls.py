"""Calls of a function as a variant of `train.benchmark.turns`."""

from collections.abc import Callable
from typing import Any

import jax


class Call:
    """A function whose calls are timed.

    On a CPU every call is waited for, those that are started together too: JAX would run calls
    that do not depend on one another side by side. Elsewhere `wait` alone waits, for the last one
    of a queue. What is no array of JAX, as the output of onnxruntime, is there when the call
    returns.
    """

    def __init__(self, function: Callable[[], Any]):
        """Takes the function, which returns arrays."""
        self._function = function
        self._arrays: Any = None

    def start(self, count: int) -> None:
        """Calls it so many times."""
        for _ in range(count):
            self._arrays = self._function()
            if jax.default_backend() == "cpu":
                self.wait()

    def wait(self) -> None:
        """Returns when all of it is done."""
        jax.block_until_ready(self._arrays)
