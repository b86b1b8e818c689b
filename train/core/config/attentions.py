"""Attentions with hyper-parameters, as texts such as `nam+normalization=mean`."""

from collections.abc import Mapping, Sequence
from typing import Any

from nam_jax.attention import NAMES, has_nam_scales, hyperparameters
from train.core.config.fields import FIELDS, Config, flatten, replaced
from train.core.config.model_fields import HYPERPARAMETERS
from train.core.config.parsing import parse, settings_in
from train.core.errors import ConfigError


def with_attention(config: Config, text: str) -> Config:
    """A copy of a config with another attention.

    Hyper-parameters that the text does not set stay those of the config. Those that the attention
    does not have, and the penalty where it has no NAM scales, are those of the default.

    Args:
      config: Config to be copied; it stays as it is.
      text: Name of an attention, and hyper-parameters of it, such as `nam+normalization=mean`.

    Raises:
      ConfigError: there is no such attention, or it has no such hyper-parameter or value.
    """
    name, has_settings, settings = text.partition("+")
    if name not in NAMES:
        raise ConfigError(f"there is no attention {name!r}; choose one of {', '.join(NAMES)}.")
    allowed = [field for field in HYPERPARAMETERS if field in hyperparameters(name)]
    others = [f"model.{field}" for field in HYPERPARAMETERS if field not in allowed]
    changes: dict[str, Any] = {field: FIELDS[field].default for field in others}
    if not has_nam_scales(name):
        changes["optimizer.sparsity"] = 0.0
    for setting in settings_in(settings) if has_settings else ():
        field, has_value, value = setting.partition("=")
        if field not in allowed or not has_value or f"model.{field}" in changes:
            some = f"FIELD=VALUE, each FIELD of {', '.join(allowed)} once" if allowed else "nothing"
            raise ConfigError(f"got +{setting}; allowed behind {name}+: {some}.")
        changes[f"model.{field}"] = parse(f"model.{field}", value)
    return replaced(config, {"model.attention": name, **changes})


def with_attentions(config: Config, texts: Sequence[str]) -> dict[str, Config]:
    """Copies of a config with other attentions, by their names.

    Args:
      config: Config to be copied; it stays as it is.
      texts: Attentions, as `with_attention` takes them.

    Raises:
      ConfigError: two of them are the same one.
    """
    found: dict[str, Config] = {}
    for text in texts:
        varied = with_attention(config, text)
        name = attention_name(varied)
        if name in found:
            raise ConfigError(f"--attention: got {','.join(texts)!r}, with {name} twice.")
        found[name] = varied
    return found


def attention_name(config: Config) -> str:
    """The attention of a config, with the hyper-parameters that differ from their defaults.

    Example:
      >>> from train.core.config.fields import default_config
      >>> from train.core.config.attentions import attention_name
      >>> config = default_config()
      >>> config.model.attention, config.model.gate_scale = "nam", 2.0
      >>> attention_name(config)
      'nam+gate_scale=2.0'
    """
    return attention_name_in(dict(flatten(config)))


def attention_name_in(fields: Mapping[str, Any]) -> str:
    """The same of fields by their dotted names, of which an older config may lack some."""
    settings = [f"+{name}={value}" for name, value in attention_options(fields).items()]
    return fields["model.attention"] + "".join(settings)


def attention_options(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters of the attention that differ from their defaults, by name.

    Args:
      fields: Values by the dotted names of their fields.
    """
    defaults = {name: FIELDS[f"model.{name}"].default for name in HYPERPARAMETERS}
    values = {name: fields.get(f"model.{name}", default) for name, default in defaults.items()}
    return {name: value for name, value in values.items() if value != defaults[name]}
