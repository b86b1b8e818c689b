"""The option --attention of commands that set networks side by side."""

from collections.abc import Sequence

from absl import flags

from nam_jax.attention import NAMES as ATTENTIONS
from nam_jax.attention import has_nam_scales
from train.core.config.fields import Config
from train.core.errors import ConfigError

ATTENTION = flags.DEFINE_list("attention", None, "The attentions to compare.")


def asked(config: Config) -> list[str]:
    """The names that --attention lists, or that of the config.

    Raises:
      ConfigError: it lists nothing, a name that does not exist, or a name twice.
    """
    names = ATTENTION.value
    if names is None:
        return [config.model.attention]
    check(names)
    return names


def check(names: Sequence[str]) -> None:
    """Checks what --attention lists.

    Raises:
      ConfigError: it is nothing, a name that does not exist, or a name twice.
    """
    if not names or not set(names) <= set(ATTENTIONS) or len(set(names)) < len(names):
        raise ConfigError(
            f"--attention: got {','.join(names)!r}; allowed: one or several of "
            f"{', '.join(ATTENTIONS)}, each once, with commas between."
        )


def exchanged(config: Config, name: str) -> Config:
    """A copy of a config with another attention, and no penalty where that has no NAM scales."""
    config = config.copy_and_resolve_references()
    config.model.attention = name
    if not has_nam_scales(name):
        config.optimizer.sparsity = 0.0
    return config
