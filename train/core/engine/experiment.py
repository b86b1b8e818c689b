"""What a run consists of, built from its config."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import optax
from flax import linen as nn
from jax.sharding import Mesh

from nam_jax import models
from train.core.config.checks import validate
from train.core.config.fields import Config, DataConfig
from train.core.config.spec import MOST_STEPS
from train.core.data import resident
from train.core.data.sources import registry
from train.core.devices import mesh as mesh_lib
from train.core.engine import optimizer
from train.core.errors import ConfigError, naming

# As many as make the time of a dispatch not count; a signal is heard after a few dispatches.
LONGEST_DISPATCH = 16


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What follows from a config before any image is read or anything is compiled.

    Attributes:
      config: of the run.
      mesh: of all devices.
      train_split: metadata of the split to train on.
      eval_split: metadata of the split to evaluate on.
      steps_per_epoch: whole batches of the training split.
      total_steps: updates of the run.
      model: takes images (N, H, W, C) and `train`.
      learning_rate: of every update.
      tx: the optax chain.
    """

    config: Config
    mesh: Mesh
    train_split: registry.Split
    eval_split: registry.Split
    steps_per_epoch: int
    total_steps: int
    model: nn.Module
    learning_rate: optax.Schedule
    tx: optax.GradientTransformation

    @property
    def is_grouped(self) -> bool:
        """Whether the step is told how many updates to make."""
        return self.longest_dispatch > 1

    @property
    def longest_dispatch(self) -> int:
        """How many updates are dispatched at once, at most."""
        # Streamed batches come one by one. On a CPU the gradient of a convolution inside a
        # loop is 20 times slower.
        is_streamed = self.config.data.loader == "streaming"
        return 1 if is_streamed or mesh_lib.is_cpu(self.mesh) else LONGEST_DISPATCH

    def dispatches(self, start: int) -> Iterator[range]:
        """The updates of every dispatch, numbered from 1; each ends where something is due.

        Args:
          start: updates done so far.
        """
        config = self.config
        save_every = config.checkpoint.every_steps or self.steps_per_epoch
        periods = config.log_every_steps, save_every, self.steps_per_epoch
        while start < self.total_steps:
            due = min((start // period + 1) * period for period in periods)
            stop = min(due, start + self.longest_dispatch, self.total_steps)
            yield range(start + 1, stop + 1)
            start = stop

    def is_evaluated(self, step: int) -> bool:
        """Whether an evaluation is due after so many updates."""
        every = self.config.eval_every_epochs * self.steps_per_epoch
        return step % every == 0 or step == self.total_steps

    def is_saved(self, step: int) -> bool:
        """Whether a checkpoint is due after so many updates."""
        every = self.config.checkpoint.every_steps or self.steps_per_epoch
        return step % every == 0 or self.is_evaluated(step)


def build(
    config: Config,
    devices: Sequence[jax.Device] | None = None,
    open_split: Callable[[DataConfig, str], registry.Split] = registry.open_split,
) -> Experiment:
    """Builds a run from its config.

    Args:
      config: of the run.
      devices: to run on; default: all there are.
      open_split: gives a split by the `data` part of the config and its name.

    Raises:
      ConfigError: the config does not fit the dataset or the devices.
    """
    validate(config)
    if config.model.dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise ConfigError("config.model.dtype: float64 needs JAX_ENABLE_X64=1 in the environment.")
    mesh = mesh_lib.create(
        config.batch_size,
        config.model.sync_bn_devices,
        devices,
        accumulate_steps=config.accumulate_steps,
    )
    train_split = _open_split(config.data, "train_split", open_split)
    eval_split = _open_split(config.data, "eval_split", open_split)
    _check_images(config.data, train_split)
    _check_pairs(config, mesh)
    steps_per_epoch = _steps_per_epoch(config, train_split)
    total_steps = _total_steps(config, steps_per_epoch)
    warmup_steps = _warmup_steps(config, steps_per_epoch, total_steps)
    scale = optimizer.batch_size_scale(config.optimizer, config.batch_size)
    learning_rate = optimizer.schedule(config.optimizer, total_steps, warmup_steps, scale=scale)
    return Experiment(
        config=config,
        mesh=mesh,
        train_split=train_split,
        eval_split=eval_split,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        model=create_model(config, train_split.num_classes, mesh_lib.norm_axis(mesh)),
        learning_rate=learning_rate,
        tx=optimizer.create(config.optimizer, learning_rate),
    )


def create_model(config: Config, num_classes: int, axis_name: str | None = None) -> nn.Module:
    """Builds the network of a config.

    Args:
      config: of the run.
      num_classes: number of logits.
      axis_name: mapped axis of devices that share their batch statistics.
    """
    return models.create(
        config.model.name,
        num_classes=num_classes,
        attention=config.model.attention,
        stem=config.model.stem,
        dtype=config.model.dtype,
        zero_init_last_scale=config.model.zero_init_last_scale,
        remat=config.model.remat,
        axis_name=axis_name,
    )


def _open_split(
    config: DataConfig, field: str, open_split: Callable[[DataConfig, str], registry.Split]
) -> registry.Split:
    with naming(f"config.data.{field}"):
        split = open_split(config, getattr(config, field))
    if split.num_examples <= 0:
        raise ConfigError(f"config.data.{field}: {split.name!r} of {config.name} is empty.")
    if config.loader == "resident":
        resident.check_size(split, config.resident_limit_gb)
    return split


def _steps_per_epoch(config: Config, split: registry.Split) -> int:
    if split.num_examples < config.batch_size:
        raise ConfigError(
            f"config.batch_size: {config.batch_size} images, but the split {split.name} "
            f"has {split.num_examples}."
        )
    return split.num_examples // config.batch_size


def _total_steps(config: Config, steps_per_epoch: int) -> int:
    steps = config.steps or config.epochs * steps_per_epoch
    if steps > MOST_STEPS:
        raise ConfigError(
            f"config.epochs: {config.epochs} epochs of {steps_per_epoch} steps are {steps} steps; "
            f"at most {MOST_STEPS} are counted. Set fewer, or config.steps."
        )
    return steps


def _warmup_steps(config: Config, steps_per_epoch: int, total_steps: int) -> int:
    epochs = config.optimizer.warmup_epochs
    steps = round(epochs * steps_per_epoch)
    if steps >= total_steps:
        raise ConfigError(
            f"config.optimizer.warmup_epochs: {epochs:g} epochs are {steps:.4g} steps, but the run "
            f"has {total_steps} (config.steps, config.epochs)."
        )
    return steps


def _check_images(config: DataConfig, split: registry.Split) -> None:
    height, width, channels = split.image_shape
    if config.crop == "pad" and config.crop_padding > min(height, width):
        raise ConfigError(
            f"config.data.crop_padding: {config.crop_padding} pixels on each side of images of "
            f"{height} × {width}; allowed: at most {min(height, width)}."
        )
    for name, numbers in (("mean", config.mean), ("std", config.std)):
        if len(numbers) not in (1, channels):
            raise ConfigError(
                f"config.data.{name}: {len(numbers)} numbers, but the images of "
                f"{config.name} have {channels} channels; give one for each, or one for all."
            )


def _check_pairs(config: Config, mesh: Mesh) -> None:
    if (config.data.mixup or config.data.cutmix) and config.batch_size // mesh.size % 2:
        raise ConfigError(
            "config.batch_size: config.data.mixup and config.data.cutmix mix pairs of images, and "
            f"{config.batch_size} gives each of {mesh.size} devices an odd number; use a multiple "
            f"of {2 * mesh.size}."
        )
