"""Checks a dataset record by record, or writes a smaller copy of it.

  check                  opens every record of the configured splits and lists
                         those that cannot be used
  shrink                 copies all splits (of a folder the configured ones) as
                         JPEG images of quality 90 with short sides of at most
                         400 pixels; after an interruption the same command
                         goes on

Example:
  python -m train.prepare check --config configs/imagenet_resnet50.py

Exit codes: 0 done, 1 failed or records cannot be used, 2 the command line or
the config is wrong.
"""

import os
from argparse import SUPPRESS, Namespace
from collections.abc import Callable
from pathlib import Path

import cv2

from train.core import command_line
from train.core.command_line.values import not_empty
from train.core.config.data_fields import DataConfig
from train.core.data.sources.folder import Folder
from train.core.data.sources.registry import source_of
from train.core.data.sources.split import Source
from train.core.data.sources.tfds import Tfds
from train.core.errors import ConfigError
from train.prepare.check import check_dataset
from train.prepare.shrink_folder import shrink_folder
from train.prepare.shrink_tfds import shrink_tfds

ACTIONS = ("check", "shrink")
# What copies a source; every one that has records can be checked.
SHRINK: dict[type[Source], Callable[[DataConfig, Path], None]] = {
    Folder: shrink_folder,
    Tfds: shrink_tfds,
}


def parser() -> command_line.Parser:
    """The command line."""
    parser = command_line.Parser(
        __doc__, "python -m train.prepare check|shrink --config FILE [OPTION ...]"
    )
    parser.add_argument("action", nargs="?", help=SUPPRESS)
    parser.add_config("an experiment with the dataset; configs/ has examples")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=not_empty,
        help="where the copy goes: the data.dir of later runs",
    )
    return parser


def main(options: Namespace) -> None:
    """Checks or shrinks."""
    if options.action not in ACTIONS:
        got = f"; got {options.action!r}" if options.action is not None else ""
        raise ConfigError(f"name what to do: {' or '.join(ACTIONS)}{got}.")
    cv2.setNumThreads(0)
    data = options.config.data
    if options.action == "check":
        if options.out is not None:
            raise ConfigError("--out: check writes nothing; leave it out, or shrink.")
        check_dataset(data)
    else:
        _shrink(data, options.out)


def _shrink(data: DataConfig, out: str | None) -> None:
    if out is None:
        raise ConfigError("--out is missing; name a directory for the copy.")
    if "://" in out:
        raise ConfigError(f"--out: got {out!r}; the copy goes into a local directory.")
    shrink = SHRINK.get(type(source_of(data)))
    if shrink is None:
        raise ConfigError(
            f"config.data.name: {data.name} cannot be shrunk; datasets of TFDS and folders of "
            "images can."
        )
    shrink(data, Path(os.path.expanduser(out)))


if __name__ == "__main__":
    command_line.run(main, parser())
