"""The names of the image files that a run is trained on, kept to see whether they are the same."""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterable

from etils import epath

from train.core.data.sources.image_files import in_nfc, printable
from train.core.data.sources.split import Split
from train.core.errors import ConfigError, few, reason
from train.core.workdir.checkpoint_files import saved_steps
from train.core.workdir.storage import reporting, write_bytes

NAME = "images.gz"


def keep(workdir: epath.Path, splits: Iterable[Split]) -> None:
    """Writes the names of the files of some splits; compares them where a run goes on.

    Each line is a text of JSON, the path of a file in NFC.

    Args:
      workdir: Directory of the run.
      splits: Splits that it is trained and evaluated on; those without files are passed over.

    Raises:
      ConfigError: there are checkpoints, and the files are others than when the run began.
    """
    names = _names(splits)
    path = workdir / NAME
    changes = _changes(path, names) if saved_steps(workdir / "checkpoints") else None
    if changes:
        raise ConfigError(
            f"--workdir {workdir}: the files in config.data.dir are others than when the run "
            f"began: {changes}. Bring back what was there, or give this run a directory of its own."
        )
    if names and changes is None:
        # The same bytes at every time.
        write_bytes(path, gzip.compress(names, mtime=0))


def _names(splits: Iterable[Split]) -> bytes:
    names = bytearray()
    for split in {split.name: split for split in splits}.values():
        for path in split.files.paths() if split.files else ():
            names += json.dumps(in_nfc(path)).encode() + b"\n"
    return bytes(names)


def _changes(path: epath.Path, names: bytes) -> str | None:
    """What differs from a kept list, in words; None where there is no list."""
    with reporting(path):
        try:
            kept = _unpacked(path.read_bytes())
            # A million lines are taken apart only where it is needed.
            return "" if kept == names else _in_words(_lines(kept), names.splitlines())
        except FileNotFoundError:
            return None
        except (EOFError, ValueError, gzip.BadGzipFile, zlib.error) as error:
            raise ConfigError(
                f"{path} is not that of a run ({reason(error)}); where it is removed, the files "
                "are not compared with those of the run's beginning."
            ) from error


def _unpacked(content: bytes) -> bytes:
    # Of nothing at all gzip makes nothing.
    if not content:
        raise EOFError("it is empty")
    return gzip.decompress(content)


def _lines(content: bytes) -> list[bytes]:
    lines = content.splitlines()
    for number, line in enumerate(lines, start=1):
        # JSON of other kinds begins with another letter.
        if not line.startswith(b'"'):
            raise ValueError(f"line {number} is no text of JSON")
        json.loads(line)
    return lines


def _in_words(before: list[bytes], now: list[bytes]) -> str:
    if before == now:
        return ""
    # Names that are the same in NFC are there as often as files.
    old, new = Counter(before), Counter(now)
    changes = {"added": sorted((new - old).elements()), "removed": sorted((old - new).elements())}
    told = [
        f"{len(names):,} {change} ({few([printable(json.loads(name)) for name in names])})"
        for change, names in changes.items()
        if names
    ]
    return ", ".join(told) or "the same in another order"
