"""A run's directory: it belongs to one config."""

import dataclasses
import json
from collections.abc import Collection
from typing import Any

from etils import epath

from train.core.config.fields import Config, marked
from train.core.config.parsing import flattened, from_fields
from train.core.config.spec import Mark
from train.core.errors import ConfigError, reason
from train.core.workdir.storage import read_text, write_json

FREE = marked(Mark.FREE)
# Of those in summary.json, what is read again.
FIGURES = (
    *("top1_error", "top5_error", "best_top1_error", "num_eval_images", "steps"),
    *("params", "macs", "wall_seconds", "images_per_second"),
)


def claim(workdir: epath.Path, config: Config) -> None:
    """Makes the directory and writes config.json, or checks that the run in it is this one.

    Args:
      workdir: Directory of the run.
      config: Config of the run.

    Raises:
      ConfigError: the directory holds a run of another config, or cannot be written.
    """
    try:
        (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
        if not (workdir / "config.json").exists():
            write_json(workdir / "config.json", dataclasses.asdict(config))
    except OSError as error:
        raise ConfigError(f"--workdir {workdir}: {reason(error)}") from error
    check(workdir, config)


def check(workdir: epath.Path, config: Config, free: Collection[str] = FREE) -> None:
    """Checks that the run in a directory has this config.

    Args:
      workdir: Directory of the run.
      config: Config that is wanted.
      free: Names of fields that may differ.

    Raises:
      ConfigError: there is no run, or its config differs; names the fields.
    """
    saved, wanted = saved_fields(workdir), as_saved(config)
    differing = [
        f"{name} is {saved.get(name)!r} there and {wanted.get(name)!r} here"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name) and name not in free
    ]
    if differing:
        raise ConfigError(
            f"--workdir {workdir} belongs to a run of another config: {'; '.join(differing)}. "
            "Give this run a directory of its own."
        )


def as_saved(config: Config) -> dict[str, Any]:
    """The fields of a config by their dotted names, with the values that config.json gives back."""
    return dict(flattened(json.loads(json.dumps(dataclasses.asdict(config)))))


def saved_config(workdir: epath.Path) -> Config:
    """The config of the run in a directory.

    Args:
      workdir: Directory of the run.

    Raises:
      ConfigError: there is no run, or its config cannot be read or is wrong.
    """
    return from_fields(saved_fields(workdir))


def saved_fields(workdir: epath.Path) -> dict[str, Any]:
    """What config.json of the run in a directory holds, by dotted names; another version's too.

    Args:
      workdir: Directory of the run.

    Raises:
      ConfigError: there is no run, or its config cannot be read.
    """
    path = workdir / "config.json"
    try:
        text = read_text(path)
        if text is not None:
            return dict(flattened(json.loads(text)))
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"--workdir {workdir}: {path.name} is not the config of a run ({error})."
        ) from error
    raise ConfigError(f"--workdir {workdir}: there is no run, {path.name} is missing.")


def summary(workdir: epath.Path) -> dict[str, Any] | None:
    """The summary of a finished run, None before it is finished.

    Args:
      workdir: Directory of the run.

    Raises:
      ConfigError: it cannot be read.
    """
    try:
        text = read_text(workdir / "summary.json")
        if text is None:
            return None
        found = dict(json.loads(text))
        lacking = [name for name in FIGURES if not isinstance(found.get(name), int | float)]
        if lacking:
            raise ValueError(f"it lacks {', '.join(lacking)}")
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"--workdir {workdir}: summary.json is not that of a run ({error}); where it is "
            "removed, the command that trained the run writes it again."
        ) from error
    return found
