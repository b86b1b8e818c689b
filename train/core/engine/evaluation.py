"""Evaluation: of a state while it is trained, and of a checkpoint."""

import contextlib
from typing import Any

import jax
from etils import epath

from nam_jax import sparsity_penalty
from nam_jax.inspection import small_weight_percentage
from train.core.config.fields import marked
from train.core.config.spec import Mark
from train.core.data.feed import Feed
from train.core.engine import assembly, compiled_steps
from train.core.engine import step as step_lib
from train.core.engine.experiment import Experiment
from train.core.errors import RunError
from train.core.monitor.log import LAG
from train.core.workdir import directory as workdir_lib
from train.core.workdir.checkpoints import Checkpoints


def evaluate(
    experiment: Experiment, eval_step: Any, state: step_lib.TrainState, feed: Feed
) -> dict[str, float]:
    """Evaluates every image of a split once.

    Args:
      experiment: the run.
      eval_step: from `compiled_steps.build_eval_step`.
      state: whose weights are evaluated, and the averaged ones beside them.
      feed: of the split.

    Returns:
      `num_images`, `bad_records`, `loss`, `cross_entropy`, `penalty`, and `top1_error` and
      `top5_error` in percent, and with NAM `small_weights`, the percentage of its weights below
      `inspection.SMALL_WEIGHT` of their layer's mean; the same of the averaged weights, where there
      are any, with the prefix `ema_`.

    Raises:
      RunError: no image can be read.
    """
    weights = {"": state.variables} | ({"ema_": state.ema} if state.ema is not None else {})
    batches = []
    with contextlib.closing(feed.batches(0)) as fed:
        for arguments in fed:
            batches.append({name: eval_step(v, *arguments) for name, v in weights.items()})
            # The device holds no more batches than it has begun with.
            jax.block_until_ready(batches[-LAG:][0])
    fetched = jax.device_get(batches)
    sums = jax.tree.map(lambda *values: sum(map(float, values)), *fetched)
    count = int(sums[""]["count"])
    if count == 0:
        raise RunError(f"no image of the split {experiment.eval_split.name} can be read.")
    result: dict[str, float] = {
        "num_images": count,
        "bad_records": experiment.eval_split.num_examples - count,
    }
    for prefix, variables in weights.items():
        errors = _errors(sums[prefix], variables, experiment.config.optimizer.sparsity)
        result |= {f"{prefix}{name}": value for name, value in errors.items()}
    return result


def evaluate_checkpoint(
    experiment: Experiment, workdir: epath.Path, which: str
) -> tuple[int, dict[str, float]]:
    """Evaluates a checkpoint of a run.

    Args:
      experiment: the run; its config may differ in what changes no checkpoint.
      workdir: of the run.
      which: `last` or `best`.

    Returns:
      The step of the checkpoint, and the result as of `evaluate`.

    Raises:
      ConfigError: there is no such run.
      RunError: there is no such checkpoint.
    """
    workdir_lib.check(workdir, experiment.config, marked(Mark.FREE | Mark.EVALUATION))
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        step = checkpoints.step_of(which)
        state, _ = checkpoints.restore(step, assembly.initial_state(experiment))
    eval_step = compiled_steps.build_eval_step(experiment.model, experiment.config, experiment.mesh)
    return step, evaluate(experiment, eval_step, state, assembly.eval_feed(experiment))


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
