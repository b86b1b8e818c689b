"""The smallest network, for tests of what is around it: compiling real ones takes minutes.

python -m tests.helpers.tiny runs train.main with it, or the COMMAND of the environment. A step
takes STEP_SECONDS of the environment, where a test needs time between steps.
"""

import os
import runpy
import sys
import time
from typing import Any

import jax.numpy as jnp
import pytest
from flax import linen as nn

from configs import digits_resnet20
from nam_jax import models
from train.core.config.fields import Config, replaced
from train.core.devices.processes import Preemption


class Tiny(nn.Module):
    """A BatchNorm and a linear layer."""

    num_classes: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        x = nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name)(x)
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


def use(monkeypatch):
    """Makes every config's network this one."""

    def create(name, *, num_classes, axis_name=None, **_):
        return Tiny(num_classes, axis_name)

    monkeypatch.setattr(models, "create", create)


def digits(**changes: Any) -> Config:
    """The config of the digits, with other values by the dotted names of fields."""
    return replaced(digits_resnet20.get_config(), changes)


if __name__ == "__main__":
    patch, reached = pytest.MonkeyPatch(), Preemption.reached
    use(patch)

    def slowly(preemption):
        time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
        return reached(preemption)

    patch.setattr(Preemption, "reached", slowly)
    command = os.environ.get("COMMAND", "train.main")
    # It has no NAM.
    sys.argv = [command, *sys.argv[1:], "--config.optimizer.sparsity=0"]
    runpy.run_module(command, run_name="__main__")
