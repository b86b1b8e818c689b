"""A smaller copy of a TFDS dataset.

The copy has the layout, the order and the labels of the original; only the images differ.
`dataset_info.json` is written last, so that an unfinished copy is not taken for a dataset.
"""

import functools
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from train.core.config.data_fields import DataConfig
from train.core.data.feed import num_workers
from train.core.data.sources.records import BadRecordError, Record
from train.core.data.sources.tf_examples import array_records
from train.core.data.sources.tfds import Tfds
from train.core.devices.busy import Work, busy
from train.core.errors import ConfigError, RunError, reason
from train.core.workdir.storage import atomic, remove_temporary, write_json
from train.prepare.shrink_image import shrink_image


def shrink_tfds(config: DataConfig, out: Path) -> None:
    """Writes the copy of all splits, or what is missing of it; prints where it is.

    Args:
      config: The `data` part of a run's config, which names the dataset.
      out: Data directory of the copy.

    Raises:
      ConfigError: the dataset cannot be opened, or is the copy itself.
    """
    dataset = Tfds(config)
    builder, (image_key, _) = dataset.builder, dataset.feature_keys
    source = Path(builder.data_path)
    target = out / source.relative_to(dataset.directory)
    if target.resolve() == source.resolve():
        raise ConfigError(f"--out {out} holds the dataset itself; name another directory.")
    if (target / "dataset_info.json").exists():
        print(f"{target} is there already; nothing is left to do")
        return
    target.mkdir(parents=True, exist_ok=True)
    remove_temporary(epath.Path(target))
    lengths = {name: list(split.shard_lengths) for name, split in builder.info.splits.items()}
    total = sum(map(sum, lengths.values()))
    with (
        busy("copying", total, "images") as work,
        ThreadPoolExecutor(num_workers(config)) as pool,
    ):
        for file, part, length in _shards(builder.name, lengths):
            if (target / file).exists():
                work.advance(length)
                continue
            # TFDS opens no part that has no records.
            records = array_records(builder, part) if length else ()
            shrink_record = functools.partial(_record, records, image_key)
            _write(target / file, work, pool.map(shrink_record, range(length)))
    _write_metadata(source, target, image_key)
    print(f"{target} is written; python -m train.prepare check finds records that are bad")


def _shards(dataset: str, lengths: dict[str, list[int]]) -> Iterator[tuple[str, str, int]]:
    """Of every shard: its file name, its part of the split in TFDS's words, and its length."""
    for split, shards in lengths.items():
        start = 0
        for i, length in enumerate(shards):
            file = f"{dataset}-{split}.array_record-{i:05}-of-{len(shards):05}"
            yield file, f"{split}[{start}:{start + length}]", length
            start += length


def _write(path: Path, work: Work, records: Iterator[bytes]) -> None:
    with atomic(path) as temporary:
        try:
            writer = ArrayRecordWriter(os.fspath(temporary), "group_size:1")
            for record in records:
                writer.write(record)
                work.advance()
            writer.close()
        # As on a full disk.
        except RuntimeError as error:
            raise RunError(f"{path} cannot be written: {reason(error)}") from error


def _record(records: Any, image_key: str, index: int) -> bytes:
    """A serialised example with its image shrunk; one without a readable image as it is."""
    try:
        serialized = records[index]
    except RuntimeError:
        return b""
    try:
        example = tf_example_pb2.Example.FromString(serialized)
        images = example.features.feature[image_key].bytes_list.value
        images[0] = shrink_image(Record(images[0], 0, ""))
    except (BadRecordError, DecodeError, IndexError):
        return serialized
    return example.SerializeToString()


def _write_metadata(source: Path, target: Path, image_key: str) -> None:
    for path in source.glob("*.txt"):
        (target / path.name).write_bytes(path.read_bytes())
    features = json.loads((source / "features.json").read_text())
    image = features["featuresDict"]["features"][image_key]["image"]
    image["encodingFormat"] = "jpeg"
    image["shape"]["dimensions"][:2] = ["-1", "-1"]
    write_json(target / "features.json", features)
    info = json.loads((source / "dataset_info.json").read_text())
    info["fileFormat"] = "array_record"
    info.pop("alternativeFileFormats", None)
    for split in info["splits"]:
        split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        files = target.glob(f"*-{split['name']}.array_record-*")
        split["numBytes"] = str(sum(file.stat().st_size for file in files))
    write_json(target / "dataset_info.json", info)
