"""Folders of image files: DIR/<split>/<class>/… or, to be split here, DIR/<class>/…."""

import functools
import hashlib
import os

from train.core.config.data_fields import DataConfig
from train.core.data.feed import num_workers
from train.core.data.sources.class_folders import (
    NAMES_OF_SPLITS,
    NamesOnDisk,
    check_are_classes,
    folders_in,
    named_classes,
)
from train.core.data.sources.image_files import SUFFIXES, ImageFiles, images_below, in_nfc
from train.core.data.sources.records import load_all
from train.core.data.sources.split import (
    Arrays,
    ImageShape,
    Split,
    loaded_shape,
    local_directory,
)
from train.core.devices.busy import busy
from train.core.errors import ConfigError, UnknownSplitError, few, named_by

LAYOUTS = "DIR/<split>/<class>/<image> or DIR/<class>/<image>"
# What lies in a copy of a folder until it is whole.
UNFINISHED = ".unfinished_copy.json"


class Folder:
    """A directory with a folder a class, in a folder a split or without splits.

    Without, a digest of every file's path says whether it is held out: the same for ever and
    everywhere, whatever files are added. Files come class by class, those of one in the order of
    their paths.
    """

    def __init__(self, config: DataConfig):
        self._config = config
        self.directory = local_directory(config)
        self._splits: dict[str, Split] = {}

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are 0 … num_classes − 1."""
        return len(self.class_names)

    @property
    def image_shape(self) -> ImageShape:
        """(H, W, channels) of the images as they are loaded."""
        return loaded_shape(self._config, (None, None, 3))

    @functools.cached_property
    def class_names(self) -> list[str]:
        """The lines of `data.classes`, else the names of a split's folders in order.

        The split is that to train on or, where that is not there, that to evaluate on.
        """
        if self._config.classes:
            return named_classes(self._config.classes)
        with named_by("config.data.train_split"):
            names = list(self._class_folders(self._naming_split)[0])
        if len(names) < 2:
            got = f"one folder alone, {names[0]!r}," if names else "no folder"
            raise ConfigError(
                f"config.data.dir: the split {self._naming_split} in {self.directory} has "
                f"{got} for its classes; a network needs two or more. If it is a class itself, "
                "give config.data.train_split and config.data.eval_split names that no folder has."
            )
        return names

    @property
    def is_on_disk(self) -> bool:
        """Whether the images are there."""
        return os.path.isdir(self.directory)

    def open_split(self, name: str) -> Split:
        """Opens a split: lists its files, the first time."""
        if name not in self._splits:
            self._splits |= self._list(name)
        if name == self._config.train_split:
            self._check_trained(self._splits[name])
        return self._splits[name]

    @functools.cached_property
    def _folders(self) -> tuple[NamesOnDisk, int]:
        """The folders directly in the directory, and the number of what else is there."""
        if not self.is_on_disk:
            raise ConfigError(
                f"config.data.dir: there is no directory {self.directory}; name the one that holds "
                f"the images, as {LAYOUTS}."
            )
        if os.path.exists(os.path.join(self.directory, UNFINISHED)):
            raise ConfigError(
                f"config.data.dir: {self.directory} is a copy that is not whole; the command that "
                "began it, train.prepare shrink, goes on with it."
            )
        folders, ignored = folders_in(self.directory)
        if not folders:
            raise ConfigError(
                f"config.data.dir: no folder is in {self.directory}; images are looked for as "
                f"{LAYOUTS}."
            )
        return folders, ignored

    @functools.cached_property
    def _has_splits(self) -> bool:
        names = {name.lower() for name in self._folders[0]}
        configured = map(in_nfc, (self._config.train_split, self._config.eval_split))
        # Under other names: to take them for classes would train a network to tell splits apart.
        return any(name in self._folders[0] for name in configured) or names <= NAMES_OF_SPLITS

    @functools.cached_property
    def _naming_split(self) -> str:
        """The split whose folders name the classes."""
        folders, config = self._folders[0], self._config
        is_there = [in_nfc(name) in folders for name in (config.train_split, config.eval_split)]
        return config.eval_split if is_there == [False, True] else config.train_split

    def _class_folders(self, split: str) -> tuple[NamesOnDisk, int]:
        """The folders of a split's classes from the directory on, and the number of what else."""
        folders, ignored = self._folders
        if not self._has_splits:
            return folders, ignored
        own = folders.get(in_nfc(split))
        if own is None:
            raise UnknownSplitError(
                f"{self.directory} has no folder {split!r}; it has {few(folders)}."
            )
        inner, inner_ignored = folders_in(os.path.join(self.directory, own))
        splits = set(map(in_nfc, (split, self._config.train_split, self._config.eval_split)))
        strays = [f for f in folders if f not in splits and f.lower() not in NAMES_OF_SPLITS]
        in_all = ignored + len(strays) + inner_ignored
        return {name: f"{own}/{folder}" for name, folder in inner.items()}, in_all

    def _parts(self, name: str) -> list[str]:
        """The splits that are listed together."""
        if self._has_splits:
            return [name]
        parts = [self._config.train_split, self._config.eval_split]
        if name not in parts:
            raise UnknownSplitError(
                f"{self.directory} holds classes and no splits, and is split into "
                f"{' and '.join(parts)}; got {name!r}."
            )
        return parts

    def _list(self, name: str) -> dict[str, Split]:
        parts = {part: ImageFiles(self.directory) for part in self._parts(name)}
        folders, ignored = self._class_folders(name)
        labels = self._labels(name, folders)
        inner: dict[str, set[str]] = {}
        with busy(f"listing {self.directory}", len(folders), "classes") as work:
            for class_name, folder in folders.items():
                paths, others = images_below(os.path.join(self.directory, folder))
                ignored += others
                inner[class_name] = {path.rpartition("/")[0].partition("/")[0] for path in paths}
                for path in (f"{folder}/{path}" for path in paths):
                    part = name if self._has_splits else self._part(path)
                    if part is not None:
                        parts[part].append(path, labels[class_name])
                work.advance()
        if not self._has_splits and not self._config.classes:
            check_are_classes(self.directory, inner)
        self._check_filled(name, len(folders), [name for name in inner if not inner[name]])
        return {part: self._split(part, files, ignored) for part, files in parts.items()}

    def _labels(self, split: str, folders: NamesOnDisk) -> dict[str, int]:
        labels = {name: label for label, name in enumerate(self.class_names)}
        unknown = [name for name in folders if name not in labels]
        if self._config.classes:
            if unknown:
                raise ConfigError(
                    f"config.data.classes: {self._config.classes} has no line for the folders "
                    f"{few(unknown)} of the split {split} in {self.directory}."
                )
            return labels
        lacking = [name for name in labels if name not in folders]
        if unknown or lacking:
            alone = {split: unknown, self._naming_split: lacking}
            told = [f"in {part} alone: {few(names)}" for part, names in alone.items() if names]
            raise ConfigError(
                f"config.data.dir: the classes of the splits in {self.directory} differ, "
                f"{'; '.join(told)}. With all of them in a file, config.data.classes, a "
                "split may lack some."
            )
        return labels

    def _check_filled(self, split: str, num_folders: int, empty: list[str]) -> None:
        if num_folders == len(empty):
            raise ConfigError(
                f"config.data.dir: no folder of a class of the split {split} in {self.directory} "
                f"holds an image, a file whose name ends in {', '.join(SUFFIXES)}."
            )
        if empty and not self._config.classes:
            raise ConfigError(
                f"config.data.dir: the split {split} in {self.directory} has no image of "
                f"{few(empty)}; remove what is empty, or name all classes in a file, "
                "config.data.classes."
            )

    def _check_trained(self, split: Split) -> None:
        lacking = self._lacking(split.files)
        if lacking:
            raise ConfigError(
                f"config.data.dir: all images of {few(lacking)} in {self.directory} are held out, "
                f"and none is left in the split {split.name}; add images, set another "
                "config.data.eval_fraction, or name all classes in a file, config.data.classes."
            )

    def _lacking(self, files: ImageFiles | None) -> list[str]:
        """The classes without an image, where each should have some."""
        if self._config.classes or files is None:
            return []
        there = files.labels
        return [name for label, name in enumerate(self.class_names) if label not in there]

    def _part(self, path: str) -> str | None:
        """The split that a file belongs to where the directory has none; None: to none of these."""
        digest = hashlib.sha256(in_nfc(path).encode(errors="surrogateescape")).digest()
        is_held_out = int.from_bytes(digest[:8]) < self._config.eval_fraction * 2**64
        train_split, eval_split = self._config.train_split, self._config.eval_split
        if is_held_out:
            return None if eval_split == train_split else eval_split
        return train_split

    def _split(self, name: str, files: ImageFiles, ignored: int) -> Split:
        shape = self.image_shape

        def load() -> Arrays:
            return load_all(files, name, shape, num_workers(self._config))

        note = f"{name}: {len(files):,} images of {few(self.class_names)} in {self.directory}"
        if lacking := self._lacking(files):
            note += f", none of {few(lacking)}"
        if ignored:
            note += f"; other files and folders there, ignored: {ignored:,}"
        return Split(
            name, len(files), self.num_classes, shape, load, lambda: files, files=files, note=note
        )
