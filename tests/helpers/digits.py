"""The config of the digits, the smallest run there is."""

from typing import Any

from configs import digits_resnet20
from train.core.config.fields import Config, replaced


def digits(**changes: Any) -> Config:
    """The config, with other values by the dotted names of fields."""
    return replaced(digits_resnet20.get_config(), changes)
