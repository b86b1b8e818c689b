"""The rows of a run: one JSON object a line, in a file or in the objects of a bucket."""

import json
import os
from typing import Any

from etils import epath

from train.core.errors import RunError, reason
from train.core.workdir import storage

Row = dict[str, Any]


def of(workdir: epath.Path) -> "RowFile | RowSegments":
    """The rows of the run in a directory, on a disk or in a bucket."""
    if storage.is_bucket(workdir):
        return RowSegments(workdir / "metrics")
    return RowFile(workdir / "metrics.jsonl")


class RowFile:
    """A file of one JSON object a line, whole lines only."""

    def __init__(self, path: epath.Path):
        self._path = path

    def rows(self) -> list[Row]:
        """All rows; a torn last line is left out.

        Raises:
          RunError: another line is no row.
        """
        return _read(self._path)

    def truncate(self, step: int) -> None:
        """Drops the rows after a step, atomically."""
        storage.write_text(self._path, _format(_up_to(step, self.rows())))

    def append(self, row: Row) -> None:
        """Adds a row and hands it to the operating system."""
        with storage.naming(self._path), self._path.open("a") as file:
            file.write(_format([row]))

    def sync(self) -> None:
        """Waits until all rows are on disk."""
        if self._path.exists():
            with storage.naming(self._path), self._path.open("a") as file:
                os.fsync(file.fileno())


class RowSegments:
    """The same where nothing can be appended to: each `sync` writes the rows since the last.

    Layout: `<directory>/000000.jsonl`, `000001.jsonl`, …, in the order of the rows.
    """

    def __init__(self, directory: epath.Path):
        self._directory = directory
        self._pending: list[Row] = []

    def rows(self) -> list[Row]:
        """All rows that are written.

        Raises:
          RunError: a line is no row.
        """
        return [row for path in self._paths() for row in _read(path)]

    def truncate(self, step: int) -> None:
        """Drops the rows after a step, from the last one on: a part of it leaves no gap."""
        for path in reversed(self._paths()):
            rows = _read(path)
            kept = _up_to(step, rows)
            if kept == rows:
                return
            if kept:
                storage.write_text(path, _format(kept))
            else:
                with storage.reporting(path):
                    path.unlink()

    def append(self, row: Row) -> None:
        """Adds a row, which waits for the next `sync`."""
        self._pending.append(row)

    def sync(self) -> None:
        """Writes the rows that wait."""
        if self._pending:
            paths = self._paths()
            number = int(paths[-1].stem) + 1 if paths else 0
            storage.write_text(self._directory / f"{number:06}.jsonl", _format(self._pending))
            self._pending = []

    def _paths(self) -> list[epath.Path]:
        return storage.children(self._directory)


def _read(path: epath.Path) -> list[Row]:
    try:
        # Not splitlines, for which there are other ends of lines.
        *lines, _ = (storage.read_text(path) or "").split("\n")
        return [_row(line) for line in lines]
    except ValueError as error:
        raise RunError(
            f"{path} is damaged: {reason(error)} Remove that line; the run goes on without it."
        ) from error


def _row(line: str) -> Row:
    # JSON's own errors call each line the first.
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    is_row = isinstance(row, dict) and row.keys() >= {"step", "epoch"}
    is_row = is_row and isinstance(row.get("split"), str)
    if not is_row or not all(storage.is_number(row[name]) for name in row.keys() - {"split"}):
        raise ValueError(f"{line[:100]!r} is no row of a run")
    return row


def _format(rows: list[Row]) -> str:
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def _up_to(step: int, rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["step"] <= step]
