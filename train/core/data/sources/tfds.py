"""TFDS datasets stored as ArrayRecord, which TFDS reads without TensorFlow."""

import contextlib
import functools
import os
import re
from typing import Any

import numpy as np

from train.core.config.data_fields import DataConfig
from train.core.data.feed import num_workers
from train.core.data.sources.records import load_all
from train.core.data.sources.split import (
    Arrays,
    ImageShape,
    Split,
    loaded_shape,
    local_directory,
)
from train.core.data.sources.tf_examples import TfExamples, array_records
from train.core.errors import ConfigError, UnknownSplitError, reason

# TensorFlow comes with it, which the environment of the trainer does without.
_TFDS = "python -m venv prepare && prepare/bin/pip install '.[prepare]' && prepare/bin/tfds"


class Tfds:
    """A TFDS dataset for image classification."""

    def __init__(self, config: DataConfig):
        self._config = config
        self.directory = local_directory(config)

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are 0 … num_classes − 1."""
        return self._metadata.info.features[self.feature_keys[1]].num_classes

    @property
    def image_shape(self) -> ImageShape:
        """(H, W, channels) of the images as they are loaded."""
        return loaded_shape(self._config, self._metadata.info.features[self.feature_keys[0]].shape)

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes, by label; TFDS has numbers where they have none."""
        return list(self._metadata.info.features[self.feature_keys[1]].names)

    @property
    def is_on_disk(self) -> bool:
        """Whether the images are there."""
        return self._files is not None

    @functools.cached_property
    def feature_keys(self) -> tuple[str, str]:
        """The names of the features with the image and the label.

        Raises:
          ConfigError: the dataset is for something else than image classification.
        """
        info = self._metadata.info
        keys = info.supervised_keys
        # Those of other datasets may be no dict.
        features = dict(getattr(info.features, "items", tuple)())
        pair = [features.get(str(key)) for key in keys or ()]
        if len(pair) != 2 or not _are_image_and_label(*pair):
            raise ConfigError(
                f"config.data.name: {self._config.name} is no image classification dataset (8-bit "
                "images, grey or RGB, a class each); its features are "
                f"{', '.join(features) or 'something else'}."
            )
        return keys

    def open_split(self, name: str) -> Split:
        """Opens a split, or a part of one such as `train[:10%]`."""
        builder, num_classes = self.builder, self.num_classes
        image_key, label_key = self.feature_keys
        try:
            num_examples = builder.info.splits[name].num_examples
        # A KeyError where it has none at all; `all` takes no slice.
        except (KeyError, NotImplementedError, ValueError) as error:
            names = ", ".join(builder.info.splits) or "none"
            raise UnknownSplitError(
                f"{self._config.name} has no split {name!r}; it has {names}."
            ) from error
        shape = self.image_shape

        def open_records() -> TfExamples:
            return TfExamples(array_records(builder, name), image_key, label_key, num_classes)

        def load() -> Arrays:
            return load_all(open_records(), name, shape, num_workers(self._config))

        return Split(name, num_examples, num_classes, shape, load, open_records)

    @property
    def builder(self) -> Any:
        """TFDS's own object for the dataset, which has ArrayRecord files.

        Raises:
          ConfigError: there is none, or it cannot be read; says how to prepare or convert it.
        """
        builder = self._files
        if builder is None:
            raise ConfigError(
                f"config.data.name: no dataset {self._config.name!r} in {self.directory}; prepare "
                f"it with: {_TFDS} build {self._config.name} --file_format=array_record "
                f"--data_dir={self.directory}"
            )
        info = builder.info
        formats = [form.value for form in (info.file_format, *info.alternative_file_formats)]
        if "array_record" not in formats:
            raise ConfigError(
                f"config.data.name: {builder.data_path} is stored as {formats[0]}, which needs "
                f"TensorFlow to read; convert it with: {_TFDS} convert_format "
                f"--dataset_dir={builder.data_path.parent} --out_file_format=array_record"
            )
        return builder

    @functools.cached_property
    def _files(self) -> Any:
        """A builder of the files on disk, None where there are none."""
        from tensorflow_datasets.core.read_only_builder import builder_from_files
        from tensorflow_datasets.core.registered import DatasetNotFoundError

        try:
            _list(self.directory, self._config.name)
            # Where the metadata name what needs TensorFlow, TFDS prints how to install it.
            with contextlib.redirect_stdout(None):
                return builder_from_files(self._config.name, data_dir=self.directory)
        except DatasetNotFoundError:
            return None
        # What damaged metadata make TFDS raise is not limited to a few kinds.
        except Exception as error:
            raise ConfigError(
                f"config.data.dir: {self._config.name!r} in {self.directory} cannot be read: "
                f"{reason(error)} Its dataset_info.json and features.json have to be there as TFDS "
                "wrote them."
            ) from error

    @functools.cached_property
    def _metadata(self) -> Any:
        """A builder of the files on disk or, without any, of TFDS's own description."""
        import tensorflow_datasets as tfds

        if self._files is not None:
            return self._files
        name = self._config.name
        try:
            # Where a description needs TensorFlow, TFDS prints how to install it.
            with contextlib.redirect_stdout(None):
                return tfds.builder(name, data_dir=self.directory, try_gcs=False)
        # A description is code: anything may come out of it.
        except Exception as error:
            raise ConfigError(
                f"config.data.name: no dataset {name!r} in {self.directory}, and TFDS describes "
                f"none of this name without TensorFlow ({type(error).__name__}); set "
                "config.data.dir to where it is, or config.data.name to one that is there."
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


def _are_image_and_label(image: Any, label: Any) -> bool:
    if image is None or len(image.shape) != 3 or image.np_dtype != np.uint8:
        return False
    *size, channels = image.shape
    num_classes = getattr(label, "num_classes", None) or 0
    return channels in (1, 3) and 0 not in size and num_classes > 0
