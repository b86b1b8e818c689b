"""Records on disk, one an image: decoded, read all at once, and what becomes of bad ones."""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from train.core.data.animated_png import default_image
from train.core.data.crop import center
from train.core.devices.busy import busy
from train.core.errors import RunError

FEWEST_BAD = 10
# Records that a thread loads at a time.
RECORDS_OF_A_TASK = 256


class Record(NamedTuple):
    """One example.

    Attributes:
      encoded: Bytes of an image file.
      label: Number of its class.
      file_name: Name of the file that the image came from; empty in datasets that do not tell.
      upright: Whether the image is turned as its metadata say.
    """

    encoded: bytes
    label: int
    file_name: str
    upright: bool = False


class BadRecordError(ValueError):
    """A record cannot be read, or its image not be decoded; the message says why."""

    def __init__(self, reason: str, file_name: str = ""):
        super().__init__(reason)
        self.file_name = file_name

    def of(self, split: str, index: int) -> "BadRecord":
        """What is told of the record of a split that it is raised for."""
        return BadRecord(split, index, self.file_name, str(self))


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """What is told of a bad record."""

    split: str
    index: int
    file_name: str
    reason: str

    def __str__(self) -> str:
        file_name = f" ({self.file_name})" if self.file_name else ""
        return f"{self.split} record {self.index}{file_name}: {self.reason}"


class Records(Protocol):
    """The records of a split by index; threads may share it."""

    def __len__(self) -> int:
        """Number of records."""

    def __getitem__(self, index: int) -> Record:
        """Reads a record.

        Raises:
          BadRecordError: it cannot be used.
        """


def decode(record: Record, channels: int) -> np.ndarray:
    """Decodes an image of JPEG, PNG, WebP, BMP or TIFF; grey and CMYK ones become RGB.

    The orientation in its metadata is ignored, as in other ImageNet pipelines, unless the record is
    to be upright; that of a TIFF file is always heeded. Of an animated PNG it is the default image.

    Args:
      record: Record with the encoded image.
      channels: Number of channels: 1 for grey, 3 for RGB.

    Returns:
      (H, W, channels) uint8.

    Raises:
      BadRecordError: it is no image, or the end of it is missing.
    """
    flags = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    if not record.upright:
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    image = None
    # OpenCV refuses an empty buffer, and sizes that it thinks too large, with an error.
    with contextlib.suppress(cv2.error):
        image = cv2.imdecode(np.frombuffer(default_image(record.encoded), np.uint8), flags)
    if image is None:
        reason = f"no whole image of a known format in its {len(record.encoded)} bytes"
        raise BadRecordError(reason, record.file_name)
    return image.reshape(*image.shape[:2], channels)


class BadRecords:
    """Counts records, names each bad one once, and ends a run that meets too many.

    Counts what this process meets, from its start on.
    """

    def __init__(self, max_fraction: float):
        self._max_fraction = max_fraction
        self._named: set[tuple[str, int]] = set()
        self._seen = 0
        self._bad = 0

    def add(self, seen: int, bad: Sequence[BadRecord]) -> None:
        """Counts the records of a batch.

        Args:
          seen: Number of records read, the bad ones among them.
          bad: Records that could not be used.

        Raises:
          RunError: FEWEST_BAD different ones or more were bad so far, and a larger share of all
            that were read than is allowed.
        """
        for record in bad:
            if (record.split, record.index) not in self._named:
                self._named.add((record.split, record.index))
                print(f"bad record: {record}", file=sys.stderr, flush=True)
        self._seen += seen
        self._bad += len(bad)
        is_large = self._bad > self._max_fraction * self._seen
        if len(self._named) >= FEWEST_BAD and is_large:
            raise RunError(
                f"{self._bad} of the {self._seen} records read so far are bad, a larger share "
                f"than config.data.max_bad_fraction = {self._max_fraction:g}; the last: {bad[-1]}. "
                "python -m train.prepare check lists all of them."
            )


def load_all(
    records: Records, split: str, shape: tuple[int, int, int], workers: int
) -> tuple[np.ndarray, np.ndarray]:
    """Reads all images and labels.

    Args:
      records: Records of the split.
      split: Name of the split, for the error.
      shape: (H, W, channels) of the images, to which they are brought.
      workers: Number of threads.

    Returns:
      Images (n, H, W, channels) uint8 and labels (n,) int32.

    Raises:
      RunError: a record is bad; names the first one.
    """
    images = np.empty((len(records), *shape), np.uint8)
    labels = np.empty(len(records), np.int32)

    def load(begin: int) -> None:
        for index in range(begin, min(begin + RECORDS_OF_A_TASK, len(records))):
            try:
                record = records[index]
                images[index] = center(decode(record, shape[-1]), shape)
                labels[index] = record.label
            except BadRecordError as error:
                raise RunError(
                    f"{error.of(split, index)}; mend or remove it, or set "
                    "config.data.loader=streaming, which passes over such records."
                ) from error

    begins = range(0, len(records), RECORDS_OF_A_TASK)
    # The threads here share the cores already.
    cv2.setNumThreads(0)
    with (
        ThreadPoolExecutor(workers) as pool,
        busy(f"reading {split}", len(records), "images") as work,
    ):
        # In order, so that it is the first bad record that is named.
        for begin, _ in zip(begins, pool.map(load, begins), strict=True):
            work.advance(min(RECORDS_OF_A_TASK, len(records) - begin))
    return images, labels
