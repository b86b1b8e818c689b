"""Errors that a user can mend: printed without a traceback, all but one in one line."""

import contextlib
from collections.abc import Collection, Iterator

import jax

# Names that are told of many.
FEW = 5


class ConfigError(ValueError):
    """The command line or the config is wrong (exit code 2)."""


class WeightsError(ConfigError):
    """Weights do not fit the network: the one error of several lines, at most ten."""


class UnknownSplitError(ConfigError):
    """A dataset has no split of that name; `named_by` says which field or option it comes from."""


@contextlib.contextmanager
def named_by(source: str) -> Iterator[None]:
    """Says which field or option names a split that does not exist.

    Args:
      source: Name of the field or option, such as `--split`.

    Raises:
      ConfigError: there is no such split.
    """
    try:
        yield
    except UnknownSplitError as error:
        raise ConfigError(f"{source}: {error}") from error


class RunError(RuntimeError):
    """The run cannot go on (exit code 1)."""


class LostError(RunError):
    """Another process has taken over the directory of the run."""


class PreemptedError(Exception):
    """The run was told to stop, and has saved a checkpoint (exit code 75)."""


@contextlib.contextmanager
def explaining_memory() -> Iterator[None]:
    """Says in one line that the memory of a device is too small.

    Raises:
      RunError: it was too small for what was called inside.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        line = str(error).splitlines()[0]
        if "RESOURCE_EXHAUSTED" not in line:
            raise
        raise RunError(
            f"the device has too little memory; a smaller config.batch_size takes less ({line})."
        ) from error


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"{text.splitlines()[0].rstrip('.')}."


def reason_and_file(error: Exception) -> str:
    """What went wrong, in one line, and with which file, where it was one."""
    name = getattr(error, "filename", None)
    return f"{name}: {reason(error)}" if name else reason(error)


def few(names: Collection[str]) -> str:
    """The first of many names, and how many more there are."""
    first = ", ".join(list(names)[:FEW])
    return f"{first} and {len(names) - FEW:,} more" if len(names) > FEW else first
