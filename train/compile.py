r"""Compiles the training step for TPUs or GPUs, on a machine that needs none.

It is the step that train.main runs on such devices. For one of them are
printed: memory against what there is, operations, bytes, and collectives; for a
GPU also kernels, and bytes of maps in float32. A step that does not fit fails.
make .venv/libtpu gets the compiler for TPUs, make .venv/cuda that for GPUs; put
it on PYTHONPATH. With the loader `streaming` no dataset is needed.

Example:
  python -m train.compile --config configs/imagenet_resnet50.py \
      --topology v5e:2x2 --config.batch_size=512
  python -m train.compile --config configs/imagenet_resnet50.py \
      --topology h100 --config.batch_size=128

Exit codes: 0 done, 1 failed, 2 the command line or the config is wrong.
"""

import dataclasses
import re
import time
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import jax

from train.core import command_line
from train.core.command_line.values import not_empty
from train.core.config.fields import Config
from train.core.data.loaders import LOADERS
from train.core.data.sources.registry import source_of
from train.core.devices import program_cost, scheduled_program, topologies
from train.core.devices.busy import busy
from train.core.devices.chips import GIB, memory_bytes
from train.core.engine.compiled_steps import COMPILING, lower_train_step
from train.core.engine.experiment import Experiment, build_experiment
from train.core.engine.feeds import train_example
from train.core.engine.state import abstract_state
from train.core.errors import ConfigError, RunError
from train.core.workdir.storage import write_json

# Batches of a split that is not on disk.
BATCHES = 1000


def experiment_for(config: Config, devices: Sequence[jax.Device]) -> Experiment:
    """Builds a run whose dataset need not be on disk.

    Args:
      config: Config of the run.
      devices: Devices to compile for.

    Raises:
      ConfigError: the config does not fit the dataset or the devices, or the dataset must be on
        disk.
    """
    data = config.data
    if LOADERS[data.loader].needs_size and not source_of(data).is_on_disk:
        raise ConfigError(
            f"config.data.loader: a resident split lies on each device, and the size of "
            f"{data.name} is not known, for it is not in {data.dir}; set config.data.dir, or "
            "config.data.loader=streaming."
        )
    # Its size matters to the learning rate alone, and so to none of the figures; parts of epochs
    # have to be some steps.
    return build_experiment(config, devices, unread_examples=BATCHES * config.batch_size)


def compile_step(experiment: Experiment) -> dict[str, Any]:
    """Compiles the training step for the devices of the experiment's mesh.

    Returns:
      Figures of one device, in bytes; `collectives` is by kind.

    Raises:
      RunError: the step does not fit into the memory of a device.
    """
    start = time.monotonic()
    state, example = abstract_state(experiment), train_example(experiment)
    try:
        with busy(COMPILING):
            program = lower_train_step(experiment, state, example).compile()
    except jax.errors.JaxRuntimeError as error:
        raise RunError(compiler_refusal(str(error))) from error
    seconds = round(time.monotonic() - start, 1)
    devices, hlo = experiment.mesh.devices, program.as_text()
    figures = {
        "devices": devices.size,
        "device_kind": devices.flat[0].device_kind,
        "batch_size": experiment.config.batch_size,
        **program_cost.figures(program),
        **(scheduled_program.figures(hlo) if devices.flat[0].platform == "gpu" else {}),
        "available_bytes": memory_bytes(devices.flat[0].device_kind),
        "collectives": {
            kind: dataclasses.asdict(total) for kind, total in program_cost.collectives(hlo).items()
        },
        "compile_seconds": seconds,
    }
    _check_fits(figures)
    return figures


def _check_fits(figures: dict[str, Any]) -> None:
    """Refuses what a compiler for GPUs lets pass."""
    if figures["available_bytes"] and figures["peak_bytes"] > figures["available_bytes"]:
        used, available = (_gib(figures[name]) for name in ("peak_bytes", "available_bytes"))
        raise RunError(does_not_fit(used, available))


def compiler_refusal(message: str) -> str:
    """Says in one line why the compiler refused a step."""
    sizes = re.search(
        r"Used ([\d.]+\w) of ([\d.]+\w)|\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)",
        message,
    )
    if "RESOURCE_EXHAUSTED" not in message or not sizes:
        return f"the step does not compile: {message.splitlines()[0]}"
    used, available = (f"{size[:-1]} {size[-1]}iB" for size in sizes.groups() if size)
    return does_not_fit(used, available)


def does_not_fit(used: str, available: str) -> str:
    """Says in one line that a step needs more memory than a device has, and what to do."""
    return (
        f"the step does not fit: it needs {used} of the {available} that a device has; set a "
        "smaller config.batch_size, or take more devices."
    )


def as_text(figures: dict[str, Any]) -> str:
    """The figures of one device as text, a line each."""
    peak = _gib(figures["peak_bytes"])
    if figures["available_bytes"]:
        share = figures["peak_bytes"] / figures["available_bytes"]
        peak += f" of {_gib(figures['available_bytes'])} ({share * 100:.0f} %)"
    lines = {
        "images": f"{figures['batch_size'] // figures['devices']}",
        "arguments": _gib(figures["argument_bytes"]),
        "output": _gib(figures["output_bytes"]),
        "temporaries": _gib(figures["temp_bytes"]),
        "peak memory": peak,
        "operations": f"{figures['flops']:.4g} flops",
        "bytes accessed": f"{figures['bytes_accessed']:.4g}",
    }
    if "kernels" in figures:
        lines["float32 maps"] = f"{figures['float32_map_bytes']:.4g} of these bytes"
        lines["kernels"] = f"{figures['kernels']}, with convolutions that are not tuned"
    for kind, total in figures["collectives"].items():
        lines[kind] = f"{total['count']}, of {total['bytes']:,} bytes"
    title = f"one of {figures['devices']} × {figures['device_kind']}:"
    rows = [f"  {name:<15}{value}" for name, value in lines.items()]
    return "\n".join([title, *rows, f"compiled in {figures['compile_seconds']} s"])


def _gib(size: int) -> str:
    return f"{size / GIB:.3f} GiB"


def parser() -> command_line.Parser:
    """The command line."""
    parser = command_line.Parser(
        __doc__, "python -m train.compile --config FILE --topology NAME [OPTION ...]"
    )
    parser.add_config()
    parser.add_argument(
        "--topology",
        metavar="NAME",
        type=not_empty,
        help="generation and chips, such as v5e:16x16, v4:2x2x1; or cards, such as h100, h100:8",
    )
    parser.add_json()
    return parser


def main(options: Namespace) -> None:
    """Compiles the step and prints its figures."""
    if options.topology is None:
        raise ConfigError(f"--topology is missing; examples: {topologies.EXAMPLES}.")
    # Accelerators of this machine are left alone.
    jax.config.update("jax_platforms", "cpu")
    devices = topologies.devices(options.topology)
    figures = compile_step(experiment_for(options.config, devices))
    print(as_text(figures))
    if options.json:
        write_json(options.json, {"topology": options.topology, **figures})


if __name__ == "__main__":
    command_line.run(main, parser())
