"""Measures the training steps of a network with several attentions, and prints a table."""

import json
from typing import Any

import jax

from train.benchmark.steps import experiment_with, measure
from train.benchmark.table import table
from train.core.config.attentions import by_name
from train.core.config.fields import Config
from train.core.devices import environment
from train.core.errors import explaining_memory


def measure_attentions(
    config: Config, config_name: str, names: list[str], steps: int
) -> dict[str, Any]:
    """Measures the training steps with the attentions, and prints what it finds.

    Args:
      config: Config of the run; its attention is exchanged.
      config_name: Name of the config's file, for the figures.
      names: Attentions, see `with_attention`.
      steps: Steps of each that are timed.

    Returns:
      What was measured, on which machine; the figures of several attentions by their names.

    Raises:
      ConfigError: the config does not fit the dataset or the devices.
      RunError: a step takes more memory than there is.
    """
    # A step from the cache would compile in no time.
    jax.config.update("jax_enable_compilation_cache", False)
    configs = by_name(config, names)
    experiments = {name: experiment_with(varied, name) for name, varied in configs.items()}
    with explaining_memory():
        figures = measure(experiments, steps)
    result = {
        **circumstances(config, config_name, steps),
        **(figures if len(figures) > 1 else next(iter(figures.values()))),
    }
    print(table(figures).text())
    print(json.dumps(result))
    return result


def circumstances(config: Config, config_name: str, steps: int) -> dict[str, Any]:
    """What was measured, when and on what."""
    # Of all attentions together; not every backend knows.
    memory = jax.devices()[0].memory_stats() or {}
    return {
        "config": config_name,
        "model": config.model.name,
        "dtype": config.model.dtype,
        "batch_size": config.batch_size,
        "steps": steps,
        "device_peak_bytes": memory.get("peak_bytes_in_use"),
        **environment.describe(),
    }
