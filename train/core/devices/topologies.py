"""TPU slices and hosts with GPUs by their names, for compiling on a machine that has none."""

import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from train.core.devices.gpus import GPUS, target_config
from train.core.errors import ConfigError, RunError

EXAMPLES = "v4:2x2x1, v5e:2x2, v5e:16x16, v5p:2x2x1, v6e:4x4, tpu7x:2x2x1, h100, h100:8, a100"

# What libtpu would ask the metadata server of a TPU machine for; no compilation depends on it.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    # Without it two compilations at once abort.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def devices(name: str) -> list[jax.Device]:
    """The devices of a TPU slice, or the GPUs of a host: to compile for, not to run on.

    Args:
      name: Generation and number of chips along each dimension, such as v5e:16x16; or a card and
        their number, such as h100:8, by default 1.

    Raises:
      ConfigError: there is no such slice or card.
      RunError: what compiles for them is not installed.
    """
    if match := re.fullmatch(rf"({'|'.join(GPUS)})(?::([1-9]\d?))?", name):
        return _gpus(match[1], int(match[2] or 1))
    match = re.fullmatch(r"([a-z0-9]+):(\d{1,3}(?:x\d{1,3}){1,2})", name)
    if not match or match[1] in GPUS:
        raise ConfigError(
            f"--topology: got {name!r}; allowed: a generation of TPUs and its chips, or a GPU and "
            f"how many, such as {EXAMPLES}."
        )
    return _slice(name, *match.groups())


def _slice(name: str, generation: str, chips: str) -> list[jax.Device]:
    options: dict[str, Any] = {}
    if generation == "v4":
        # As on the machines: a chip is one device. libtpu's default here is two.
        options["chip_config_name"] = "megacore"
    if set(chips.split("x")) == {"1"}:
        # Hosts have four chips unless it is told otherwise.
        options["chips_per_host_bounds"] = (1, 1, 1)
    os.environ.update(ENVIRONMENT)
    try:
        return topologies.get_topology_desc(name, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].partition(": ")[2]
        raise ConfigError(
            f"--topology: libtpu has no {name!r} ({reason}); examples: {EXAMPLES}."
        ) from error
    except RuntimeError as error:
        raise RunError(
            f"--topology {name} needs the compiler for TPUs; get it (0.2 GB) with make "
            ".venv/libtpu, and give the command PYTHONPATH=.venv/libtpu."
        ) from error


def _gpus(card: str, count: int) -> list[jax.Device]:
    try:
        # Hosts of a slice, processes of a host, devices of a process.
        return topologies.get_topology_desc(
            platform="cuda", target_config=target_config(card), topology=f"1x1x{count}"
        ).devices
    except NotImplementedError as error:
        raise RunError(
            f"--topology {card} needs the compiler for GPUs; get it (0.5 GB) with make .venv/cuda, "
            "and give the command PYTHONPATH=.venv/cuda."
        ) from error
