"""Opens every record of a dataset, and lists those that cannot be used."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from tqdm import tqdm

from train.core.config.fields import DataConfig
from train.core.data.feed import cpu_cores
from train.core.data.sources import registry
from train.core.data.sources.records import BadRecord, BadRecordError, Records, decode
from train.core.errors import RunError, naming

RECORDS_OF_A_TASK = 64


class Found(NamedTuple):
    """What was found in some records of a split.

    Attributes:
      bad: records that cannot be used.
      labels: all that occur.
      heights: all that occur, in pixels.
      widths: all that occur, in pixels.
    """

    bad: list[BadRecord]
    labels: set[int]
    heights: set[int]
    widths: set[int]


def check(config: DataConfig) -> None:
    """Opens every record of the configured splits, and prints what they hold.

    Args:
      config: the `data` part of a run's config.

    Raises:
      RunError: records cannot be used.
    """
    fields = {config.train_split: "train_split", config.eval_split: "eval_split"}
    num_bad = sum(_check_split(config, name, field) for name, field in fields.items())
    if num_bad:
        raise RunError(f"{num_bad} records of {config.name} cannot be used.")


def _check_split(config: DataConfig, name: str, field: str) -> int:
    with naming(f"config.data.{field}"):
        split = registry.open_split(config, name)
    records = split.open_records()
    starts = range(0, split.num_examples, RECORDS_OF_A_TASK)
    progress = tqdm(total=split.num_examples, desc=name, unit="record")
    found = Found([], set(), set(), set())
    with progress, ThreadPoolExecutor(config.workers or cpu_cores()) as pool:
        for start, part in zip(
            starts, pool.map(lambda start: _look_at(split, records, start), starts), strict=True
        ):
            progress.update(min(RECORDS_OF_A_TASK, split.num_examples - start))
            found.bad.extend(part.bad)
            for seen, new in zip(found[1:], part[1:], strict=True):
                seen.update(new)
    print(_describe(split, found), flush=True)
    return len(found.bad)


def _look_at(split: registry.Split, records: Records, start: int) -> Found:
    found = Found([], set(), set(), set())
    for index in range(start, min(start + RECORDS_OF_A_TASK, split.num_examples)):
        try:
            record = records[index]
            found.labels.add(record.label)
            image = decode(record, split.image_shape[-1])
            found.heights.add(image.shape[0])
            found.widths.add(image.shape[1])
        except BadRecordError as error:
            found.bad.append(BadRecord(split.name, index, error.file_name, str(error)))
    return found


def _describe(split: registry.Split, found: Found) -> str:
    lines = [f"bad record: {record}" for record in found.bad]
    summary = f"{split.name}: {split.num_examples:,} records, {len(found.bad):,} bad"
    if found.labels:
        low, high = min(found.labels), max(found.labels)
        summary += f"; {len(found.labels):,} labels from {low} to {high} of {split.num_classes:,}"
    for name, sizes in (("height", found.heights), ("width", found.widths)):
        if sizes:
            summary += f"; {name} {min(sizes)} to {max(sizes)}"
    return "\n".join([*lines, summary])
