r"""Measures how fast training steps are, with several attentions in turns.

Usage: python -m train.benchmark --config FILE [--attention NAME,...]
                                 [--steps N] [--json FILE]
       python -m train.benchmark --loader-only --config FILE [--json FILE]
                                 [--workers N[,M...]] [--seconds S]

  --config FILE          the experiment; configs/ holds examples
  --attention NAME,...   in place of the config's; several take turns
  --steps N              of each that are timed; default: 50
  --loader-only          the streaming loader alone, without a network
  --workers N[,M...]     numbers of threads; default: 1 and one a CPU core
  --seconds S            how long each number is measured; default: 10
  --json FILE            also writes the figures to a file
  --config.FIELD=VALUE   overrides a field; python -m train.config lists them

First with random images on the device, then, if the dataset is on disk, each
attention by itself with the config's loader: the last two columns.

Example:
  python -m train.benchmark --config configs/digits_resnet20.py \
      --attention none,nam

Exit codes: 0 done, 1 failed, 2 the command line or the config is wrong.
"""

import json
from typing import Any

import jax
from absl import flags

from train.benchmark import loader, turns
from train.benchmark.steps import build, measure
from train.benchmark.table import table
from train.core import attentions, command_line, json_file
from train.core.config.fields import Config
from train.core.devices import environment
from train.core.errors import explaining_memory
from train.core.workdir.storage import write_json

LOADER_ONLY = flags.DEFINE_bool("loader-only", False, "Measure the loader alone.")


def main() -> None:
    """Measures, and prints a table and JSON."""
    file = json_file.asked()
    config = command_line.CONFIG.value
    if LOADER_ONLY.value:
        figures = loader.run(config)
    else:
        figures = step_benchmark(config, attentions.asked(config), turns.STEPS.value)
    if file:
        write_json(file, figures)


def step_benchmark(config: Config, names: list[str], steps: int) -> dict[str, Any]:
    """Measures the training steps with the attentions, and prints what it finds.

    Args:
      config: of the run.
      names: of the attentions.
      steps: of each that are timed.

    Returns:
      What was measured, on which machine; the figures of several attentions by their names.

    Raises:
      ConfigError: the config does not fit the dataset or the devices.
      RunError: a step takes more memory than there is.
    """
    # A step from the cache would compile in no time.
    jax.config.update("jax_enable_compilation_cache", False)
    experiments = {name: build(config, name) for name in names}
    with explaining_memory():
        figures = measure(experiments, steps)
    result = {**circumstances(config, steps), **(figures if len(names) > 1 else figures[names[0]])}
    print(table(figures).text())
    print(json.dumps(result))
    return result


def circumstances(config: Config, steps: int) -> dict[str, Any]:
    """What was measured, when and on what."""
    # Of all attentions together; not every backend knows.
    memory = jax.devices()[0].memory_stats() or {}
    return {
        "config": command_line.config_name(),
        "model": config.model.name,
        "dtype": config.model.dtype,
        "batch_size": config.batch_size,
        "steps": steps,
        "device_peak_bytes": memory.get("peak_bytes_in_use"),
        **environment.describe(),
    }


if __name__ == "__main__":
    command_line.run(main, __doc__)
