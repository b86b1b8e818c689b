"""A smaller copy of a folder of images, with the same paths.

A file keeps its name even if it becomes a JPEG: by their paths files are divided into splits, and
what reads images tells their format by the content. The copy is made beside its place, which it
takes when it is whole.
"""

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from etils import epath
from tqdm import tqdm

from train.core.config.fields import DataConfig
from train.core.data.sources.folder import Folder
from train.core.data.sources.image_files import ImageFiles
from train.core.data.sources.records import BadRecordError
from train.core.data.sources.split import Split
from train.core.errors import ConfigError, named_by
from train.core.workdir.storage import TEMPORARY, atomic
from train.prepare.shrink import shrink_image

FILES_OF_A_TASK = 64


def shrink_folder(config: DataConfig, dataset: Folder, out: Path, workers: int) -> None:
    """Writes the copy of the configured splits, or what is missing of it; prints where it is.

    Args:
      config: The `data` part of a run's config.
      dataset: Folder that it names.
      out: Directory of the copy.
      workers: Number of threads that decode and encode.

    Raises:
      ConfigError: the folder cannot be used, the copy would lie in it, or something else is there.
    """
    splits = _splits(config, dataset)
    source, target = Path(dataset.directory).resolve(), out.resolve()
    if source == target or source in target.parents:
        raise ConfigError(f"--out {out} lies in the folder itself; name another directory.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not _is_copy(config, splits, out):
            raise ConfigError(f"--out {out} holds something else; name a directory of its own.")
        print(f"{out} is there already")
        return
    partial = out.with_name(out.name + TEMPORARY)
    files = [split.files for split in splits if split.files is not None]
    _remove_others(partial, {path for part in files for path in part.paths()})
    with (
        tqdm(total=sum(map(len, files)), unit="image") as progress,
        ThreadPoolExecutor(workers) as pool,
    ):
        for part in files:
            _copy(part, partial, pool, progress)
    partial.replace(out)
    print(f"{out} is written; python -m train.prepare check finds images that are bad")


def _splits(config: DataConfig, dataset: Folder) -> list[Split]:
    opened = {}
    for field in ("train_split", "eval_split"):
        with named_by(f"config.data.{field}"):
            opened[getattr(config, field)] = dataset.open_split(getattr(config, field))
    return list(opened.values())


def _is_copy(config: DataConfig, splits: list[Split], out: Path) -> bool:
    try:
        there = _splits(config, Folder(dataclasses.replace(config, dir=os.fspath(out))))
    except ConfigError:
        return False
    return [split.description for split in there] == [split.description for split in splits]


def _remove_others(partial: Path, wanted: set[str]) -> None:
    """Removes what an interrupted copy has left that does not belong to this one."""
    for path in list(partial.rglob("*")):
        if not path.is_dir() and os.fspath(path.relative_to(partial)) not in wanted:
            path.unlink()


def _copy(files: ImageFiles, partial: Path, pool: ThreadPoolExecutor, progress: Any) -> None:
    paths = list(files.paths())

    def copy(begin: int) -> int:
        chosen = range(begin, min(begin + FILES_OF_A_TASK, len(paths)))
        for index in chosen:
            path = partial / paths[index]
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic(epath.Path(path)) as temporary:
                    temporary.write_bytes(_shrunk(files, index))
        return len(chosen)

    for count in pool.map(copy, range(0, len(paths), FILES_OF_A_TASK)):
        progress.update(count)


def _shrunk(files: ImageFiles, index: int) -> bytes:
    """The file with its image shrunk; one without a readable image as it is, if it can be read."""
    encoded = b""
    try:
        record = files[index]
        encoded = record.encoded
        return shrink_image(record)
    except BadRecordError:
        return encoded
