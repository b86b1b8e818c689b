"""Every field of a config: its default, what is allowed, and what it means.

Usage: python -m train.config

Prints them.
"""

from train.core import command_line
from train.core.config.fields import Config, default_config, reference

__all__ = ["Config", "default_config"]

if __name__ == "__main__":
    command_line.run(lambda: print(reference()), __doc__, needs_config=lambda: False)
