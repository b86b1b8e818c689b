"""Where a run's directory lies: on a local disk, or in a bucket of Google Cloud Storage.

Objects in a bucket are written whole or not at all, cannot be appended to, and need no directory.
"""

import contextlib
import fnmatch
import json
import os
import re
import secrets
import sys
from collections.abc import Iterator
from typing import Any

from etils import epath

from train.core.errors import ConfigError, RunError, reason

# How the names of files end while they are written, and a pattern of these names.
TEMPORARY = ".tmp"
TEMPORARY_NAMES = f"*.{'[0-9a-f]' * 8}{TEMPORARY}"
# Letters of the own name in such a name: more might make it longer than file systems take.
KEPT_LETTERS = 40


def locate(text: str) -> epath.Path:
    """The directory that --workdir names.

    Args:
      text: Local path, where a tilde is the user's home, or gs://BUCKET/DIRECTORY.

    Raises:
      ConfigError: it is something else, or the bucket cannot be used.
      RunError: the bucket cannot be reached.
    """
    if "://" not in text:
        return epath.Path(text).expanduser()
    match = re.fullmatch(r"gs://([^/]+)/+[^/].*", text)
    if not match:
        raise ConfigError(
            f"--workdir: got {text!r}; allowed: a local directory, or gs://BUCKET/DIRECTORY."
        )
    try:
        _open(match[1])
    except ImportError as error:
        raise ConfigError(
            f"--workdir {text} needs more packages ({error}); get them with "
            "pip install -e '.[train,gcs]'."
        ) from error
    return epath.Path(text)


def _open(bucket: str) -> None:
    """Asks for a bucket as Orbax will, so that what is wrong shows before the work."""
    # Where TensorFlow is installed epath would take it in place of gcsfs.
    os.environ["EPATH_USE_TF"] = "false"
    # An experiment of gcsfs that asks for the kind of the bucket before each operation.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec

    # Imported for nothing but to find here, before the work, that it is missing.
    import gcsfs  # noqa: F401
    from google.api_core import exceptions
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
    from google.cloud import storage

    # Other processes and Orbax's own writer change the directory as well.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    try:
        storage.Client().get_bucket(bucket)
    except (DefaultCredentialsError, exceptions.ClientError, OSError) as error:
        raise ConfigError(f"--workdir: gs://{bucket} cannot be used: {reason(error)}") from error
    except (GoogleAuthError, exceptions.GoogleAPIError) as error:
        raise RunError(f"--workdir: gs://{bucket} cannot be reached: {reason(error)}") from error


def is_bucket(path: epath.PathLike) -> bool:
    """Whether a path lies in a bucket."""
    return os.fspath(path).startswith("gs://")


def absolute(path: epath.Path) -> epath.Path:
    """A path as Orbax needs it: those of a bucket are absolute, which epath does not know."""
    return path if is_bucket(path) else path.absolute()


@contextlib.contextmanager
def reporting(path: epath.PathLike) -> Iterator[None]:
    """Says in one line what goes wrong in a bucket, where it is not an OSError as on a disk.

    Raises:
      RunError: another error was raised inside, and the path lies in a bucket.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if not is_bucket(path):
            raise
        raise RunError(f"{os.fspath(path)}: {reason(error)}") from error


@contextlib.contextmanager
def writing_run(workdir: epath.Path) -> Iterator[None]:
    """Says in one line that the directory of a run cannot be written.

    Args:
      workdir: Directory of the run.

    Raises:
      ConfigError: it could not, in what happens inside.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"--workdir {workdir}: {reason(error)} Name a directory that can be written."
        ) from error


def read_text(path: epath.Path) -> str | None:
    """What a file holds; None where there is none."""
    with reporting(path):
        try:
            return path.read_text()
        except FileNotFoundError:
            return None


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a number; Python reads NaN and Infinity as well."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def children(directory: epath.Path) -> list[epath.Path]:
    """What a directory holds, in the order of the names; nothing where there is none."""
    with reporting(directory):
        return sorted(directory.iterdir()) if directory.exists() else []


def move(directory: epath.Path, place: epath.Path) -> None:
    """Moves a directory to a place where nothing is yet."""
    if not is_bucket(directory):
        place.parent.mkdir(exist_ok=True)
        directory.rename(place)
        return
    # A bucket has objects alone, which cannot be renamed.
    with reporting(directory):
        files = list(_files(directory))
        for path in files:
            (place / path.relative_to(directory)).write_bytes(path.read_bytes())
        # A kill in between leaves a copy at least.
        for path in files:
            path.unlink()


def _files(directory: epath.Path) -> Iterator[epath.Path]:
    for path in children(directory):
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes a file whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: epath.PathLike, content: bytes) -> None:
    """Writes a file whole or not at all."""
    path = epath.Path(path)
    if is_bucket(path):
        with reporting(path):
            path.write_bytes(content)
        return
    with naming(path), atomic(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def atomic(path: epath.PathLike) -> Iterator[epath.Path]:
    """Yields a temporary path; what is written there takes the file's place once it is on disk.

    Args:
      path: Path of a local file. What it held stays where an error is raised inside.
    """
    path = epath.Path(path)
    # Another process may write the same file.
    temporary = path.with_name(f"{path.name[:KEPT_LETTERS]}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def remove_temporary(directory: epath.Path) -> None:
    """Removes what a kill left of files that were being written; no other process writes there."""
    for path in children(directory):
        if fnmatch.fnmatchcase(path.name, TEMPORARY_NAMES) and not path.is_dir():
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: epath.PathLike) -> Iterator[None]:
    """Gives errors of the system inside the name of a file."""
    try:
        yield
    except OSError as error:
        error.filename = os.fspath(path)
        # None would be told as a name.
        del error.filename2
        raise


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
