"""What a run consists of, built from its config."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import optax
from flax import linen as nn
from jax.sharding import Mesh

from nam_jax import models
from train.core.config.attentions import attention_options
from train.core.config.checks import validate
from train.core.config.data_fields import DataConfig, at_eval_size
from train.core.config.fields import Config, flatten
from train.core.config.model_fields import ModelConfig
from train.core.config.spec import MOST_STEPS
from train.core.data import on_device
from train.core.data.loaders import LOADERS, Loader
from train.core.data.sources.registry import source_of
from train.core.data.sources.split import Source, Split, unread_split
from train.core.devices.mesh import create, norm_axis
from train.core.engine import optimizer
from train.core.errors import ConfigError, named_by


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What follows from a config for a network that is only evaluated.

    Attributes:
      config: Config of the network and of the images.
      mesh: Mesh of all devices.
      loader: Loader of the images.
      source: Dataset that the splits are of.
      eval_split: Metadata of the split to evaluate on.
      model: Network; takes images (N, H, W, C) and `train`.
    """

    config: Config
    mesh: Mesh
    loader: Loader
    source: Source
    eval_split: Split
    model: nn.Module


@dataclasses.dataclass(frozen=True)
class Experiment(Evaluation):
    """What follows from a config before any image is read or anything is compiled.

    Attributes:
      train_split: Metadata of the split to train on.
      steps_per_epoch: Number of whole batches of the training split.
      total_steps: Number of updates of the run.
      learning_rate: Learning rate by the number of updates done so far.
      tx: Optax chain.
    """

    train_split: Split
    steps_per_epoch: int
    total_steps: int
    learning_rate: optax.Schedule
    tx: optax.GradientTransformation

    @property
    def is_grouped(self) -> bool:
        """Whether the step is told how many updates to make."""
        return self.loader.longest_dispatch > 1

    @property
    def dataset(self) -> dict[str, Any]:
        """What dataset.json says of the images that the network is for."""
        return {
            "num_classes": self.source.num_classes,
            "class_names": self.source.class_names,
            "image_shape": self.source.image_shape,
            "num_images": {
                split.name: split.num_examples for split in (self.train_split, self.eval_split)
            },
        }

    def dispatches(self, start: int) -> Iterator[range]:
        """The updates of every dispatch, numbered from 1; each ends where something is due.

        Args:
          start: Number of updates done so far.
        """
        config = self.config
        save_every = config.checkpoint.every_steps or self.steps_per_epoch
        periods = config.log_every_steps, save_every, self.steps_per_epoch
        while start < self.total_steps:
            due = min((start // period + 1) * period for period in periods)
            stop = min(due, start + self.loader.longest_dispatch, self.total_steps)
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


def build_evaluation(
    config: Config,
    devices: Sequence[jax.Device] | None = None,
    *,
    reads_images: bool = True,
) -> Evaluation:
    """Builds what an evaluation needs; the dataset may lack the split to train on.

    Args:
      config: Config of the network and of the images.
      devices: Devices to run on; default: all there are.
      reads_images: Whether the split has to be there.

    Raises:
      ConfigError: the config does not fit the dataset or the devices.
    """

    def open_split(source: Source, name: str) -> Split:
        return source.open_split(name) if reads_images else unread_split(source, name, 1)

    opened = _open(config, devices, open_split, "eval_split")
    return Evaluation(**opened, config=config)


def build_experiment(
    config: Config,
    devices: Sequence[jax.Device] | None = None,
    *,
    open_source: Callable[[DataConfig], Source] = source_of,
    unread_examples: int | None = None,
) -> Experiment:
    """Builds a run from its config.

    Args:
      config: Config of the run.
      devices: Devices to run on; default: all there are.
      open_source: Function that gives the dataset of a config.
      unread_examples: Number of examples that each split is taken to have where the dataset is
        not on disk, for what reads no images; None: it has to be there.

    Raises:
      ConfigError: the config does not fit the dataset or the devices.
    """

    def open_split(source: Source, name: str) -> Split:
        if unread_examples is None or source.is_on_disk:
            return source.open_split(name)
        return unread_split(source, name, unread_examples)

    opened = _open(
        config, devices, open_split, "train_split", "eval_split", open_source=open_source
    )
    on_device.check_pairs(config, opened["mesh"].size)
    steps_per_epoch = _steps_per_epoch(config, opened["train_split"])
    total_steps = _total_steps(config, steps_per_epoch)
    warmup_steps = optimizer.warmup_steps(config.optimizer, steps_per_epoch, total_steps)
    scale = optimizer.batch_size_scale(config.optimizer, config.batch_size)
    learning_rate = optimizer.schedule(
        config.optimizer, total_steps, warmup_steps, steps_per_epoch=steps_per_epoch, scale=scale
    )
    return Experiment(
        **opened,
        config=config,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        learning_rate=learning_rate,
        tx=optimizer.create(config.optimizer, learning_rate),
    )


def create_model(config: Config, num_classes: int, axis_name: str | None = None) -> nn.Module:
    """Builds the network of a config.

    Args:
      config: Config of the run.
      num_classes: Number of logits.
      axis_name: Mapped axis of devices that share their batch statistics.
    """
    return models.create(
        config.model.name,
        num_classes=num_classes,
        attention=config.model.attention,
        attention_options=attention_options(dict(flatten(config))),
        stem=config.model.stem,
        shortcut=config.model.shortcut,
        dtype=config.model.dtype,
        zero_init_last_scale=config.model.zero_init_last_scale,
        remat=config.model.remat,
        drop_path=config.model.drop_path,
        dropout=config.model.dropout,
        axis_name=axis_name,
        **_width(config.model),
    )


def _width(config: ModelConfig) -> dict[str, float]:
    """The width of a network that has one."""
    return {} if config.width == 1 else {"width_multiplier": config.width}


def _open(
    config: Config,
    devices: Sequence[jax.Device] | None,
    open_split: Callable[[Source, str], Split],
    *fields: str,
    open_source: Callable[[DataConfig], Source] = source_of,
) -> dict[str, Any]:
    """The mesh, the loader, the source, the splits of some fields, and the network for them."""
    validate(config)
    if config.model.dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise ConfigError("config.model.dtype: float64 needs JAX_ENABLE_X64=1 in the environment.")
    mesh = create(
        config.batch_size,
        config.model.sync_bn_devices,
        devices,
        accumulate_steps=config.accumulate_steps,
    )
    loader, source = LOADERS[config.data.loader](config, mesh), open_source(config.data)
    eval_source = open_source(at_eval_size(config.data)) if config.data.eval_image_size else source
    splits = {}
    for field in fields:
        with named_by(f"config.data.{field}"):
            of = eval_source if field == "eval_split" else source
            splits[field] = split = open_split(of, getattr(config.data, field))
        if split.num_examples <= 0:
            raise ConfigError(
                f"config.data.{field}: {split.name!r} of {config.data.name} is empty; name another "
                "split."
            )
        loader.check_split(split)
    split = splits[fields[0]]
    on_device.check_images(config.data, split.image_shape)
    model = create_model(config, split.num_classes, norm_axis(mesh))
    return {"mesh": mesh, "loader": loader, "source": source, "model": model, **splits}


def _steps_per_epoch(config: Config, split: Split) -> int:
    if split.num_examples < config.batch_size:
        raise ConfigError(
            f"config.batch_size: {config.batch_size} images, but the split {split.name} "
            f"has {split.num_examples}; set at most as many."
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


def streams(seed: int) -> dict[str, jax.Array]:
    """The independent random keys of a run."""
    names = ("init", "order", "augment")
    # What some others draw for a row depends on how many devices share the batch.
    key = jax.random.key(seed, impl="threefry2x32")
    return dict(zip(names, jax.random.split(key, len(names)), strict=True))
