"""Checks of a config: every field by itself, and those that depend on one another."""

from typing import Any

import numpy as np

from nam_jax import models
from nam_jax.attention import has_nam_scales, hyperparameters
from train.core.config.fields import FIELDS, Config, flatten
from train.core.config.model_fields import HYPERPARAMETERS, ModelConfig
from train.core.errors import ConfigError


def validate(config: Config) -> None:
    """Checks every field by itself and those that depend on one another.

    Args:
      config: Config of a run.

    Raises:
      ConfigError: naming the field, what it got and what is allowed.
    """
    values = dict(flatten(config))
    check_names(values)
    for name, value in values.items():
        check_field(name, value)
    _check_model(config.model)
    _check_loss(config)
    _check_optimizer(config)
    _check_loader(config)
    _check_repeats(config)


def check_names(names: Any) -> None:
    """Checks that there are all fields and no others.

    Args:
      names: Dotted names, a collection.

    Raises:
      ConfigError: naming the first that is missing or unknown.
    """
    for name in names:
        if name not in FIELDS:
            raise ConfigError(
                f"config.{name}: there is no such field; python -m train.config lists them."
            )
    for name in FIELDS:
        if name not in names:
            raise ConfigError(f"config.{name}: missing; start from default_config().")


def check_field(name: str, value: Any) -> None:
    """Checks one field by itself.

    Args:
      name: Dotted name of the field.
      value: Anything.

    Raises:
      ConfigError: naming the field, what it got and what is allowed.
    """
    spec = FIELDS[name]
    kind = type(spec.default)
    is_tuple = kind is tuple and isinstance(value, (tuple, list))
    numbers = value if is_tuple else [value]
    wanted = float if kind is tuple else kind
    has_type = (kind is tuple) == is_tuple and all(_is_a(wanted, v) for v in numbers)
    if not has_type or not spec.test(value):
        raise ConfigError(refusal(name, value))


def _is_a(kind: type, value: Any) -> bool:
    if kind is not float or type(value) is int:
        # The devices take whole numbers as int32.
        return type(value) is kind or (kind is float and abs(value) < 2**31)
    # The devices compute with float32, in which smaller ones are 0 and larger ones infinite.
    limits = np.finfo(np.float32)
    is_number = isinstance(value, float)
    return is_number and (value == 0 or float(limits.tiny) <= abs(value) <= float(limits.max))


def refusal(name: str, value: Any) -> str:
    """Says of a value that a field refuses what is allowed, and what the field is."""
    spec = FIELDS[name]
    # On the command line a tuple is a text with commas.
    several = type(spec.default) is tuple and not isinstance(value, tuple | list | str)
    kind = f", in a tuple such as {spec.default}" if several else ""
    return f"config.{name}: got {_shown(value)}; allowed: {spec.values}{kind} ({spec.doc})."


def _shown(value: Any) -> str:
    try:
        return " ".join(repr(value).split("\n"))
    # Python does not write a whole number of thousands of digits.
    except ValueError:
        return "a number of thousands of digits"


def _check_model(model: ModelConfig) -> None:
    if model.pretrained_key and not model.pretrained:
        raise ConfigError(
            f"config.model.pretrained_key: {model.pretrained_key!r} without a file; set "
            "config.model.pretrained too."
        )
    for name, value, field in (
        ("shortcut", model.shortcut, "shortcut"),
        ("width", model.width, "width_multiplier"),
    ):
        default = FIELDS[f"model.{name}"].default
        if value != default and not models.has_field(model.name, field):
            raise ConfigError(
                f"config.model.{name}: {value!r} with config.model.name={model.name!r}, which has "
                f"no choice of it; set it to {default!r}."
            )
    for name in HYPERPARAMETERS:
        value, default = getattr(model, name), FIELDS[f"model.{name}"].default
        if value != default and name not in hyperparameters(model.attention):
            raise ConfigError(
                f"config.model.{name}: {value!r} with config.model.attention="
                f"{model.attention!r}, which has no such hyper-parameter; set it to {default!r}."
            )


def _check_loss(config: Config) -> None:
    if config.loss_threshold and config.loss != "sigmoid":
        raise ConfigError(
            f"config.loss_threshold: {config.loss_threshold:g} with config.loss={config.loss!r}, "
            "whose targets sum to 1; set it to 0, or config.loss=sigmoid."
        )


def _check_optimizer(config: Config) -> None:
    attention, optimizer = config.model.attention, config.optimizer
    if optimizer.sparsity > 0 and not has_nam_scales(attention):
        raise ConfigError(
            f"config.optimizer.sparsity: {optimizer.sparsity} with config.model.attention="
            f"{attention!r}, which has no NAM scales; set it to 0."
        )
    if optimizer.name == "lars" and optimizer.weight_decay_on == "all":
        raise ConfigError(
            "config.optimizer.weight_decay_on: with config.optimizer.name='lars' kernels alone "
            "decay; got 'all', set it to kernels."
        )


def _check_loader(config: Config) -> None:
    data = config.data
    for name, value, needless in (
        ("crop", data.crop, "pad"),
        ("augmentation", data.augmentation, "none"),
    ):
        if data.loader == "resident" and value != needless:
            raise ConfigError(
                f"config.data.{name}: {value!r} needs the images on the host; set "
                f"config.data.loader=streaming, or {name}={needless}."
            )


def _check_repeats(config: Config) -> None:
    data = config.data
    is_mixed = data.mixup > 0 or data.cutmix > 0
    most = max(1, config.batch_size // 2) if is_mixed else config.batch_size
    if data.augment_repeats > most:
        why = "config.data.mixup and config.data.cutmix mix different ones" if is_mixed else ""
        raise ConfigError(
            f"config.data.augment_repeats: {data.augment_repeats} rows of each image in a batch of "
            f"{config.batch_size} (config.batch_size); allowed: at most {most}"
            f"{', for ' * is_mixed}{why}."
        )
