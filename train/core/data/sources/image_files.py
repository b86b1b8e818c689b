"""Image files below a folder: found in an order that no system changes, and read by index."""

import contextlib
import dataclasses
import errno
import hashlib
import os
import stat
import unicodedata
from array import array
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from train.core.data.sources.records import BadRecordError, Record
from train.core.errors import ConfigError, reason

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
# What archives and file servers put beside images; they hold small copies of them.
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir")
# What is larger is no photograph, and would take the memory of many.
MOST_BYTES = 2**30
# Of links that lead nowhere: in circles, through a file, or by what is no path.
NO_PLACE = (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)


class ImageFiles:
    """The image files of a split by index; threads may share it.

    A million of them take about as many bytes as their names have letters.
    """

    def __init__(self, directory: str):
        """Begins with no file.

        Args:
          directory: Directory that the paths of all files begin at.
        """
        self._directory = directory
        self._paths = bytearray()
        self._ends = array("Q", [0])
        self._labels = array("i")
        self._digest = hashlib.sha256()

    def append(self, path: str, label: int) -> None:
        """Adds a file.

        Args:
          path: Path from the directory on.
          label: Number of its class.
        """
        self._paths += os.fsencode(path)
        self._ends.append(len(self._paths))
        self._labels.append(label)
        self._digest.update(f"{label} {in_nfc(path)}\0".encode(errors="surrogateescape"))

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Record:
        """Reads a file.

        Raises:
          BadRecordError: it cannot be read.
        """
        path = self._path(index)
        try:
            encoded = read_file(os.path.join(self._directory, path))
        except (OSError, ValueError) as error:
            raise BadRecordError(reason(error), printable(path)) from error
        return Record(encoded, self._labels[index], printable(path), upright=True)

    @property
    def digest(self) -> str:
        """Digest of all paths and labels in their order, in hexadecimal."""
        return self._digest.hexdigest()

    @property
    def labels(self) -> set[int]:
        """Numbers of the classes that there are files of."""
        return set(self._labels)

    def paths(self) -> Iterator[str]:
        """The paths of all files from the directory on, in their order."""
        return map(self._path, range(len(self)))

    def _path(self, index: int) -> str:
        return os.fsdecode(bytes(self._paths[self._ends[index] : self._ends[index + 1]]))


def read_file(path: str) -> bytes:
    """Reads a file of somebody's: no pipe, which may keep one waiting, and no device.

    Raises:
      OSError: it cannot be read.
      ValueError: it is something else, or larger than any image.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("a folder, a pipe or a device, and no file")
    if status.st_size > MOST_BYTES:
        raise ValueError(f"{status.st_size:,} bytes; at most {MOST_BYTES:,} are read")
    with open(path, "rb") as file:
        return file.read()


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a folder holds, without what is further down.

    Attributes:
      folders: Names of the folders in it, in order.
      images: Names of the image files in it, in any order.
      ignored: Number of other files and folders.
    """

    folders: list[str]
    images: list[str]
    ignored: int


def look_into(path: str) -> Listing:
    """Lists a folder.

    Names that begin with a dot, and those of SYSTEM_FOLDERS, are ignored.

    Args:
      path: Path of the folder.

    Raises:
      ConfigError: it, or what a link in it leads to, cannot be read.
    """
    found: dict[str, list[str]] = {"folder": [], "image": [], "ignored": []}
    with _readable(path), os.scandir(path) as entries:
        for entry in entries:
            found[_taken_as(entry)].append(entry.name)
    return Listing(in_order(found["folder"]), found["image"], len(found["ignored"]))


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        place = os.fsdecode(error.filename or path).rstrip("/")
        raise ConfigError(f"config.data.dir: {printable(place)}: {reason(error)}") from error


def _taken_as(entry: os.DirEntry[str]) -> str:
    if entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS:
        return "ignored"
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    # Where links lead to is not looked up: for a million over a network that takes minutes, and
    # what is no image is found when it is read.
    if entry.name.lower().endswith(SUFFIXES):
        return "image"
    return "folder" if entry.is_symlink() and _leads_to_folder(entry) else "ignored"


def _leads_to_folder(link: os.DirEntry[str]) -> bool:
    try:
        return link.is_dir()
    except OSError as error:
        if error.errno in NO_PLACE:
            return False
        raise


def images_below(path: str) -> tuple[list[str], int]:
    """The image files in a folder and in those below it.

    A link to a folder that it lies in itself is ignored, as is one to a folder that was looked into
    already: what lies in the folder itself comes before what links lead to.

    Args:
      path: Path of the folder.

    Returns:
      Paths from the folder on, in order, and the number of files and folders that were ignored.

    Raises:
      ConfigError: a folder cannot be read.
    """
    found: list[str] = []
    ignored = 0
    seen: set[tuple[int, int]] = set()
    waiting = deque([""])
    while waiting:
        inner = waiting.pop()
        place = os.path.join(path, inner).rstrip("/")
        with _readable(place):
            here, is_link = _identity(place), os.path.islink(place)
            if here in seen or (is_link and here in _around(place)):
                ignored += 1
                continue
        seen.add(here)
        inside = look_into(place)
        found += (inner + name for name in inside.images)
        ignored += inside.ignored
        for name in inside.folders:
            leads_on = os.path.islink(os.path.join(place, name))
            (waiting.appendleft if leads_on else waiting.append)(f"{inner}{name}/")
    return in_order(found), ignored


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _around(link: str) -> set[tuple[int, int]]:
    """The folders that a link lies in, by its path and by where that leads."""
    own = Path(os.path.abspath(link)).parent
    folders = {*(own / "_").parents, *(own.resolve() / "_").parents}
    return {_identity(os.fspath(folder)) for folder in folders}


def in_order(names: list[str]) -> list[str]:
    """Sorts names by their NFC, in place, and those that are the same there by themselves."""
    names.sort()
    names.sort(key=in_nfc)
    return names


def in_nfc(name: str) -> str:
    """A name in NFC: file systems keep the same letters in several ways."""
    return unicodedata.normalize("NFC", name)


def printable(name: str) -> str:
    """A name as it is printed in a line, with what is no letter escaped."""
    return name if is_printable(name) else ascii(name)[1:-1]


def is_printable(name: str) -> bool:
    """Whether a name is a text of one line."""
    # Unlike str.isprintable, which refuses what joins letters in Persian and Hindi.
    return all(unicodedata.category(letter) not in ("Cc", "Cs", "Zl", "Zp") for letter in name)
