"""Measures the training steps of a config in several variants, and prints a table."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from train.benchmark.steps import experiment_of, measure
from train.benchmark.table import table
from train.core.config.checks import validate
from train.core.config.fields import FIELDS, Config, replaced
from train.core.config.parsing import parse, settings_in, unknown_field
from train.core.devices import environment
from train.core.errors import ConfigError, explaining_memory

# The variant that the others are compared with.
UNCHANGED = "unchanged"


def with_fields(config: Config, texts: Sequence[str]) -> dict[str, Config]:
    """The config, under the name `unchanged`, and copies of it with other fields, by their texts.

    Args:
      config: Config to be copied; it stays as it is.
      texts: Fields of each copy, such as `loss=sigmoid+loss_threshold=0.2`.

    Raises:
      ConfigError: there is no such field, it does not allow the value, or a text is given twice.
    """
    found = {UNCHANGED: config}
    for text in texts:
        try:
            varied = replaced(config, _values(text))
            validate(varied)
        except ConfigError as error:
            raise ConfigError(f"--also {text}: {error}") from error
        if text in found:
            raise ConfigError(f"--also {text}: it is given twice.")
        found[text] = varied
    return found


def _values(text: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for setting in settings_in(text):
        name, has_value, value = setting.partition("=")
        if not has_value or name in values:
            raise ConfigError(
                f"got {setting!r}; allowed: FIELD=VALUE, each field once, with + between several."
            )
        if name not in FIELDS:
            raise ConfigError(unknown_field(name))
        values[name] = parse(name, value)
    return values


def measure_variants(
    configs: Mapping[str, Config], config_name: str, steps: int, base: str
) -> dict[str, Any]:
    """Measures the training steps of the variants, and prints what it finds.

    Args:
      configs: Variants of a config, by name.
      config_name: Name of the config's file, for the figures.
      steps: Steps of each that are timed.
      base: Name of the variant that the others are compared with; it need not be there.

    Returns:
      What was measured, on which machine; the figures of several variants by their names.

    Raises:
      ConfigError: a config does not fit the dataset or the devices.
      RunError: a step takes more memory than there is.
    """
    # A step from the cache would compile in no time.
    jax.config.update("jax_enable_compilation_cache", False)
    experiments = {name: experiment_of(config) for name, config in configs.items()}
    with explaining_memory():
        figures = measure(experiments, steps, base)
    result = {
        **circumstances(next(iter(configs.values())), config_name, steps),
        **(figures if len(figures) > 1 else next(iter(figures.values()))),
    }
    print(table(figures, base).text())
    print(json.dumps(result))
    return result


def circumstances(config: Config, config_name: str, steps: int) -> dict[str, Any]:
    """What was measured, when and on what."""
    # Of all variants together; not every backend knows.
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
