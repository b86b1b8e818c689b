"""Where images come from: scikit-learn's digits, or TFDS datasets stored as ArrayRecord.

TFDS reads ArrayRecord files without TensorFlow.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np

from train.core.config.fields import DataConfig
from train.core.data.feed import cpu_cores
from train.core.data.on_host import crop
from train.core.data.sources.records import (
    BadRecord,
    BadRecordError,
    Records,
    array_records,
    decode,
)
from train.core.errors import ConfigError, RunError, UnknownSplitError, reason

Arrays = tuple[np.ndarray, np.ndarray]
# Records that a thread loads at a time.
RECORDS_OF_A_TASK = 256


def _not_on_disk() -> Records:
    raise ConfigError(
        "config.data.loader: only TFDS datasets can be streamed; set config.data.loader=resident."
    )


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a dataset.

    Attributes:
      name: of the split, such as `train`.
      num_examples: its size.
      num_classes: labels are 0 … num_classes − 1.
      image_shape: (H, W, channels) of the images as they are loaded.
      load: reads all of it: images (n, H, W, channels) uint8, labels (n,) int32.
      open_records: opens it for reading by index, where it lies on disk.
    """

    name: str
    num_examples: int
    num_classes: int
    image_shape: tuple[int, int, int]
    load: Callable[[], Arrays]
    open_records: Callable[[], Records] = _not_on_disk

    @property
    def description(self) -> dict[str, Any]:
        """What a network and a schedule are made for, by words for it."""
        return {
            f"the images of the split {self.name}": self.num_examples,
            f"the classes of the split {self.name}": self.num_classes,
            f"the size of images of the split {self.name}": self.image_shape,
        }


def open_split(config: DataConfig, name: str) -> Split:
    """Opens a split of the dataset `config.name`; reads its metadata, no images.

    Args:
      config: the `data` part of a run's config.
      name: of the split.

    Raises:
      UnknownSplitError: the dataset has no such split.
      ConfigError: the dataset is not there, or it or the split cannot be used.
    """
    return _open_digits(config, name) if config.name == "digits" else _open_tfds(config, name)


def describe(config: DataConfig) -> tuple[int, tuple[int, int, int]]:
    """What a network has to know of the dataset `config.name`, which need not be on disk.

    Args:
      config: the `data` part of a run's config.

    Returns:
      The number of classes, and (H, W, channels) of the images as they are loaded.

    Raises:
      ConfigError: the dataset is neither on disk nor known to TFDS, or cannot be used.
    """
    if config.name == "digits":
        return 10, _loaded_shape(config, (8, 8, 1))
    builder = _find_metadata(config)
    image_key, label_key = feature_keys(builder, config.name)
    features = builder.info.features
    return features[label_key].num_classes, _loaded_shape(config, features[image_key].shape)


def describe_split(config: DataConfig, name: str, num_examples: int) -> Split:
    """A split whose dataset need not be on disk, for what reads no images.

    Args:
      config: the `data` part of a run's config.
      name: of the split.
      num_examples: that it is taken to have where it is not on disk.

    Raises:
      ConfigError: the dataset cannot be used.
    """
    if is_on_disk(config):
        return open_split(config, name)
    return Split(name, num_examples, *describe(config), load=_not_there)


def is_on_disk(config: DataConfig) -> bool:
    """Whether the images of the dataset `config.name` are there.

    Args:
      config: the `data` part of a run's config.

    Raises:
      ConfigError: its directory or its metadata cannot be read.
    """
    return config.name == "digits" or _builder_of_files(config) is not None


def _not_there() -> Arrays:
    raise RunError("the images are not on disk.")


def _builder_of_files(config: DataConfig) -> Any:
    """A builder of the files on disk, None where there are none."""
    from tensorflow_datasets.core.read_only_builder import builder_from_files
    from tensorflow_datasets.core.registered import DatasetNotFoundError

    directory = os.path.expanduser(config.dir)
    try:
        _list(directory, config.name)
        # Where the metadata name what needs TensorFlow, TFDS prints how to install it.
        with contextlib.redirect_stdout(None):
            return builder_from_files(config.name, data_dir=directory)
    except DatasetNotFoundError:
        return None
    # What damaged metadata make TFDS raise is not limited to a few kinds.
    except Exception as error:
        raise ConfigError(
            f"config.data.dir: {config.name!r} in {directory} cannot be read: {reason(error)} "
            "Its dataset_info.json and features.json have to be there as TFDS wrote them."
        ) from error


def _list(directory: str, name: str) -> None:
    """Raises what forbids to list the directories of a dataset: TFDS finds none in those."""

    def fail(error: OSError) -> None:
        raise error

    with contextlib.suppress(FileNotFoundError):
        os.listdir(directory)
        own = os.path.join(directory, re.split("[/:]", name)[0])
        for _ in os.walk(own, onerror=fail):
            pass


def _find_metadata(config: DataConfig) -> Any:
    """A builder of the files on disk or, without any, of TFDS's own description."""
    import tensorflow_datasets as tfds

    builder = _builder_of_files(config)
    if builder is not None:
        return builder
    directory = os.path.expanduser(config.dir)
    try:
        # Where a description needs TensorFlow, TFDS prints how to install it.
        with contextlib.redirect_stdout(None):
            return tfds.builder(config.name, data_dir=directory, try_gcs=False)
    # A description is code: anything may come out of it.
    except Exception as error:
        raise ConfigError(
            f"config.data.name: no dataset {config.name!r} in {directory}, and TFDS "
            f"describes none of this name without TensorFlow ({type(error).__name__})."
        ) from error


def _open_digits(config: DataConfig, name: str) -> Split:
    from sklearn.datasets import load_digits

    if config.loader == "streaming":
        _not_on_disk()
    if name not in ("train", "test"):
        raise UnknownSplitError(f"digits has the splits train and test; got {name!r}.")
    digits = load_digits()
    images = np.rint(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    # The digits come grouped by writer; every fifth one is a test image.
    chosen = (np.arange(len(images)) % 5 == 4) == (name == "test")
    images, labels = images[chosen], digits.target[chosen].astype(np.int32)
    shape = _loaded_shape(config, (8, 8, 1))
    return Split(name, len(images), 10, shape, lambda: (_resize_all(images, shape), labels))


def _open_tfds(config: DataConfig, name: str) -> Split:
    builder = find_builder(config)
    image_key, label_key = feature_keys(builder, config.name)
    features = builder.info.features
    try:
        num_examples = builder.info.splits[name].num_examples
    # A KeyError where it has none at all; `all` takes no slice.
    except (KeyError, NotImplementedError, ValueError) as error:
        names = ", ".join(builder.info.splits) or "none"
        raise UnknownSplitError(f"{config.name} has no split {name!r}; it has {names}.") from error
    shape = _loaded_shape(config, features[image_key].shape)

    num_classes = features[label_key].num_classes

    def open_records() -> Records:
        return Records(array_records(builder, name), image_key, label_key, num_classes)

    def load() -> Arrays:
        return _load_all(open_records(), name, shape, config.workers or cpu_cores())

    return Split(name, num_examples, num_classes, shape, load, open_records)


def _load_all(records: Records, name: str, shape: tuple[int, int, int], workers: int) -> Arrays:
    images = np.empty((len(records), *shape), np.uint8)
    labels = np.empty(len(records), np.int32)

    def load(begin: int) -> None:
        for index in range(begin, min(begin + RECORDS_OF_A_TASK, len(records))):
            try:
                record = records[index]
                images[index] = crop.center(decode(record, shape[-1]), shape)
                labels[index] = record.label
            except BadRecordError as error:
                bad = BadRecord(name, index, error.file_name, str(error))
                message = f"{bad}; the loader `streaming` passes over such records."
                raise RunError(message) from error

    # The threads here share the cores already.
    cv2.setNumThreads(0)
    with ThreadPoolExecutor(workers) as pool:
        # In order, so that it is the first bad record that is named.
        for _ in pool.map(load, range(0, len(records), RECORDS_OF_A_TASK)):
            pass
    return images, labels


def find_builder(config: DataConfig) -> Any:
    """Opens a TFDS dataset that has ArrayRecord files.

    Args:
      config: the `data` part of a run's config.

    Raises:
      ConfigError: there is none, or it cannot be read; says how to prepare or convert it.
    """
    builder = _builder_of_files(config)
    if builder is None:
        directory = os.path.expanduser(config.dir)
        raise ConfigError(
            f"config.data.name: no dataset {config.name!r} in {directory}; prepare it with: "
            f"pip install '.[prepare]' && tfds build {config.name} --file_format=array_record "
            f"--data_dir={directory}"
        )
    formats = [
        form.value for form in (builder.info.file_format, *builder.info.alternative_file_formats)
    ]
    if "array_record" not in formats:
        raise ConfigError(
            f"config.data.name: {builder.data_path} is stored as {formats[0]}, which needs "
            f"TensorFlow to read; convert it with: pip install '.[prepare]' && tfds convert_format "
            f"--dataset_dir={builder.data_path.parent} --out_file_format=array_record"
        )
    return builder


def feature_keys(builder: Any, name: str) -> tuple[str, str]:
    """The names of the features with the image and the label.

    Args:
      builder: of a TFDS dataset.
      name: of the dataset, for the error.

    Raises:
      ConfigError: the dataset is for something else than image classification.
    """
    keys = builder.info.supervised_keys
    # Those of other datasets may be no dict.
    features = dict(getattr(builder.info.features, "items", tuple)())
    pair = [features.get(str(key)) for key in keys or ()]
    if len(pair) != 2 or not _are_image_and_label(*pair):
        raise ConfigError(
            f"config.data.name: {name} is no image classification dataset (8-bit images, grey or "
            f"RGB, a class each); its features are {', '.join(features) or 'something else'}."
        )
    return keys


def _are_image_and_label(image: Any, label: Any) -> bool:
    if image is None or len(image.shape) != 3 or image.np_dtype != np.uint8:
        return False
    *size, channels = image.shape
    num_classes = getattr(label, "num_classes", None) or 0
    return channels in (1, 3) and 0 not in size and num_classes > 0


def _loaded_shape(config: DataConfig, shape: tuple[int | None, ...]) -> tuple[int, int, int]:
    height, width, channels = shape
    if config.image_size:
        height = width = config.image_size
    if height is None or width is None or channels is None:
        raise ConfigError(
            f"config.data.image_size: the images of {config.name} have no common size "
            f"(shape {shape}); set the one that they are resized to."
        )
    return height, width, channels


def _resize_all(images: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    return np.stack([crop.center(image, shape) for image in images])
