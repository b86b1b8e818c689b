"""The training loop."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nam_jax import models, sparsity_penalty
from train import config as config_lib
from train import mesh as mesh_lib
from train import optimizer
from train import step as step_lib
from train.checkpoint import Checkpoints
from train.config import ConfigError
from train.data import resident, sources
from train.metrics import Log, Progress, Row, RowFile, write_json


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

    config: ConfigDict
    mesh: Mesh
    train_split: sources.Split
    eval_split: sources.Split
    steps_per_epoch: int
    total_steps: int
    model: nn.Module
    learning_rate: optax.Schedule
    tx: optax.GradientTransformation

    def is_evaluated(self, step: int) -> bool:
        """Whether an evaluation is due after so many updates."""
        every = self.config.eval_every_epochs * self.steps_per_epoch
        return step % every == 0 or step == self.total_steps

    def is_saved(self, step: int) -> bool:
        """Whether a checkpoint is due after so many updates."""
        every = self.config.checkpoint.every_steps or self.steps_per_epoch
        return step % every == 0 or self.is_evaluated(step)


def build(config: ConfigDict) -> Experiment:
    """Builds a run from its config.

    Raises:
      ConfigError: the config does not fit the dataset or the devices.
    """
    config_lib.validate(config)
    mesh = mesh_lib.create(config.batch_size, config.model.sync_bn_devices)
    train_split = sources.open_split(config.data, config.data.train_split)
    eval_split = sources.open_split(config.data, config.data.eval_split)
    _check_channels(config.data, train_split)
    steps_per_epoch = train_split.num_examples // config.batch_size
    if steps_per_epoch == 0:
        raise ConfigError(
            f"config.batch_size: {config.batch_size} images, but the split {train_split.name} "
            f"has {train_split.num_examples}."
        )
    total_steps = config.steps or config.epochs * steps_per_epoch
    model = models.create(
        config.model.name,
        num_classes=train_split.num_classes,
        attention=config.model.attention,
        stem=config.model.stem,
        dtype=config.model.dtype,
        zero_init_last_scale=config.model.zero_init_last_scale,
        axis_name=mesh_lib.norm_axis(mesh),
    )
    learning_rate = optimizer.schedule(config.optimizer, total_steps)
    return Experiment(
        config=config,
        mesh=mesh,
        train_split=train_split,
        eval_split=eval_split,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        model=model,
        learning_rate=learning_rate,
        tx=optimizer.create(config.optimizer, learning_rate),
    )


def _check_channels(config: ConfigDict, split: sources.Split) -> None:
    channels = split.image_shape[-1]
    for name in ("mean", "std"):
        if len(config[name]) not in (1, channels):
            raise ConfigError(
                f"config.data.{name}: {len(config[name])} numbers, but the images of "
                f"{config.name} have {channels} channels; give one for each, or one for all."
            )


def initial_state(experiment: Experiment) -> step_lib.TrainState:
    """The state before the first update, on all devices."""
    key = step_lib.streams(experiment.config.seed)["init"]

    def init() -> step_lib.TrainState:
        shape = experiment.train_split.image_shape
        return step_lib.init_state(experiment.model, experiment.tx, key, shape)

    return jax.jit(init, out_shardings=mesh_lib.replicated(experiment.mesh))()


def evaluate(
    experiment: Experiment,
    eval_step: Any,
    state: step_lib.TrainState,
    split: resident.ResidentSplit,
) -> dict[str, float]:
    """Evaluates every image of a split once.

    Args:
      experiment: the run.
      eval_step: from `step.build_eval_step`.
      state: that is evaluated.
      split: on the devices.

    Returns:
      `loss`, `cross_entropy`, `penalty`, and `top1_error` and `top5_error` in percent.
    """
    num_examples = experiment.eval_split.num_examples
    num_batches = -(-num_examples // experiment.config.batch_size)
    batches = [eval_step(state, split, np.int32(index)) for index in range(num_batches)]
    sums = {name: sum(float(b[name]) for b in jax.device_get(batches)) for name in batches[0]}
    if sums["count"] != num_examples:
        raise AssertionError(f"evaluated {sums['count']} of {num_examples} images")
    penalty = float(sparsity_penalty(state.params, experiment.config.optimizer.sparsity))
    cross_entropy = sums["cross_entropy"] / num_examples
    return {
        "loss": cross_entropy + penalty,
        "cross_entropy": cross_entropy,
        "penalty": penalty,
        "top1_error": 100 * sums["top1_wrong"] / num_examples,
        "top5_error": 100 * sums["top5_wrong"] / num_examples,
    }


def train(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """Trains to the end, from the last checkpoint in workdir where there is one.

    Args:
      experiment: the run.
      workdir: where everything is written.

    Returns:
      The summary, as in summary.json.

    Raises:
      TrainingError: a loss is not finite.
    """
    with Checkpoints(workdir / "checkpoints", experiment.config.checkpoint.keep) as checkpoints:
        state, progress = _restore_or_init(experiment, checkpoints)
        if state.step < experiment.total_steps:
            state, progress = _run_steps(experiment, workdir, checkpoints, state, progress)
    summary = summarize(experiment, state, progress, RowFile(workdir / "metrics.jsonl").rows())
    write_json(workdir / "summary.json", summary)
    return summary


def _restore_or_init(
    experiment: Experiment, checkpoints: Checkpoints
) -> tuple[step_lib.TrainState, Progress]:
    state = initial_state(experiment)
    latest = checkpoints.latest_step()
    if latest is None:
        return state, Progress()
    print(f"going on from the checkpoint of step {latest}", flush=True)
    state, progress = checkpoints.restore(latest, state)
    return state, Progress(**progress)


def _run_steps(
    experiment: Experiment,
    workdir: Path,
    checkpoints: Checkpoints,
    state: step_lib.TrainState,
    progress: Progress,
) -> tuple[step_lib.TrainState, Progress]:
    config, start = experiment.config, int(state.step)
    train_split, eval_split = (
        resident.put(split, experiment.mesh, config.data.resident_limit_gb)
        for split in (experiment.train_split, experiment.eval_split)
    )
    train_step, eval_step = _compile(experiment, state, train_split, eval_split)
    order_key = step_lib.streams(config.seed)["order"]
    batches = resident.batches(train_split, order_key, start, experiment.steps_per_epoch)
    with Log(
        workdir,
        progress,
        start_step=start,
        total_steps=experiment.total_steps,
        steps_per_epoch=experiment.steps_per_epoch,
        batch_size=config.batch_size,
        log_every_steps=config.log_every_steps,
    ) as log:
        for step in range(start + 1, experiment.total_steps + 1):
            with log.waiting_for_data():
                batch = next(batches)
            state, metrics = train_step(state, batch)
            log.train(step, metrics)
            if experiment.is_saved(step):
                log.flush(step)
                with log.training_paused():
                    evaluation = None
                    if experiment.is_evaluated(step):
                        evaluation = evaluate(experiment, eval_step, state, eval_split)
                        log.evaluation(step, evaluation)
                    checkpoints.save(step, state, log.progress._asdict(), evaluation)
        return state, log.progress


def _compile(experiment: Experiment, state: Any, train_split: Any, eval_split: Any) -> Any:
    """Compiles both steps ahead of time, so that no speed figure contains a compilation."""
    start = time.monotonic()
    build = experiment.model, experiment.config, experiment.mesh
    train_step = step_lib.build_train_step(
        *build, experiment.tx, experiment.learning_rate, experiment.steps_per_epoch
    )
    eval_step = step_lib.build_eval_step(*build)
    compiled = (
        train_step.lower(state, train_split).compile(),
        eval_step.lower(state, eval_split, np.int32(0)).compile(),
    )
    print(f"compiled in {time.monotonic() - start:.1f} s", flush=True)
    return compiled


def summarize(
    experiment: Experiment, state: step_lib.TrainState, progress: Progress, rows: list[Row]
) -> dict[str, Any]:
    """What summary.json says of a finished run.

    Args:
      experiment: the run.
      state: after the last update.
      progress: after the last update.
      rows: of metrics.jsonl.
    """
    evaluations = [row for row in rows if row["split"] == "eval"]
    best = min(evaluations, key=lambda row: (row["top1_error"], -row["step"]))
    images = experiment.total_steps * experiment.config.batch_size
    return {
        **{name: evaluations[-1][name] for name in ("top1_error", "top5_error", "loss")},
        "best_top1_error": best["top1_error"],
        "best_step": best["step"],
        "num_eval_images": experiment.eval_split.num_examples,
        "steps": experiment.total_steps,
        "params": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "wall_seconds": round(progress.wall_seconds, 1),
        "images_per_second": round(images / progress.train_seconds, 1),
    }
