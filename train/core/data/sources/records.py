"""Records of TFDS datasets stored as ArrayRecord: read by index, parsed, decoded.

A record is a serialised `tf.train.Example`. TFDS's own reader takes longer to parse one than
OpenCV takes to crop its image, so it is parsed here (benchmarks/README.md has the figures).
"""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
from google.protobuf.message import DecodeError

from train.core.errors import RunError, reason

FEWEST_BAD = 10


class Record(NamedTuple):
    """One example.

    Attributes:
      encoded: the bytes of a JPEG or PNG file.
      label: of its class.
      file_name: where the image came from; empty in datasets that do not tell.
    """

    encoded: bytes
    label: int
    file_name: str


class BadRecordError(ValueError):
    """A record cannot be read, or its image not be decoded; the message says why."""

    def __init__(self, reason: str, file_name: str = ""):
        super().__init__(reason)
        self.file_name = file_name


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


class Records:
    """The records of a split by index; threads may share it."""

    def __init__(self, source: Sequence[bytes], image_key: str, label_key: str, num_classes: int):
        """Wraps a random-access source.

        Args:
          source: serialised examples.
          image_key: the feature with the image.
          label_key: the feature with the label.
          num_classes: labels are 0 … num_classes − 1.
        """
        self._source = source
        self._image_key = image_key
        self._label_key = label_key
        self._num_classes = num_classes
        # It brings the whole of TFDS along, half a second that other datasets need not wait.
        from tensorflow_datasets.proto import tf_example_pb2

        self._example = tf_example_pb2.Example

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        """Reads a record.

        Raises:
          BadRecordError: it is damaged, empty, or without an image and a label of a class.
        """
        try:
            features = self._example.FromString(self._source[index]).features.feature
        # ArrayRecord answers with a RuntimeError to bytes that fail their checksum.
        except (DecodeError, RuntimeError) as error:
            raise BadRecordError(" ".join(str(error).split())) from error
        # Naming a feature that is missing would create it.
        names = features["file_name"].bytes_list.value if "file_name" in features else ()
        file_name = names[0].decode(errors="replace") if names else ""
        if self._image_key not in features or self._label_key not in features:
            raise BadRecordError("no image or no label in it", file_name)
        images = features[self._image_key].bytes_list.value
        labels = features[self._label_key].int64_list.value
        if not images or not labels:
            raise BadRecordError("an empty image or label", file_name)
        if not 0 <= labels[0] < self._num_classes:
            raise BadRecordError(f"label {labels[0]} of {self._num_classes} classes", file_name)
        return Record(images[0], labels[0], file_name)


def decode(record: Record, channels: int) -> np.ndarray:
    """Decodes a JPEG or PNG image; grey and CMYK ones become RGB.

    The orientation in its metadata is ignored, as in other ImageNet pipelines.

    Args:
      record: with the encoded image.
      channels: 1 for grey, 3 for RGB.

    Returns:
      (H, W, channels) uint8.

    Raises:
      BadRecordError: it is no image, or the end of it is missing.
    """
    color = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    image = None
    # OpenCV refuses an empty buffer, and sizes that it thinks too large, with an error.
    with contextlib.suppress(cv2.error):
        buffer = np.frombuffer(record.encoded, np.uint8)
        image = cv2.imdecode(buffer, color | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        reason = f"no whole JPEG or PNG image in its {len(record.encoded)} bytes"
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
          seen: how many were read, the bad ones among them.
          bad: those that could not be used.

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


def array_records(builder: Any, split: str) -> Sequence[bytes]:
    """The serialised examples of a split, by index.

    Args:
      builder: of a TFDS dataset that has ArrayRecord files.
      split: its name, or a part of it such as `train[:10%]`.

    Raises:
      RunError: a file is missing or damaged, or holds other records than the metadata say.
    """
    try:
        source = builder.as_data_source(split).data_source
        files = builder.info.splits[split].file_instructions
    # The metadata hold patterns of file names, and the records of each file.
    except ValueError as error:
        raise RunError(f"{builder.data_path}/dataset_info.json: {reason(error)}") from error
    # Each takes a tenth of a millisecond on a local disk, and far longer on others.
    with ThreadPoolExecutor() as pool:
        list(pool.map(_check_file, files))
    return source


def _check_file(file: Any) -> None:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(file.filename, options="readahead_buffer_size:0")
        count = reader.num_records()
        reader.close()
    # A RuntimeError as a rule, and what else damaged sizes lead to.
    except Exception as error:
        raise RunError(
            f"{file.filename} cannot be read as ArrayRecord: {reason(error)} "
            "Copy it, or prepare the dataset, anew."
        ) from error
    if count != file.examples_in_shard:
        raise RunError(
            f"{file.filename} holds {count} records, and dataset_info.json says "
            f"{file.examples_in_shard}. Copy both, or prepare the dataset, anew."
        )
