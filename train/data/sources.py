"""Where images come from: scikit-learn's digits, or TFDS datasets stored as ArrayRecord.

TFDS reads ArrayRecord files without TensorFlow.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict

from train.errors import ConfigError

Arrays = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a dataset.

    Attributes:
      name: of the split, such as `train`.
      num_examples: its size.
      num_classes: labels are 0 … num_classes − 1.
      image_shape: (H, W, channels) of the images as they are loaded.
      load: reads all of it: images (n, H, W, channels) uint8, labels (n,) int32.
    """

    name: str
    num_examples: int
    num_classes: int
    image_shape: tuple[int, int, int]
    load: Callable[[], Arrays]


def open_split(config: ConfigDict, name: str) -> Split:
    """Opens a split of the dataset `config.name`; reads its metadata, no images.

    Args:
      config: the `data` part of a run's config.
      name: of the split.

    Raises:
      ConfigError: the dataset or the split is not there or cannot be used.
    """
    return _open_digits(config, name) if config.name == "digits" else _open_tfds(config, name)


def describe(config: ConfigDict) -> tuple[int, tuple[int, int, int]]:
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
    image_key, label_key = _feature_keys(builder, config.name)
    features = builder.info.features
    return features[label_key].num_classes, _loaded_shape(config, features[image_key].shape)


def _find_metadata(config: ConfigDict) -> Any:
    """A builder of the files on disk or, without any, of TFDS's own description."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.read_only_builder import builder_from_files
    from tensorflow_datasets.core.registered import DatasetNotFoundError

    directory = os.path.expanduser(config.dir)
    with contextlib.suppress(DatasetNotFoundError):
        return builder_from_files(config.name, data_dir=directory)
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


def _field_of(config: ConfigDict, split: str) -> str:
    return "eval_split" if split == config.eval_split else "train_split"


def _open_digits(config: ConfigDict, name: str) -> Split:
    from sklearn.datasets import load_digits

    if name not in ("train", "test"):
        raise ConfigError(
            f"config.data.{_field_of(config, name)}: digits has the splits train and test; "
            f"got {name!r}."
        )
    digits = load_digits()
    images = np.rint(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    # The digits come grouped by writer; every fifth one is a test image.
    chosen = (np.arange(len(images)) % 5 == 4) == (name == "test")
    images, labels = images[chosen], digits.target[chosen].astype(np.int32)
    shape = _loaded_shape(config, (8, 8, 1))
    return Split(name, len(images), 10, shape, lambda: (_resize_all(images, shape), labels))


def _open_tfds(config: ConfigDict, name: str) -> Split:
    builder = _find_builder(config)
    image_key, label_key = _feature_keys(builder, config.name)
    features = builder.info.features
    try:
        num_examples = builder.info.splits[name].num_examples
    except ValueError as error:
        names = ", ".join(builder.info.splits)
        raise ConfigError(
            f"config.data.{_field_of(config, name)}: {config.name} has no split {name!r}; "
            f"it has {names}."
        ) from error
    shape = _loaded_shape(config, features[image_key].shape)

    def load() -> Arrays:
        records = builder.as_data_source(name)
        images = np.empty((num_examples, *shape), np.uint8)
        labels = np.empty(num_examples, np.int32)
        for i, record in enumerate(records):
            images[i] = _resize(record[image_key], shape)
            labels[i] = record[label_key]
        return images, labels

    return Split(name, num_examples, features[label_key].num_classes, shape, load)


def _find_builder(config: ConfigDict) -> Any:
    from tensorflow_datasets.core.read_only_builder import builder_from_files
    from tensorflow_datasets.core.registered import DatasetNotFoundError

    directory = os.path.expanduser(config.dir)
    try:
        builder = builder_from_files(config.name, data_dir=directory)
    except DatasetNotFoundError as error:
        raise ConfigError(
            f"config.data.name: no dataset {config.name!r} in {directory}; prepare it with: "
            f"pip install '.[prepare]' && tfds build {config.name} --file_format=array_record "
            f"--data_dir={directory}"
        ) from error
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


def _feature_keys(builder: Any, name: str) -> tuple[str, str]:
    keys = builder.info.supervised_keys
    features = builder.info.features
    if keys is None or len(keys) != 2 or not _are_image_and_label(features, keys):
        raise ConfigError(
            f"config.data.name: {name} is no image classification dataset (8-bit images, a class "
            f"each); its features are {', '.join(features)}."
        )
    return keys


def _are_image_and_label(features: Any, keys: tuple[str, str]) -> bool:
    image, label = (features[key] for key in keys)
    is_image = len(image.shape) == 3 and image.np_dtype == np.uint8
    return is_image and hasattr(label, "num_classes")


def _loaded_shape(config: ConfigDict, shape: tuple[int | None, ...]) -> tuple[int, int, int]:
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
    return np.stack([_resize(image, shape) for image in images])


def _resize(image: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Scales the image to cover the shape, and cuts out its centre."""
    if image.shape == shape:
        return image
    height, width, channels = shape
    scale = max(height / image.shape[0], width / image.shape[1])
    rows = max(height, round(image.shape[0] * scale))
    columns = max(width, round(image.shape[1] * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image = cv2.resize(image, (columns, rows), interpolation=interpolation)
    image = image.reshape(rows, columns, channels)
    top, left = (rows - height) // 2, (columns - width) // 2
    return image[top : top + height, left : left + width]
