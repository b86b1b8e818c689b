"""What a command line names: the directory of a run, or a config with weights of a file."""

import argparse

from etils import epath

from train.core.config.fields import Config
from train.core.errors import ConfigError
from train.core.workdir import storage

# What a command that takes either calls what it lacks.
RUN_OR_WEIGHTS = "a run, or weights by --config and --config.model.pretrained"


def check_no_run(options: argparse.Namespace) -> None:
    """Checks that no run is named, where the weights of a file are.

    Raises:
      ConfigError: an option chooses a run or a checkpoint of one.
    """
    for name, default in (("workdir", None), ("which", "last"), ("data_dir", None)):
        if getattr(options, name, default) != default:
            raise ConfigError(
                f"--{name} is of a run, and config.model.pretrained names the weights of a file: "
                f"leave --{name} out, or set --config.model.pretrained= to nothing."
            )


def config_of_weights(options: argparse.Namespace) -> Config | None:
    """The config that names a file of weights; None where a run is meant.

    Raises:
      ConfigError: both are, or a config names no weights.
    """
    config: Config | None = options.config
    if config is None:
        return None
    if not config.model.pretrained:
        raise ConfigError(
            "--config: a run has a config of its own: name it by --workdir alone, or weights by "
            "--config.model.pretrained."
        )
    check_no_run(options)
    return config


def workdir(options: argparse.Namespace) -> epath.Path:
    """The directory of the run: --workdir, or runs/<config name>.

    Raises:
      ConfigError: --workdir names a bucket that cannot be used.
    """
    if options.workdir is None:
        return epath.Path("runs") / options.config_name
    return storage.locate(options.workdir)


def named_workdir(options: argparse.Namespace, of: str = "a run") -> epath.Path:
    """The directory that --workdir names.

    Args:
      options: The parsed command line.
      of: Whose directory it is.

    Raises:
      ConfigError: it is missing, or names a bucket that cannot be used.
    """
    if options.workdir is None:
        raise ConfigError(f"--workdir is missing; name the directory of {of}.")
    return storage.locate(options.workdir)
