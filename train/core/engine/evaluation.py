"""Evaluation: of a state while it is trained, of a checkpoint, of a file, and of a whole run."""

import contextlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from nam_jax import half_gates, resize_spatial, sparsity_penalty
from nam_jax.inspection import GateStatistics, small_weight_percentage, statistics_of
from nam_jax.models.size import multiply_adds, parameters
from nam_jax.variables import abstract_variables
from train.core.config.fields import marked
from train.core.config.spec import Mark
from train.core.data.feed import Feed
from train.core.devices.busy import busy
from train.core.devices.mesh import describe, put_whole, replicated
from train.core.devices.processes import say
from train.core.engine.compiled_steps import build_eval_step, build_gate_step
from train.core.engine.experiment import Evaluation, Experiment
from train.core.engine.feeds import eval_feed
from train.core.engine.pretrained import load_pretrained
from train.core.engine.state import TrainState, widened_to
from train.core.errors import RunError
from train.core.monitor.log import LAG, Progress
from train.core.monitor.metric_rows import Row
from train.core.tables import in_depth_order
from train.core.workdir import directory
from train.core.workdir.checkpoint_files import state_sha256
from train.core.workdir.checkpoints import Checkpoints

# What a summary says of the last evaluation.
LAST = ("top1_error", "top5_error", "loss")


def evaluate(
    evaluation: Evaluation, eval_step: Any, weights: Mapping[str, Any], feed: Feed
) -> dict[str, float]:
    """Evaluates every image of a split once.

    Args:
      evaluation: What the split and the penalty are of.
      eval_step: Program from `build_eval_step`.
      weights: Variables of the network, by a prefix for the names of their figures; "" is one.
      feed: Feed of the split.

    Returns:
      `num_images`, `bad_records`, `loss`, `cross_entropy`, `penalty`, and `top1_error` and
      `top5_error` in percent, and with NAM `small_weights`, the percentage of its weights below
      `inspection.SMALL_WEIGHT` of their layer's mean; all but the first two for each prefix.

    Raises:
      RunError: no image can be read.
    """
    batches = []
    batch_size, split = evaluation.config.batch_size, evaluation.eval_split
    total = -(-split.num_examples // batch_size)
    with (
        contextlib.closing(feed.batches(0)) as fed,
        busy(f"evaluating {split.name}", total, "batches") as work,
    ):
        fitting = {name: fitted(evaluation, variables) for name, variables in weights.items()}
        for arguments in fed:
            batches.append({name: eval_step(v, *arguments) for name, v in fitting.items()})
            # The device holds no more batches than it has begun with.
            jax.block_until_ready(batches[-LAG:][0])
            work.advance()
    fetched = jax.device_get(batches)
    sums = jax.tree.map(lambda *values: sum(map(float, values)), *fetched)
    count = int(sums[""]["count"])
    if count == 0:
        raise RunError(
            f"no image of the split {evaluation.eval_split.name} can be read; python -m "
            "train.prepare check says why."
        )
    result: dict[str, float] = {
        "num_images": count,
        "bad_records": evaluation.eval_split.num_examples - count,
    }
    for prefix, variables in weights.items():
        errors = _errors(sums[prefix], variables, evaluation.config.optimizer.sparsity)
        result |= {f"{prefix}{name}": value for name, value in errors.items()}
    return result


def fitted(evaluation: Evaluation, variables: Any) -> Any:
    """Fits spatial NAM to images of the size that is evaluated, see `nam_jax.resize_spatial`.

    Args:
      evaluation: Evaluation whose images they are for.
      variables: Variables of the network, for images of the size that it is trained on.
    """
    shape = evaluation.eval_split.image_shape
    if shape == evaluation.source.image_shape:
        return variables
    resized = resize_spatial(variables, evaluation.model, (1, *shape))
    sharding = replicated(evaluation.mesh)
    return jax.tree.map(
        lambda leaf: put_whole(leaf, sharding) if isinstance(leaf, np.ndarray) else leaf, resized
    )


def evaluate_split(evaluation: Evaluation, weights: Mapping[str, Any]) -> dict[str, float]:
    """Evaluates every image of the evaluation split, as `evaluate` does."""
    return evaluate(evaluation, build_eval_step(evaluation), weights, eval_feed(evaluation))


def checkpoint_weights(
    evaluation: Evaluation, workdir: epath.Path, which: str
) -> tuple[int, Mapping[str, Any]]:
    """Reads the weights of a checkpoint of a run.

    Args:
      evaluation: Evaluation with the run's config, which may differ in what changes no checkpoint.
      workdir: Directory of the run.
      which: Which checkpoint, `last` or `best`, or `best_ema` for its averaged weights.

    Returns:
      The step of the checkpoint, and the variables, as `evaluate` takes them.

    Raises:
      ConfigError: there is no such run, or it was trained on other classes.
      RunError: there is no such checkpoint.
    """
    directory.check_config(
        workdir,
        evaluation.config,
        marked(Mark.FREE | Mark.EVALUATION),
        "Leave these fields as they were in training, or name another run by --workdir",
    )
    directory.check_classes(
        workdir,
        evaluation.source.class_names,
        "Name the run's own dataset by config.data.dir and config.data.classes, or another run by "
        "--workdir",
    )
    like = _abstract_variables(evaluation)
    averages = {"ema": like} if evaluation.config.ema_decay else {}
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        step = checkpoints.step_of(which)
        state, _ = checkpoints.restore(step, {**like, **averages})
    average = state.pop("ema", None)
    if which == "best_ema":
        return step, {"": average}
    return step, {"": state} if average is None else {"": state, "ema_": average}


def _abstract_variables(evaluation: Evaluation) -> dict[str, Any]:
    """Shapes, dtypes and shardings of the network's variables in a run."""
    shape, dtype = evaluation.source.image_shape, evaluation.config.model.dtype
    variables = abstract_variables(evaluation.model, (1, *shape))
    sharding = replicated(evaluation.mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(lambda variables: widened_to(variables, dtype), variables),
    )


def pretrained_weights(evaluation: Evaluation) -> Mapping[str, Any]:
    """Reads the weights of the file that the config names.

    Args:
      evaluation: Evaluation of a config that names a file.

    Returns:
      The variables, as `evaluate` takes them.

    Raises:
      ConfigError: the file cannot be read, or is not of all of the network.
    """
    if evaluation.eval_split.note:
        say(evaluation.eval_split.note)
    variables = load_pretrained(evaluation, may_be_fresh=False)
    variables = widened_to(variables, evaluation.config.model.dtype)
    return {"": jax.device_put(variables, replicated(evaluation.mesh))}


def evaluate_gates(
    evaluation: Evaluation, variables: Any
) -> tuple[dict[str, float], dict[str, GateStatistics]]:
    """Looks at the gates of NAM for every image of the evaluation split.

    Args:
      evaluation: Evaluation whose split is looked at.
      variables: Variables of the network.

    Returns:
      The errors with every gate replaced by 0.5, as of `evaluate`, and the statistics of each
      layer's gates, from input to output; none without NAM.
    """
    gate_step, halved_step = build_gate_step(evaluation), build_eval_step(evaluation)
    moments = []

    def step(variables: Any, *arguments: Any) -> Any:
        moments.append(jax.device_get(gate_step(variables, *arguments)))
        with half_gates():
            return halved_step(variables, *arguments)

    halved = evaluate(evaluation, step, {"": variables}, eval_feed(evaluation))
    layers = in_depth_order(statistics_of(moments))
    return {f"half_gates_{name}": halved[name] for name in LAST}, layers


def summarize(
    experiment: Experiment, state: TrainState, progress: Progress, rows: list[Row]
) -> dict[str, Any]:
    """What summary.json says of a finished run.

    Args:
      experiment: Experiment of the run.
      state: State after the last update.
      progress: What was counted up to the last update.
      rows: Rows of the run.

    Raises:
      RunError: the rows hold no evaluation.
    """
    evaluations = [row for row in rows if row["split"] == "eval"]
    needed = {"num_images", *(f"{prefix}{name}" for prefix in state.evaluated for name in LAST)}
    if not evaluations or not all(needed <= row.keys() for row in evaluations):
        raise RunError(
            "the rows of the run lack its evaluations; its weights are whole, and python -m "
            "train.evaluate gives their errors."
        )
    images = experiment.total_steps * experiment.config.batch_size
    return {
        **_errors_of_run(evaluations, ""),
        **(_errors_of_run(evaluations, "ema_") if state.ema is not None else {}),
        "num_eval_images": evaluations[-1]["num_images"],
        "steps": experiment.total_steps,
        "devices": describe(experiment.mesh),
        "params": parameters(state.params),
        "macs": multiply_adds(experiment.model, experiment.train_split.image_shape),
        "wall_seconds": round(progress.wall_seconds, 1),
        "images_per_second": round(images / progress.train_seconds, 1),
        "state_sha256": state_sha256((state.params, state.batch_stats, state.opt_state)),
    }


def _errors_of_run(evaluations: list[Row], prefix: str) -> dict[str, Any]:
    """The last figures and the best, of the weights whose figures have a prefix."""
    error = f"{prefix}top1_error"
    best = min(evaluations, key=lambda row: (row[error], -row["step"]))
    last = {f"{prefix}{name}": evaluations[-1][f"{prefix}{name}"] for name in LAST}
    return {**last, f"best_{error}": best[error], f"best_{prefix}step": best["step"]}


def _errors(sums: dict[str, float], variables: Any, sparsity: float) -> dict[str, float]:
    penalty = float(sparsity_penalty(variables["params"], sparsity))
    cross_entropy = sums["cross_entropy"] / sums["count"]
    small = small_weight_percentage(variables["params"])
    return {
        "loss": cross_entropy + penalty,
        "cross_entropy": cross_entropy,
        "penalty": penalty,
        "top1_error": 100 * sums["top1_wrong"] / sums["count"],
        "top5_error": 100 * sums["top5_wrong"] / sums["count"],
        **({} if small is None else {"small_weights": small}),
    }
