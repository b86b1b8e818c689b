"""The training loop."""

import contextlib
import time
from typing import Any

import jax
from etils import epath

from nam_jax import sparsity_penalty
from train import assembly, distributed, pretrained, programs
from train import rows as rows_lib
from train import step as step_lib
from train import workdir as workdir_lib
from train.checkpoint import Checkpoints, has_any, state_sha256
from train.config import EVALUATION_FREE_FIELDS
from train.data.feed import Feed
from train.errors import PreemptedError, RunError
from train.experiment import Experiment
from train.metrics import LAG, Log, NonFiniteError, Progress
from train.profile import Profiler, Span
from train.rows import Row
from train.size import multiply_adds, parameters
from train.storage import write_json


def evaluate(
    experiment: Experiment, eval_step: Any, state: step_lib.TrainState, feed: Feed
) -> dict[str, float]:
    """Evaluates every image of a split once.

    Args:
      experiment: the run.
      eval_step: from `programs.build_eval_step`.
      state: whose weights are evaluated, and the averaged ones beside them.
      feed: of the split.

    Returns:
      `num_images`, `bad_records`, `loss`, `cross_entropy`, `penalty`, and `top1_error` and
      `top5_error` in percent; the same of the averaged weights, where there are any, with the
      prefix `ema_`.

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


def _errors(sums: dict[str, float], variables: Any, sparsity: float) -> dict[str, float]:
    penalty = float(sparsity_penalty(variables["params"], sparsity))
    cross_entropy = sums["cross_entropy"] / sums["count"]
    return {
        "loss": cross_entropy + penalty,
        "cross_entropy": cross_entropy,
        "penalty": penalty,
        "top1_error": 100 * sums["top1_wrong"] / sums["count"],
        "top5_error": 100 * sums["top5_wrong"] / sums["count"],
    }


def train(
    experiment: Experiment, workdir: epath.Path, profile: Span | None = None
) -> dict[str, Any] | None:
    """Trains to the end, from the last checkpoint in workdir where there is one.

    Args:
      experiment: the run.
      workdir: where everything is written.
      profile: the steps to trace.

    Returns:
      The summary, as in summary.json; None in all processes but the main one.

    Raises:
      ConfigError: the directory belongs to a run of another config.
      RunError: a loss or an update is not finite.
      PreemptedError: it was told to stop, and has saved a checkpoint.
    """
    imported = None if has_any(workdir / "checkpoints") else _pretrained(experiment)
    if distributed.is_main():
        workdir_lib.claim(workdir, experiment.config)
    distributed.barrier("the directory is claimed")
    # Another config, or a directory that is not the same, would make for a mixed run.
    workdir_lib.check(workdir, experiment.config)
    finished = workdir_lib.summary(workdir)
    if finished is not None:
        distributed.say(f"the run in {workdir} is finished")
        return finished if distributed.is_main() else None
    with (
        distributed.Preemption() as preemption,
        Checkpoints(workdir / "checkpoints", experiment.config.checkpoint.keep) as checkpoints,
        Profiler(workdir / "profile", profile) as profiler,
    ):
        state, progress = _restore_or_init(experiment, checkpoints, imported)
        if state.step < experiment.total_steps:
            try:
                state, progress = _run_steps(
                    experiment, workdir, checkpoints, preemption, profiler, state, progress
                )
            except NonFiniteError as error:
                raise RunError(_advice(error, checkpoints, workdir)) from error
    if not distributed.is_main():
        return None
    summary = summarize(experiment, state, progress, rows_lib.of(workdir).rows())
    write_json(workdir / "summary.json", summary)
    return summary


def evaluate_checkpoint(
    experiment: Experiment, workdir: epath.Path, which: str
) -> tuple[int, dict[str, float]]:
    """Evaluates a checkpoint of a run.

    Args:
      experiment: the run; its config may differ in EVALUATION_FREE_FIELDS.
      workdir: of the run.
      which: `last` or `best`.

    Returns:
      The step of the checkpoint, and the result as of `evaluate`.

    Raises:
      ConfigError: there is no such run.
      RunError: there is no such checkpoint.
    """
    workdir_lib.check(workdir, experiment.config, EVALUATION_FREE_FIELDS)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        step = checkpoints.latest_step() if which == "last" else checkpoints.best_step()
        if step is None:
            raise RunError(f"the run in {workdir} has no {which} checkpoint yet.")
        state, _ = checkpoints.restore(step, assembly.initial_state(experiment))
    eval_step = programs.build_eval_step(experiment.model, experiment.config, experiment.mesh)
    return step, evaluate(experiment, eval_step, state, assembly.eval_feed(experiment))


def _pretrained(experiment: Experiment) -> Any:
    """The variables that the run starts with where they come from a file, else None."""
    if not experiment.config.model.pretrained:
        return None
    return pretrained.load(
        experiment.config.model.pretrained,
        experiment.model,
        experiment.train_split.num_classes,
        experiment.train_split.image_shape,
        step_lib.streams(experiment.config.seed)["init"],
    )


def _restore_or_init(
    experiment: Experiment, checkpoints: Checkpoints, imported: Any
) -> tuple[step_lib.TrainState, Progress]:
    state = assembly.initial_state(experiment, imported)
    latest = checkpoints.latest_step()
    if latest is None:
        return state, Progress()
    distributed.say(f"going on from the checkpoint of step {latest}")
    state, progress = checkpoints.restore(latest, state)
    return state, Progress(**progress)


def _advice(error: NonFiniteError, checkpoints: Checkpoints, workdir: epath.Path) -> str:
    checkpoints.wait()
    latest = checkpoints.latest_step()
    kept = (
        "there is no checkpoint yet" if latest is None else f"the last good checkpoint is {latest}"
    )
    return (
        f"{error}; {kept} in {workdir}. Try a lower config.optimizer.learning_rate, or set "
        "config.optimizer.warmup_epochs or config.optimizer.clip_norm."
    )


def _run_steps(
    experiment: Experiment,
    workdir: epath.Path,
    checkpoints: Checkpoints,
    preemption: distributed.Preemption,
    profiler: Profiler,
    state: step_lib.TrainState,
    progress: Progress,
) -> tuple[step_lib.TrainState, Progress]:
    start = int(state.step)
    training, evaluation_feed = assembly.train_feed(experiment), assembly.eval_feed(experiment)
    train_step, eval_step = _compile(experiment, state, training, evaluation_feed)
    with (
        contextlib.closing(training.batches(start)) as batches,
        _open_log(experiment, workdir, progress, start) as log,
    ):
        for steps in experiment.dispatches(start):
            with log.waiting_for_data():
                arguments = next(batches)
            profiler.before(steps)
            state, metrics = train_step(state, *arguments)
            profiler.after(steps, state)
            log.train(steps, metrics)
            step, is_preempted = steps[-1], preemption.reached()
            if experiment.is_saved(step) or is_preempted:
                log.flush(step)
                with log.training_paused():
                    evaluation = None
                    if experiment.is_evaluated(step):
                        evaluation = evaluate(experiment, eval_step, state, evaluation_feed)
                        log.evaluation(step, evaluation)
                    if not step_lib.is_finite(state):
                        raise NonFiniteError(f"the update of step {step} is not finite")
                    checkpoints.save(step, state, log.progress._asdict(), evaluation)
            if is_preempted and step < experiment.total_steps:
                checkpoints.wait()
                raise PreemptedError(f"stopped after step {step}, which is saved")
        return state, log.progress


def _open_log(experiment: Experiment, workdir: epath.Path, progress: Progress, start: int) -> Log:
    return Log(
        workdir,
        progress,
        start_step=start,
        total_steps=experiment.total_steps,
        steps_per_epoch=experiment.steps_per_epoch,
        batch_size=experiment.config.batch_size,
        log_every_steps=experiment.config.log_every_steps,
    )


def _compile(experiment: Experiment, state: Any, training: Feed, evaluation: Feed) -> Any:
    """Compiles both steps ahead of time, so that no speed figure contains a compilation."""
    start = time.monotonic()
    model, devices = experiment.config.model, experiment.mesh.devices
    distributed.say(
        f"{model.name}, attention {model.attention}, {parameters(state.params):,} parameters, "
        f"{experiment.total_steps:,} steps, {devices.size} × {devices.flat[0].device_kind}"
    )
    eval_step = programs.build_eval_step(experiment.model, experiment.config, experiment.mesh)
    compiled = (
        assembly.lower_train_step(experiment, state, training.example).compile(),
        eval_step.lower(state.variables, *evaluation.example).compile(),
    )
    distributed.say(f"compiled in {time.monotonic() - start:.1f} s")
    return compiled


def summarize(
    experiment: Experiment, state: step_lib.TrainState, progress: Progress, rows: list[Row]
) -> dict[str, Any]:
    """What summary.json says of a finished run.

    Args:
      experiment: the run.
      state: after the last update.
      progress: after the last update.
      rows: of the run.
    """
    evaluations = [row for row in rows if row["split"] == "eval"]
    best = min(evaluations, key=lambda row: (row["top1_error"], -row["step"]))
    images = experiment.total_steps * experiment.config.batch_size
    return {
        **{name: evaluations[-1][name] for name in ("top1_error", "top5_error", "loss")},
        "best_top1_error": best["top1_error"],
        "best_step": best["step"],
        "num_eval_images": evaluations[-1]["num_images"],
        "steps": experiment.total_steps,
        "params": parameters(state.params),
        "macs": multiply_adds(experiment.model, experiment.train_split.image_shape),
        "wall_seconds": round(progress.wall_seconds, 1),
        "images_per_second": round(images / progress.train_seconds, 1),
        "state_sha256": state_sha256((state.params, state.batch_stats, state.opt_state)),
    }
