"""What a source of images is: a dataset whose splits can be opened."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from train.core.config.data_fields import DataConfig
from train.core.data.sources.image_files import ImageFiles
from train.core.data.sources.records import Records
from train.core.errors import ConfigError, RunError

Arrays = tuple[np.ndarray, np.ndarray]
ImageShape = tuple[int, int, int]


def _no_records() -> Records:
    raise RunError("the images are no records on disk.")


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a dataset.

    Attributes:
      name: Name of the split, such as `train`.
      num_examples: Number of its examples.
      num_classes: Number of classes; labels are 0 … num_classes − 1.
      image_shape: (H, W, channels) of the images as they are loaded.
      load: Reads all of it: images (n, H, W, channels) uint8, labels (n,) int32.
      open_records: Opens it for reading by index, where it lies on disk.
      files: Its files, where each image is one.
      note: What there is to tell of it in a line.
    """

    name: str
    num_examples: int
    num_classes: int
    image_shape: ImageShape
    load: Callable[[], Arrays]
    open_records: Callable[[], Records] = _no_records
    files: ImageFiles | None = None
    note: str = ""

    @property
    def has_records(self) -> bool:
        """Whether it can be read by index."""
        return self.open_records is not _no_records

    @property
    def description(self) -> dict[str, Any]:
        """What a network and a schedule are made for, by words for it."""
        return {
            f"the files of the split {self.name}": self.files and self.files.digest,
            f"the images of the split {self.name}": self.num_examples,
            f"the classes of the split {self.name}": self.num_classes,
            f"the size of images of the split {self.name}": self.image_shape,
        }


class Source(Protocol):
    """A dataset: what is known of it before an image is read.

    Every part raises ConfigError where the dataset is not there or cannot be used.
    """

    def __init__(self, config: DataConfig):
        """Takes the `data` part of a run's config, which names the dataset."""

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are 0 … num_classes − 1."""

    @property
    def image_shape(self) -> ImageShape:
        """(H, W, channels) of the images as they are loaded."""

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes, by label; None where they have none."""

    @property
    def is_on_disk(self) -> bool:
        """Whether the images are there; the other figures may be known without them."""

    def open_split(self, name: str) -> Split:
        """Opens a split; reads its metadata, no images.

        Raises:
          UnknownSplitError: there is no such split.
        """


def unread_split(source: Source, name: str, num_examples: int) -> Split:
    """A split of a dataset that is not on disk, for what reads no images.

    Args:
      source: The dataset.
      name: Name of the split.
      num_examples: Number of examples that it is taken to have.
    """

    def not_there() -> Any:
        raise RunError("the images are not on disk.")

    shape = source.image_shape
    return Split(name, num_examples, source.num_classes, shape, not_there, not_there)


def loaded_shape(config: DataConfig, shape: tuple[int | None, ...]) -> ImageShape:
    """The shape of images as they are loaded.

    Args:
      config: The `data` part of a run's config.
      shape: (H, W, channels) of the dataset's images; None where they differ.

    Raises:
      ConfigError: they differ, and the config does not say to what size they are brought.
    """
    height, width, channels = shape
    if config.image_size:
        height = width = config.image_size
    if height is None or width is None or channels is None:
        raise ConfigError(
            f"config.data.image_size: the images of {config.name} have no common size "
            f"(shape {shape}); set the one that they are resized to."
        )
    return height, width, channels


def local_directory(config: DataConfig) -> str:
    """The directory `data.dir`, where a tilde is the user's home.

    Raises:
      ConfigError: it is the address of a bucket.
    """
    if "://" in config.dir:
        raise ConfigError(
            f"config.data.dir: got {config.dir!r}; images are read from directories alone. Mount "
            "the bucket as one, with gcsfuse (docs/training/pods.md, section 5), and name that."
        )
    return os.path.expanduser(config.dir)
