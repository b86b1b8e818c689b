"""Prints every field of a config: its default, what it means, and what is allowed.

Config files begin with `default_config` of this module.

Example:
  python -m train.config

Exit codes: 0 done, 1 failed, 2 the command line is wrong.
"""

from argparse import Namespace

from train.core import command_line
from train.core.config.fields import Config, default_config, reference

__all__ = ["Config", "default_config"]


def parser() -> command_line.Parser:
    """The command line."""
    return command_line.Parser(__doc__, "python -m train.config")


def main(options: Namespace) -> None:
    """Prints them."""
    print(reference())


if __name__ == "__main__":
    command_line.run(main, parser())
