"""Calls of either framework as variants of `train.benchmark.turns`."""

from collections.abc import Callable
from typing import Any

import jax
import torch

from train.core.data.feed import cpu_cores


def torch_device() -> str:
    """What PyTorch calls the device that JAX runs on; on a CPU both get as many threads."""
    if jax.default_backend() == "gpu":
        return "cuda"
    torch.set_num_threads(cpu_cores())
    return "cpu"


class TorchCall:
    """A function that PyTorch runs."""

    def __init__(self, function: Callable[[], Any]):
        """Takes the function."""
        self._function = function

    def start(self, count: int) -> None:
        """Calls it so many times."""
        for _ in range(count):
            self._function()

    def wait(self) -> None:
        """Returns when all of it is done."""
        if jax.default_backend() == "gpu":
            torch.cuda.synchronize()


class JaxCall:
    """A function that JAX runs."""

    def __init__(self, function: Callable[[], Any]):
        """Takes the function, which returns arrays."""
        self._function = function
        self._arrays: Any = None

    def start(self, count: int) -> None:
        """Calls it so many times."""
        for _ in range(count):
            self._arrays = self._function()
            if jax.default_backend() == "cpu":
                # There JAX would run calls that do not depend on one another side by side.
                self.wait()

    def wait(self) -> None:
        """Returns when all of it is done."""
        jax.block_until_ready(self._arrays)
