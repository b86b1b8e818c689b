"""PyTorch weights: to start a run from, or to be evaluated as they are."""

import os
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from nam_jax import torch_import
from train.core.config.model_fields import ModelConfig
from train.core.devices import processes
from train.core.devices.busy import busy
from train.core.engine.experiment import Evaluation, streams
from train.core.errors import ConfigError, WeightsError, few, reason_and_file


def load_pretrained(evaluation: Evaluation, *, may_be_fresh: bool = True) -> Any:
    """Reads the variables of a file, and prints what is fresh instead.

    The classifier is fresh if the file has none for this number of classes, the attention if
    the file has none at all.

    Args:
      evaluation: Evaluation of a config that names a file which `nam_jax.torch_import.read` takes,
        or none, and the state dict in it.
      may_be_fresh: Whether a run is to train what is fresh.

    Returns:
      {"params": …, "batch_stats": …}, float32; None without a file.

    Raises:
      ConfigError: the file cannot be read, has no such state dict, holds numbers that are not
        finite, or lacks weights where nothing may be fresh.
      WeightsError: it does not fit the network.
    """
    config = evaluation.config.model
    if not config.pretrained:
        return None
    image_shape = evaluation.source.image_shape
    plan = planned(config, evaluation.model, image_shape, may_be_fresh=may_be_fresh)
    variables = plan.variables(streams(evaluation.config.seed)["init"])
    # Larger numbers of float64 become infinite.
    with np.errstate(over="ignore"):
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), variables)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables)):
        raise ConfigError(
            f"config.model.pretrained: {config.pretrained} holds numbers that are not finite in "
            "float32; name another file of weights."
        )
    return variables


def planned(
    config: ModelConfig,
    model: nn.Module,
    image_shape: tuple[int, int, int],
    *,
    may_be_fresh: bool = True,
) -> torch_import.Plan:
    """Finds out how a file's weights become those of a network, and prints it.

    Args:
      config: The `model` part of a config, which names the file.
      model: Network.
      image_shape: Shape (H, W, C) of its images.
      may_be_fresh: Whether a run is to train what is fresh.

    Raises:
      ConfigError: the file cannot be read, has no such state dict, or lacks weights where nothing
        may be fresh.
      WeightsError: it does not fit the network.
    """
    try:
        with busy("reading the weights"):
            state_dict, source, key = _read(os.path.expanduser(config.pretrained), config)
        plan = torch_import.plan(model, state_dict, (1, *image_shape), new_head=None)
    except torch_import.StateDictKeyError as error:
        raise ConfigError(f"config.model.pretrained_key: {error}") from error
    except torch_import.MisfitError as error:
        raise WeightsError(explained(source, key, error)) from error
    except OSError as error:
        remedy = " Name a file of PyTorch weights." if error.filename else ""
        what = f"{reason_and_file(error)}{remedy}"
        raise ConfigError(f"config.model.pretrained: {what}") from error
    except (ImportError, TypeError, ValueError) as error:
        raise ConfigError(f"config.model.pretrained: {error}") from error
    if plan.fresh and not may_be_fresh:
        raise ConfigError(f"config.model.pretrained: {_untrained(config.pretrained, plan.fresh)}")
    adapted = f"; adapted: {'; '.join(plan.adaptations)}" if plan.adaptations else ""
    processes.say(f"weights from {source}; fresh: {few(plan.fresh) or 'nothing'}{adapted}")
    return plan


def explained(source: str, key: str, error: torch_import.MisfitError) -> str:
    """Why weights do not fit, and which options of the command would help, in a few lines.

    Args:
      source: Where the weights are from.
      key: Dotted key of their state dict.
      error: What the library says.
    """
    fields = {"width_multiplier": "width", "key": "pretrained_key"}
    options = dict(error.options)
    if "key" in options:
        options["key"] = ".".join(filter(None, (key, options["key"])))
    given = [f"--config.model.{fields.get(name, name)}={value}" for name, value in options.items()]
    remedy = f" Try {' '.join(given)}." if given else ""
    reason = f"config.model.pretrained: {source} does not fit the network: {error.causes}.{remedy}"
    return "\n".join([reason, *error.lists])


def _read(path: str, config: ModelConfig) -> tuple[dict[str, np.ndarray], str, str]:
    """A state dict, in words where it is from and how another of the file is taken, and its key."""
    state_dict = torch_import.read(path, config.pretrained_key)
    keys = torch_import.list_state_dicts(path)
    taken = config.pretrained_key or keys[0]
    others = [other for other in keys if other != taken]
    source = f"{path}: its {taken}" if taken else path
    if others and others != [""]:
        option = f"--config.model.pretrained_key={others[0]}"
        source += f", not {few(others)} ({option} takes that)"
    return state_dict, source, taken


def _untrained(path: str, fresh: list[str]) -> str:
    return (
        f"{path} has no weights for {few(fresh)}, and with fresh ones the network would guess. Set "
        "config.model.attention and the dataset to what the weights are of, or train the network "
        "first: python -m train.main."
    )
