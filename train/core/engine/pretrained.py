"""PyTorch weights: to start a run from, or to be evaluated as they are."""

import os
from typing import Any

import jax
import numpy as np

from nam_jax import torch_import
from train.core.devices import processes
from train.core.engine.experiment import Evaluation, streams
from train.core.errors import FEW, ConfigError, WeightsError, few


def load_pretrained(experiment: Evaluation, *, may_be_fresh: bool = True) -> Any:
    """Reads the variables of a file, and prints what is fresh instead.

    The classifier is fresh if the file has none for this number of classes, the attention if
    the file has none at all.

    Args:
      experiment: What a config leads to that names a file which `nam_jax.torch_import.read` takes,
        or none, and the state dict in it.
      may_be_fresh: Whether a run is to train what is fresh.

    Returns:
      {"params": …, "batch_stats": …}, float32; None without a file.

    Raises:
      ConfigError: the file cannot be read, has no such state dict, holds numbers that are not
        finite, or lacks weights where nothing may be fresh.
      WeightsError: it does not fit the network.
    """
    config, split = experiment.config.model, experiment.eval_split
    if not config.pretrained:
        return None
    try:
        key = streams(experiment.config.seed)["init"]
        state_dict, source = _read(os.path.expanduser(config.pretrained), config.pretrained_key)
        shape = (1, *split.image_shape)
        plan = torch_import.plan(experiment.model, state_dict, shape, new_head=None)
        if plan.fresh and not may_be_fresh:
            raise ValueError(_untrained(config.pretrained, plan.fresh))
        variables = plan.variables(key)
    except torch_import.StateDictKeyError as error:
        raise ConfigError(f"config.model.pretrained_key: {error}") from error
    except torch_import.MisfitError as error:
        raise WeightsError(explained(config.pretrained, error)) from error
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
    adapted = f"; adapted: {'; '.join(plan.adaptations)}" if plan.adaptations else ""
    processes.say(f"weights from {source}; fresh: {', '.join(plan.fresh) or 'nothing'}{adapted}")
    return variables


def explained(path: str, error: torch_import.MisfitError) -> str:
    """Why weights do not fit, and which options of the command would help, in a few lines.

    Args:
      path: File of the weights.
      error: What the library says.
    """
    fields = {"width_multiplier": "width"}
    options = [
        f"--config.model.{fields.get(name, name)}={value}" for name, value in error.options.items()
    ]
    remedy = f" Try {' '.join(options)}." if options else ""
    reason = f"config.model.pretrained: {path} does not fit the network: {error.causes}.{remedy}"
    return "\n".join([reason, *error.lists])


def _read(path: str, key: str) -> tuple[dict[str, np.ndarray], str]:
    """A state dict, and in words where it is from and how another of the file is taken."""
    state_dict, keys = torch_import.read(path, key), torch_import.list_state_dicts(path)
    taken = key or keys[0]
    others = [other for other in keys if other != taken][:FEW]
    source = f"{path}: its {taken}" if taken else path
    if others:
        option = f"--config.model.pretrained_key={others[0]}"
        source += f", not {', '.join(others)} ({option} takes that)"
    return state_dict, source


def _untrained(path: str, fresh: list[str]) -> str:
    return (
        f"{path} has no weights for {few(fresh)}, and with fresh ones the network would guess. Set "
        "config.model.attention and the dataset to what the weights are of, or train the network "
        "first: python -m train.main."
    )
