"""Opens every record of a dataset, and lists those that cannot be used."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from train.core.config.data_fields import DataConfig
from train.core.data.feed import num_workers
from train.core.data.sources.records import BadRecord, BadRecordError, Records, decode
from train.core.data.sources.registry import source_of
from train.core.data.sources.split import Split
from train.core.devices.busy import busy
from train.core.errors import ConfigError, RunError, named_by

RECORDS_OF_A_TASK = 64


class Contents(NamedTuple):
    """What some records of a split hold.

    Attributes:
      bad: Records that cannot be used.
      labels: All labels that occur.
      heights: All heights that occur, in pixels.
      widths: All widths that occur, in pixels.
    """

    bad: list[BadRecord]
    labels: set[int]
    heights: set[int]
    widths: set[int]


def check_dataset(config: DataConfig) -> None:
    """Opens every record of the configured splits, and prints what they hold.

    Args:
      config: The `data` part of a run's config, which names the dataset.

    Raises:
      ConfigError: the dataset or a split is not there, or cannot be used.
      RunError: records cannot be used.
    """
    source = source_of(config)
    fields = {getattr(config, field): field for field in ("train_split", "eval_split")}
    num_bad = 0
    for name, field in fields.items():
        with named_by(f"config.data.{field}"):
            split = source.open_split(name)
        if not split.has_records:
            raise ConfigError(
                f"config.data.name: {config.name} is no dataset of records on disk, and needs no "
                "check; allowed: `folder`, or the name of a TFDS dataset."
            )
        if split.note:
            print(split.note, flush=True)
        num_bad += _check_split(split, num_workers(config))
    if num_bad:
        raise RunError(
            f"{num_bad} records of {config.name} cannot be used, see above; mend or remove them. "
            "Training with config.data.loader=streaming passes over a few of them, see "
            "config.data.max_bad_fraction."
        )


def _check_split(split: Split, workers: int) -> int:
    records = split.open_records()
    starts = range(0, split.num_examples, RECORDS_OF_A_TASK)
    contents = Contents([], set(), set(), set())
    with (
        busy(f"checking {split.name}", split.num_examples, "records") as work,
        ThreadPoolExecutor(workers) as pool,
    ):
        for start, part in zip(
            starts, pool.map(lambda start: _look_at(split, records, start), starts), strict=True
        ):
            work.advance(min(RECORDS_OF_A_TASK, split.num_examples - start))
            contents.bad.extend(part.bad)
            for seen, new in zip(contents[1:], part[1:], strict=True):
                seen.update(new)
    print(_describe(split, contents), flush=True)
    return len(contents.bad)


def _look_at(split: Split, records: Records, start: int) -> Contents:
    contents = Contents([], set(), set(), set())
    for index in range(start, min(start + RECORDS_OF_A_TASK, split.num_examples)):
        try:
            record = records[index]
            contents.labels.add(record.label)
            image = decode(record, split.image_shape[-1])
            contents.heights.add(image.shape[0])
            contents.widths.add(image.shape[1])
        except BadRecordError as error:
            contents.bad.append(error.of(split.name, index))
    return contents


def _describe(split: Split, contents: Contents) -> str:
    lines = [f"bad record: {record}" for record in contents.bad]
    summary = f"{split.name}: {split.num_examples:,} records, {len(contents.bad):,} bad"
    if contents.labels:
        low, high = min(contents.labels), max(contents.labels)
        summary += (
            f"; {len(contents.labels):,} labels from {low} to {high} of {split.num_classes:,}"
        )
    for name, sizes in (("height", contents.heights), ("width", contents.widths)):
        if sizes:
            summary += f"; {name} {min(sizes)} to {max(sizes)}"
    return "\n".join([*lines, summary])
