"""Examples of TFDS datasets in ArrayRecord files: read by index, and parsed.

A record is a serialised `tf.train.Example`. TFDS's own reader takes longer to parse one than
OpenCV takes to crop its image, so it is parsed here (benchmarks/README.md has the figures).
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from google.protobuf.message import DecodeError

from train.core.data.sources.records import BadRecordError, Record
from train.core.devices.busy import busy
from train.core.errors import RunError, reason


class TfExamples:
    """The records of a split by index; threads may share it."""

    def __init__(
        self, serialized: Sequence[bytes], image_key: str, label_key: str, num_classes: int
    ):
        """Wraps examples that can be read in any order.

        Args:
          serialized: Serialised examples.
          image_key: Name of the feature with the image.
          label_key: Name of the feature with the label.
          num_classes: Number of classes; labels are 0 … num_classes − 1.
        """
        self._serialized = serialized
        self._image_key = image_key
        self._label_key = label_key
        self._num_classes = num_classes
        # It brings the whole of TFDS along, half a second that other datasets need not wait.
        from tensorflow_datasets.proto import tf_example_pb2

        self._example = tf_example_pb2.Example

    def __len__(self) -> int:
        return len(self._serialized)

    def __getitem__(self, index: int) -> Record:
        """Reads a record.

        Raises:
          BadRecordError: it is damaged, empty, or without an image and a label of a class.
        """
        try:
            features = self._example.FromString(self._serialized[index]).features.feature
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


def array_records(builder: Any, split: str) -> Sequence[bytes]:
    """The serialised examples of a split, by index.

    Args:
      builder: TFDS's object for a dataset that has ArrayRecord files.
      split: Name of the split, or a part of it such as `train[:10%]`.

    Raises:
      RunError: a file is missing or damaged, or holds other records than the metadata say.
    """
    try:
        source = builder.as_data_source(split).data_source
        files = builder.info.splits[split].file_instructions
        counts = {file.filename: file.examples_in_shard for file in files}
        counts |= _empty_shards(builder, split)
    # The metadata hold patterns of file names, and the records of each file.
    except ValueError as error:
        raise RunError(
            f"{builder.data_path}/dataset_info.json: {reason(error)} Copy it, or prepare the "
            "dataset, anew."
        ) from error
    # Each takes a tenth of a millisecond on a local disk, and far longer on others.
    with ThreadPoolExecutor() as pool, busy(f"opening {split}", len(counts), "files") as work:
        for _ in pool.map(_check_file, counts, counts.values()):
            work.advance()
    return source


def _empty_shards(builder: Any, split: str) -> dict[str, int]:
    """The files that the metadata call empty, which TFDS passes over, with their 0 records."""
    whole = dict(builder.info.splits).get(split.partition("[")[0])
    if whole is None or 0 not in whole.shard_lengths:
        return {}
    shards = zip(whole.filepaths, whole.shard_lengths, strict=True)
    return {os.fspath(path): 0 for path, count in shards if count == 0 and path.exists()}


def _check_file(name: str, wanted: int) -> None:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(name, options="readahead_buffer_size:0")
        count = reader.num_records()
        reader.close()
    # A RuntimeError as a rule, and what else damaged sizes lead to.
    except Exception as error:
        raise RunError(
            f"{name} cannot be read as ArrayRecord: {reason(error)} "
            "Copy it, or prepare the dataset, anew."
        ) from error
    if count != wanted:
        raise RunError(
            f"{name} holds {count} records, and dataset_info.json says "
            f"{wanted}. Copy both, or prepare the dataset, anew."
        )
