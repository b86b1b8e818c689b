"""Calls of PyTorch as variants of `train.benchmark.turns`, on the device that JAX runs on."""

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
    """A function that PyTorch runs; on a CPU it is done when the call returns."""

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
