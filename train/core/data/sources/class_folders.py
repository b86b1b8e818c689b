"""Folders of classes: how they are named, and what is none."""

import os
import re

from train.core.data.sources.image_files import (
    in_nfc,
    is_printable,
    look_into,
    printable,
    read_file,
)
from train.core.errors import ConfigError, few, reason

# The folders of a directory that holds splits under names which the config does not have.
NAMES_OF_SPLITS = {"dev", "test", "testing", "train", "training", "val", "valid", "validation"}
# Names of folders as they are on disk, by those in NFC.
NamesOnDisk = dict[str, str]


def folders_in(path: str) -> tuple[NamesOnDisk, int]:
    """The folders directly in a folder, in the order of their names, and the number of what else.

    Raises:
      ConfigError: two have the same name in NFC, or one is no text of a line.
    """
    inside, named = look_into(path), NamesOnDisk()
    for own in inside.folders:
        name = in_nfc(own)
        if name in named or not is_printable(name):
            fault = (
                "is there twice" if name in named else "holds a character that cannot be printed"
            )
            raise ConfigError(
                f"config.data.dir: the folder {printable(name)!r} in {path} {fault}; "
                "give it another name."
            )
        named[name] = own
    return named, inside.ignored + len(inside.images)


def check_are_classes(directory: str, inner: dict[str, set[str]]) -> None:
    """Refuses splits under names of their own, which would be taken for classes.

    Args:
      directory: Directory with the folders.
      inner: By name of a class, the folders in its own that hold images; "" if that does.

    Raises:
      ConfigError: none holds images itself, and by their names or by those of the folders in them
        they are splits.
    """
    if any("" in f for f in inner.values()):
        return
    first = next(iter(inner.values()))
    are_alike = len(first) > 1 and all(folders == first for folders in inner.values())
    if are_alike or any(map(_is_like_a_split, inner)):
        raise ConfigError(
            f"config.data.dir: the folders {few(inner)} in {directory} hold folders and "
            "no images, as splits do; name two of them by config.data.train_split and "
            "config.data.eval_split or, if they are the classes, list them in a file, "
            "config.data.classes."
        )


def _is_like_a_split(name: str) -> bool:
    return not NAMES_OF_SPLITS.isdisjoint(re.findall("[a-z]+", name.lower()))


def named_classes(file: str) -> list[str]:
    """The names of classes in a file, a line each.

    Raises:
      ConfigError: it cannot be read, names one class alone, or one twice.
    """
    try:
        text = read_file(os.path.expanduser(file)).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise ConfigError(f"config.data.classes: {file}: {reason(error)}") from error
    names = [in_nfc(line.strip()) for line in re.split("\r\n|\r|\n", text.rstrip())]
    seen = {""}
    for line, name in enumerate(names, start=1):
        if name in seen or not is_printable(name):
            raise ConfigError(
                f"config.data.classes: {file}, line {line}: got {name!r}; allowed: the name of a "
                "class a line, each once."
            )
        seen.add(name)
    if len(names) < 2:
        raise ConfigError(
            f"config.data.classes: {file} names one class; a network needs two or more."
        )
    return names
