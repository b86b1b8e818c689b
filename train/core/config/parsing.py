"""Configs from files, from JSON, and values of fields from texts."""

import ast
import difflib
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from train.core.config.checks import check_field, check_names, refusal, validate
from train.core.config.fields import FIELDS, Config, flatten, replaced
from train.core.errors import ConfigError

# Between two settings, and not within a value such as 1e+3.
_PLUS = re.compile(r"\+(?=[a-z][\w.]*=)")
SWITCHES = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def load(file: str) -> Config:
    """The config that `get_config()` of a Python file gives; its values are not checked yet.

    Args:
      file: Name of the file.

    Raises:
      ConfigError: it gives none, or one that lacks a field or has another.
    """
    config = _run(file)
    if config is None:
        raise ConfigError(
            f"--config {file}: get_config() returns nothing; it has to return what "
            "default_config() of train.config gives, changed where it differs."
        )
    if not isinstance(config, Config):
        raise ConfigError(
            f"--config {file}: get_config() has to return what default_config() of train.config "
            f"gives, changed where it differs; got {type(config).__name__}."
        )
    check_names(dict(flatten(config)))
    return config


def _run(file: str) -> Any:
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"--config: there is no file {file!r}; configs/ holds examples.")
    spec = importlib.util.spec_from_file_location("_config_file", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config: got {file!r}; name a Python file, such as configs/*.py.")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses that the file defines look for it there.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        if hasattr(module, "get_config"):
            return module.get_config()
    # A config file is code: anything may come out of it.
    except SystemExit as error:
        raise ConfigError(
            f"--config {file}: the file gives no config: it ends the program; let get_config() "
            "return one."
        ) from error
    except Exception as error:
        reason = next(reversed(str(error).splitlines()), "nothing more is known").strip()
        kind = type(error).__name__
        raise ConfigError(f"--config {file}: the file gives no config: {kind}: {reason}") from error
    raise ConfigError(f"--config {file}: it defines no get_config(); configs/ holds examples.")


def typed(config: Config) -> Config:
    """A copy of a valid config, with floats and tuples where whole numbers and lists may stand."""
    return replaced(config, {name: _typed(name, value) for name, value in flatten(config)})


def _typed(name: str, value: Any) -> Any:
    default = FIELDS[name].default
    if isinstance(default, tuple):
        return tuple(map(float, value))
    return float(value) if isinstance(default, float) else value


def from_fields(values: Mapping[str, Any]) -> Config:
    """The config that a JSON file holds.

    Args:
      values: Values of all fields, by their dotted names.

    Raises:
      ConfigError: a field is missing, unknown, or has a wrong value.
    """
    check_names(values)
    config = replaced(Config(), values)
    validate(config)
    return typed(config)


def flattened(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and the value of every field of a nested dict."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{leaf}", inner) for leaf, inner in flattened(value))
        else:
            yield name, value


def unknown_field(name: str) -> str:
    """What is said of a field that there is not.

    Args:
      name: Dotted name that was given.
    """
    part = [field for field in FIELDS if field.startswith(f"{name}.")]
    near = part or difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.5)
    hint = f"; did you mean config.{near[0]}?" if near else "; python -m train.config lists them."
    return f"config.{name}: there is no such field{hint}"


def settings_in(text: str) -> list[str]:
    """The parts of a text such as `gate_scale=1e+1+normalization=mean`: two of them."""
    return _PLUS.split(text)


def parse(name: str, text: str) -> Any:
    """The value of a field that a text stands for.

    Args:
      name: Dotted name of the field.
      text: Text of the command line.

    Raises:
      ConfigError: it stands for no value that the field allows.
    """
    try:
        value = _parse(FIELDS[name].default, text)
    except (KeyError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError) as error:
        raise ConfigError(refusal(name, text)) from error
    check_field(name, value)
    return _typed(name, value)


def _parse(default: Any, text: str) -> Any:
    if isinstance(default, bool):
        return SWITCHES[text.lower()]
    if isinstance(default, int):
        return int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))
    if isinstance(default, float):
        return float(text)
    if isinstance(default, tuple):
        value = ast.literal_eval(text)
        return tuple(value) if isinstance(value, tuple | list) else (value,)
    return text
