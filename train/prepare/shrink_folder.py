"""A smaller copy of a folder of images, with the same paths.

A file keeps its name even if it becomes a JPEG: by their paths files are divided into splits, and
what reads images tells their format by the content. Until the copy is whole a file in it says what
it is a copy of, and it is not taken for a dataset.
"""

import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from etils import epath

from train.core.config.data_fields import DataConfig
from train.core.data.feed import num_workers
from train.core.data.sources.folder import UNFINISHED, Folder
from train.core.data.sources.image_files import ImageFiles
from train.core.data.sources.records import BadRecordError
from train.core.devices.busy import Work, busy
from train.core.errors import ConfigError, named_by
from train.core.workdir.storage import TEMPORARY_NAMES, atomic, write_text
from train.prepare.shrink_image import shrink_image

FILES_OF_A_TASK = 64


def shrink_folder(config: DataConfig, out: Path) -> None:
    """Writes the copy of the configured splits, or what is missing of it; prints where it is.

    Args:
      config: The `data` part of a run's config, which names the folder.
      out: Directory of the copy.

    Raises:
      ConfigError: the folder cannot be used, it and the copy would lie in each other, or something
        else is there.
    """
    dataset = Folder(config)
    splits = _splits(config, dataset)
    source, target = Path(dataset.directory).resolve(), out.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise ConfigError(
            f"--out {out} and the folder itself lie in each other; name another directory."
        )
    if not _begin(config, splits, out):
        print(f"{out} is there already; nothing is left to do")
        return
    with (
        busy("copying", sum(map(len, splits.values())), "images") as work,
        ThreadPoolExecutor(num_workers(config)) as pool,
    ):
        for files in splits.values():
            _copy(files, target, pool, work)
    (target / UNFINISHED).unlink()
    print(f"{out} is written; python -m train.prepare check finds images that are bad")


def _splits(config: DataConfig, dataset: Folder) -> dict[str, ImageFiles]:
    opened = {}
    for field in ("train_split", "eval_split"):
        with named_by(f"config.data.{field}"):
            split = dataset.open_split(getattr(config, field))
            if split.files is not None:
                opened[split.name] = split.files
    return opened


def _begin(config: DataConfig, splits: dict[str, ImageFiles], out: Path) -> bool:
    """Marks the directory of a copy; False where the copy is there, and whole."""
    digests, marker = _digests(splits), out / UNFINISHED
    if marker.exists():
        if marker.read_bytes() != digests.encode():
            raise ConfigError(
                f"--out {out} holds part of a copy of other images; remove it, or name another "
                "directory."
            )
        # What a kill left of the files that were being written.
        for path in out.rglob(TEMPORARY_NAMES):
            path.unlink()
        return True
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not _is_copy(config, digests, out):
            raise ConfigError(f"--out {out} holds something else; name a directory of its own.")
        return False
    out.resolve().mkdir(parents=True, exist_ok=True)
    write_text(marker, digests)
    return True


def _digests(splits: dict[str, ImageFiles]) -> str:
    return json.dumps({name: files.digest for name, files in splits.items()})


def _is_copy(config: DataConfig, digests: str, out: Path) -> bool:
    try:
        there = Folder(dataclasses.replace(config, dir=os.fspath(out)))
        return _digests(_splits(config, there)) == digests
    except ConfigError:
        return False


def _copy(files: ImageFiles, target: Path, pool: ThreadPoolExecutor, work: Work) -> None:
    paths = list(files.paths())

    def copy(begin: int) -> int:
        chosen = range(begin, min(begin + FILES_OF_A_TASK, len(paths)))
        for index in chosen:
            path = target / paths[index]
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic(epath.Path(path)) as temporary:
                    temporary.write_bytes(_shrunk(files, index))
        return len(chosen)

    for count in pool.map(copy, range(0, len(paths), FILES_OF_A_TASK)):
        work.advance(count)


def _shrunk(files: ImageFiles, index: int) -> bytes:
    """The file with its image shrunk; one without a readable image as it is, if it can be read."""
    encoded = b""
    try:
        record = files[index]
        encoded = record.encoded
        return shrink_image(record)
    except BadRecordError:
        return encoded
