"""PyTorch weights: to start a run from, or to be evaluated as they are."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from nam_jax import torch_import
from nam_jax.torch_import import names
from train.core.devices import processes
from train.core.engine.experiment import Evaluation, streams
from train.core.errors import ConfigError

# Modules that an error names.
NAMED = 5


def load_pretrained(experiment: Evaluation, *, may_be_fresh: bool = True) -> Any:
    """Reads the variables of a file, and prints what is fresh instead.

    The classifier is fresh if the file has none for this number of classes, the attention if
    the file has none at all.

    Args:
      experiment: What a config leads to that names a file which `nam_jax.torch_import.read` takes,
        or none.
      may_be_fresh: Whether a run is to train what is fresh.

    Returns:
      {"params": …, "batch_stats": …}, float32; None without a file.

    Raises:
      ConfigError: the file cannot be read, or does not fit the network, or not to all of it where
        nothing may be fresh.
    """
    path, model, split = (
        experiment.config.model.pretrained,
        experiment.model,
        experiment.eval_split,
    )
    if not path:
        return None
    try:
        key = streams(experiment.config.seed)["init"]
        state_dict = torch_import.read(os.path.expanduser(path))
        arguments = model, state_dict, (1, *split.image_shape)
        new_head = not _has_head(state_dict, model, split.num_classes)
        fresh = torch_import.fresh(*arguments, new_head=new_head)
        if fresh and not may_be_fresh:
            raise ValueError(_untrained(path, fresh))
        variables = torch_import.variables(*arguments, new_head=new_head, key=key)
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise ConfigError(f"config.model.pretrained: {error}") from error
    # Larger numbers of float64 become infinite.
    with np.errstate(over="ignore"):
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), variables)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables)):
        raise ConfigError(
            f"config.model.pretrained: {path} holds numbers that are not finite in float32."
        )
    processes.say(f"weights from {path}; fresh: {', '.join(fresh) or 'nothing'}")
    return variables


def _untrained(path: str, fresh: list[str]) -> str:
    more = f" and {len(fresh) - NAMED} more" if len(fresh) > NAMED else ""
    return (
        f"{path} has no weights for {', '.join(fresh[:NAMED])}{more}, and with fresh ones the "
        "network would guess. Set config.model.attention and the dataset to what the weights are "
        "of, or train the network first: python -m train.main."
    )


def _has_head(state_dict: Mapping[str, np.ndarray], model: nn.Module, num_classes: int) -> bool:
    bias = names.torch_name(("params", "fc", "bias"), names.rules_of(model))
    shapes = [value.shape for name, value in state_dict.items() if name.endswith(bias)]
    return shapes == [(num_classes,)]
