"""Measures the training steps of a config in several variants, and prints a table."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from train.benchmark.steps import measure, unread
from train.benchmark.table import table
from train.core.config.checks import validate
from train.core.config.fields import FIELDS, Config, replaced
from train.core.config.parsing import parse, unknown_field
from train.core.devices import environment
from train.core.errors import ConfigError, explaining_memory

# Between two fields, and not within 1e+3.
_PLUS = re.compile(r"\+(?=[a-z][\w.]*=)")


def with_fields(config: Config, texts: Sequence[str]) -> dict[str, Config]:
    """The config, under the name `config`, and copies of it with other fields, by their texts.

    Args:
      config: Config to be copied; it stays as it is.
      texts: Fields of each copy, such as `loss=sigmoid+loss_threshold=0.2`.

    Raises:
      ConfigError: there is no such field, it does not allow the value, or a text is given twice.
    """
    found = {"config": config}
    for text in texts:
        if text in found:
            raise ConfigError(f"--also: {text} is given twice.")
        settings = [setting.partition("=") for setting in _PLUS.split(text)]
        for name, has_value, _ in settings:
            if not has_value:
                raise ConfigError(f"--also: got {text!r}; allowed: FIELD=VALUE[+FIELD=VALUE].")
            if name not in FIELDS:
                raise ConfigError(f"--also: {unknown_field(name)}")
        found[text] = replaced(config, {name: parse(name, value) for name, _, value in settings})
        validate(found[text])
    return found


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
    experiments = {name: unread(config) for name, config in configs.items()}
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
