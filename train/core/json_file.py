"""The option --json of commands that measure something."""

from pathlib import Path

from absl import flags

from train.core import command_line

JSON = flags.DEFINE_string("json", None, "A file for the figures.")


def asked() -> Path | None:
    """The file that --json names, before the work whose figures it is for.

    Raises:
      ConfigError: it could not be written.
    """
    return command_line.output("json", JSON.value)
