"""Starting a run from PyTorch weights."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from nam_jax import torch_import
from nam_jax.torch_import import names
from train.core.devices import processes
from train.core.engine.experiment import Experiment, streams
from train.core.errors import ConfigError

_MOST_LISTED = 3


def load_pretrained(experiment: Experiment) -> Any:
    """Reads the variables that a run starts with, and prints what is fresh instead.

    The classifier is fresh if the file has none for this number of classes, the attention if
    the file has none at all.

    Args:
      experiment: Experiment whose config names a file that `nam_jax.torch_import.read` takes, or
        none, and the state dict in it.

    Returns:
      {"params": …, "batch_stats": …}, float32; None without a file.

    Raises:
      ConfigError: the file cannot be read, has no such state dict, or does not fit the network.
    """
    config, model, split = experiment.config.model, experiment.model, experiment.train_split
    if not config.pretrained:
        return None
    try:
        key = streams(experiment.config.seed)["init"]
        state_dict, source = _read(os.path.expanduser(config.pretrained), config.pretrained_key)
        arguments = model, state_dict, (1, *split.image_shape)
        new_head = not _has_head(state_dict, model, split.num_classes)
        fresh = torch_import.fresh(*arguments, new_head=new_head)
        variables = torch_import.variables(*arguments, new_head=new_head, key=key)
    except torch_import.StateDictKeyError as error:
        raise ConfigError(f"config.model.pretrained_key: {error}") from error
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise ConfigError(f"config.model.pretrained: {error}") from error
    # Larger numbers of float64 become infinite.
    with np.errstate(over="ignore"):
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), variables)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables)):
        raise ConfigError(
            f"config.model.pretrained: {config.pretrained} holds numbers that are not finite in "
            "float32."
        )
    processes.say(f"weights from {source}; fresh: {', '.join(fresh) or 'nothing'}")
    return variables


def _read(path: str, key: str) -> tuple[dict[str, np.ndarray], str]:
    """A state dict, and in words where it is from and how another of the file is taken."""
    state_dict, keys = torch_import.read(path, key), torch_import.list_state_dicts(path)
    taken = key or keys[0]
    others = [other for other in keys if other != taken][:_MOST_LISTED]
    source = f"{path}: its {taken}" if taken else path
    if others:
        option = f"--config.model.pretrained_key={others[0]}"
        source += f", not {', '.join(others)} ({option} takes that)"
    return state_dict, source


def _has_head(state_dict: Mapping[str, np.ndarray], model: nn.Module, num_classes: int) -> bool:
    bias = names.torch_name(("params", "fc", "bias"), names.rules_of(model))
    shapes = [value.shape for name, value in state_dict.items() if name.endswith(bias)]
    return shapes == [(num_classes,)]
