"""Variants of a config: another attention, and hyper-parameters of it."""

from typing import Any

from nam_jax.attention import NAMES, has_nam_scales, hyperparameters
from train.core.config.fields import FIELDS, HYPERPARAMETERS, Config, replaced
from train.core.config.parsing import parse
from train.core.errors import ConfigError


def with_attention(config: Config, variant: str) -> Config:
    """A copy of a config with another attention.

    Hyper-parameters that the attention does not have, and the penalty where it has no NAM scales,
    are those of the default.

    Args:
      config: Config to be copied; it stays as it is.
      variant: Name of an attention, with hyper-parameters, such as `nam+normalization=mean`.

    Raises:
      ConfigError: there is no such attention, or it has no such hyper-parameter or value.
    """
    name, *settings = variant.split("+")
    if name not in NAMES:
        raise ConfigError(f"there is no attention {name!r}; choose one of {', '.join(NAMES)}.")
    allowed = [field for field in HYPERPARAMETERS if field in hyperparameters(name)]
    others = [f"model.{field}" for field in HYPERPARAMETERS if field not in allowed]
    changes = {field: FIELDS[field].default for field in others}
    if not has_nam_scales(name):
        changes["optimizer.sparsity"] = 0.0
    for setting in settings:
        field, has_value, value = setting.partition("=")
        if field not in allowed or not has_value:
            some = f"FIELD=VALUE, a FIELD of {', '.join(allowed)}" if allowed else "no +"
            raise ConfigError(f"{variant}: got +{setting}; allowed behind {name}: {some}.")
        changes[f"model.{field}"] = parse(f"model.{field}", value)
    return replaced(config, {"model.attention": name, **changes})


def variant_of(config: Config) -> str:
    """The attention of a config, with the hyper-parameters that differ from their defaults.

    Example:
      >>> from train.config import default_config
      >>> from train.core.config.variants import variant_of
      >>> config = default_config()
      >>> config.model.attention, config.model.gate_scale = "nam", 2.0
      >>> variant_of(config)
      'nam+gate_scale=2.0'
    """
    settings = [f"+{name}={value}" for name, value in attention_options(config).items()]
    return config.model.attention + "".join(settings)


def attention_options(config: Config) -> dict[str, Any]:
    """The hyper-parameters of the attention that differ from their defaults, by name."""
    values = {name: getattr(config.model, name) for name in HYPERPARAMETERS}
    defaults = {name: FIELDS[f"model.{name}"].default for name in HYPERPARAMETERS}
    return {name: value for name, value in values.items() if value != defaults[name]}
