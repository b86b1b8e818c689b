"""The sources of images by name: a new one is a file beside this, and a line here."""

from train.core.config.fields import DataConfig
from train.core.data.sources.digits import Digits
from train.core.data.sources.folder import Folder
from train.core.data.sources.split import Source, Split
from train.core.data.sources.tfds import Tfds

# Every other name is that of a TFDS dataset.
SOURCES: dict[str, type[Source]] = {"digits": Digits, "folder": Folder}


def source_of(config: DataConfig) -> Source:
    """The dataset `config.name`.

    Args:
      config: The `data` part of a run's config.
    """
    return SOURCES.get(config.name, Tfds)(config)


def open_split(config: DataConfig, name: str) -> Split:
    """Opens a split of the dataset `config.name`; reads its metadata, no images.

    Args:
      config: The `data` part of a run's config.
      name: Name of the split.

    Raises:
      ConfigError: the dataset is not there or cannot be used.
      UnknownSplitError: it has no such split.
    """
    return source_of(config).open_split(name)
