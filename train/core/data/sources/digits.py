"""scikit-learn's digits: 1797 images of 8 × 8 grey pixels, which come with it."""

import functools
from importlib import metadata

import numpy as np

from train.core.config.data_fields import DataConfig
from train.core.data.crop import center
from train.core.data.sources.split import Arrays, Split, loaded_shape
from train.core.errors import UnknownSplitError

SPLITS = ("train", "test")
# A line has 64 pixels of 0 to 16, and the digit.
_FILE = "sklearn/datasets/data/digits.csv.gz"


class Digits:
    """The digits: every fifth one is a test image, for they come grouped by writer."""

    num_classes = 10
    class_names = None
    is_on_disk = True

    def __init__(self, config: DataConfig):
        self._name = config.name
        self.image_shape = loaded_shape(config, (8, 8, 1))

    def open_split(self, name: str) -> Split:
        """Opens the split `train` or `test`."""
        if name not in SPLITS:
            raise UnknownSplitError(
                f"{self._name} has the splits {' and '.join(SPLITS)}; got {name!r}."
            )
        images, labels = _read()
        chosen = (np.arange(len(images)) % 5 == 4) == (name == "test")
        images, labels = images[chosen], labels[chosen]

        def load() -> Arrays:
            return np.stack([center(image, self.image_shape) for image in images]), labels

        return Split(name, len(images), self.num_classes, self.image_shape, load)


@functools.cache
def _read() -> Arrays:
    # Importing scikit-learn would take more than a second.
    path = metadata.distribution("scikit-learn").locate_file(_FILE)
    lines = np.loadtxt(str(path), np.int32, delimiter=",")
    images = np.rint(lines[:, :-1] * (255 / 16)).astype(np.uint8)
    return images.reshape(-1, 8, 8, 1), lines[:, -1]
