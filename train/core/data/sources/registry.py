"""The sources of images by name: a new one is a file beside this, and a line here."""

from train.core.config.data_fields import DataConfig
from train.core.data.sources.digits import Digits
from train.core.data.sources.folder import Folder
from train.core.data.sources.split import Source
from train.core.data.sources.tfds import Tfds

# Every other name is that of a TFDS dataset.
SOURCES: dict[str, type[Source]] = {"digits": Digits, "folder": Folder}


def source_of(config: DataConfig) -> Source:
    """The dataset `config.name`.

    Args:
      config: The `data` part of a run's config.
    """
    return SOURCES.get(config.name, Tfds)(config)
