"""The training loop."""

import contextlib
import dataclasses
from typing import Any

from etils import epath

from nam_jax.models.size import multiply_adds, parameters
from train.core.data.feed import Feed
from train.core.devices import environment, mesh, processes
from train.core.engine import assembly, compiled_steps, pretrained
from train.core.engine import step as step_lib
from train.core.engine.evaluation import evaluate
from train.core.engine.experiment import Experiment
from train.core.errors import PreemptedError, RunError, explaining_memory, reason_and_file
from train.core.monitor import metric_rows as rows_lib
from train.core.monitor.log import Log, NonFiniteError, Progress
from train.core.monitor.metric_rows import Row
from train.core.monitor.profiler import Profiler, Span
from train.core.monitor.timing import Laps
from train.core.workdir import directory as workdir_lib
from train.core.workdir import quarantine
from train.core.workdir.checkpoint_files import saved_steps, state_sha256
from train.core.workdir.checkpoints import Checkpoints
from train.core.workdir.lock import Lock, locked
from train.core.workdir.storage import remove_temporary, write_json


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the steps of a run are made with."""

    experiment: Experiment
    workdir: epath.Path
    lock: Lock | None
    checkpoints: Checkpoints
    preemption: processes.Preemption
    profiler: Profiler
    startup: Laps

    def check_lock(self) -> None:
        """Stops where another run has taken the directory over."""
        if self.lock:
            self.lock.check_held()


def train(
    experiment: Experiment,
    workdir: epath.Path,
    profile: Span | None = None,
    startup: Laps | None = None,
) -> dict[str, Any] | None:
    """Trains to the end, from the last checkpoint in workdir where there is one.

    Args:
      experiment: the run.
      workdir: where everything is written.
      profile: the steps to trace.
      startup: what has been done so far; default: nothing.

    Returns:
      The summary, as in summary.json; None in all processes but the main one.

    Raises:
      ConfigError: the directory belongs to a run of another config, or another run is going on
        in it.
      RunError: a loss or an update is not finite, or there is not enough memory or room.
      PreemptedError: it was told to stop, and has saved a checkpoint.
    """
    startup = startup or Laps()
    imported = None if saved_steps(workdir / "checkpoints") else _pretrained(experiment)
    if imported is not None:
        processes.check_agreement({"config.model.pretrained's weights": state_sha256(imported)})
    finished = workdir_lib.summary(workdir)
    # All go on together, or none.
    processes.check_agreement({"the summary in --workdir": finished})
    if finished is not None:
        workdir_lib.check(workdir, experiment.config)
        processes.say(f"the run in {workdir} is finished")
        return finished if processes.is_main() else None
    with locked(workdir) if processes.is_main() else contextlib.nullcontext() as lock:
        if processes.is_main():
            workdir_lib.claim(workdir, experiment.config)
            remove_temporary(workdir)
        processes.barrier("the directory is claimed")
        # Another config, or a directory that is not the same, would make for a mixed run.
        workdir_lib.check(workdir, experiment.config)
        quarantine.set_damaged_aside(workdir)
        if processes.is_main():
            write_json(workdir / "environment.json", environment.describe())
        try:
            with explaining_memory():
                return _train(experiment, workdir, lock, imported, profile, startup)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise RunError(
                f"{reason_and_file(error)} What was saved is whole: make room where there is none, "
                "and the same command goes on from there."
            ) from error


def _train(
    experiment: Experiment,
    workdir: epath.Path,
    lock: Lock | None,
    imported: Any,
    profile: Span | None,
    startup: Laps,
) -> dict[str, Any] | None:
    with (
        processes.Preemption() as preemption,
        Checkpoints(workdir / "checkpoints", experiment.config.checkpoint.keep) as checkpoints,
        Profiler(workdir / "profile", profile) as profiler,
    ):
        state, progress = _restore_or_init(experiment, checkpoints, imported)
        startup.end("set-up")
        run = _Run(experiment, workdir, lock, checkpoints, preemption, profiler, startup)
        if state.step < experiment.total_steps:
            try:
                state, progress = _run_steps(run, state, progress)
            except NonFiniteError as error:
                raise RunError(_advice(error, checkpoints, workdir)) from error
        # What a finished run leaves is all there.
        checkpoints.wait()
    if not processes.is_main():
        return None
    run.check_lock()
    summary = summarize(experiment, state, progress, rows_lib.of(workdir).rows())
    write_json(workdir / "summary.json", summary)
    return summary


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
    processes.say(f"going on from the checkpoint of step {latest}")
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
    run: _Run, state: step_lib.TrainState, progress: Progress
) -> tuple[step_lib.TrainState, Progress]:
    experiment, start = run.experiment, int(state.step)
    training, evaluation_feed = assembly.train_feed(experiment), assembly.eval_feed(experiment)
    run.startup.end("data")
    train_step, eval_step = _compile(run, state, training, evaluation_feed)
    with (
        contextlib.closing(training.batches(start)) as batches,
        _open_log(run, progress, start) as log,
    ):
        for steps in experiment.dispatches(start):
            with log.waiting_for_data():
                arguments = next(batches)
            run.profiler.before(steps)
            state, metrics = train_step(state, *arguments)
            run.profiler.after(steps, state)
            log.train(steps, metrics)
            step, is_preempted = steps[-1], run.preemption.reached()
            run.check_lock()
            if experiment.is_saved(step) or is_preempted:
                log.flush(step)
                with log.training_paused():
                    evaluation = None
                    if experiment.is_evaluated(step):
                        evaluation = evaluate(experiment, eval_step, state, evaluation_feed)
                        log.evaluation(step, evaluation)
                    if not step_lib.is_finite(state):
                        raise NonFiniteError(f"the update of step {step} is not finite")
                    run.check_lock()
                    run.checkpoints.save(step, state, log.progress._asdict(), evaluation)
            if is_preempted and step < experiment.total_steps:
                run.checkpoints.wait()
                raise PreemptedError(f"stopped after step {step}, which is saved")
        return state, log.progress


def _open_log(run: _Run, progress: Progress, start: int) -> Log:
    experiment = run.experiment
    return Log(
        run.workdir,
        experiment.config,
        progress,
        start_step=start,
        total_steps=experiment.total_steps,
        steps_per_epoch=experiment.steps_per_epoch,
    )


def _compile(run: _Run, state: Any, training: Feed, evaluation: Feed) -> Any:
    """Compiles both steps ahead of time, so that no speed figure contains a compilation."""
    experiment = run.experiment
    model = experiment.config.model
    processes.say(
        f"{model.name}, attention {model.attention}, {parameters(state.params):,} parameters, "
        f"{experiment.total_steps:,} steps, {mesh.describe(experiment.mesh)}"
    )
    eval_step = compiled_steps.build_eval_step(experiment.model, experiment.config, experiment.mesh)
    lowered = (
        assembly.lower_train_step(experiment, state, training.example),
        eval_step.lower(state.variables, *evaluation.example),
    )
    run.startup.end("tracing")
    compiled = [program.compile() for program in lowered]
    run.startup.end("compilation")
    processes.say(f"ready after {run.startup}")
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

    Raises:
      RunError: the rows hold no evaluation.
    """
    evaluations = [row for row in rows if row["split"] == "eval"]
    needed = {"top1_error", "top5_error", "loss", "num_images"}
    if not evaluations or not all(needed <= row.keys() for row in evaluations):
        raise RunError("the rows of the run lack its evaluations; its weights are whole.")
    best = min(evaluations, key=lambda row: (row["top1_error"], -row["step"]))
    images = experiment.total_steps * experiment.config.batch_size
    return {
        **{name: evaluations[-1][name] for name in ("top1_error", "top5_error", "loss")},
        "best_top1_error": best["top1_error"],
        "best_step": best["step"],
        "num_eval_images": evaluations[-1]["num_images"],
        "steps": experiment.total_steps,
        "devices": mesh.describe(experiment.mesh),
        "params": parameters(state.params),
        "macs": multiply_adds(experiment.model, experiment.train_split.image_shape),
        "wall_seconds": round(progress.wall_seconds, 1),
        "images_per_second": round(images / progress.train_seconds, 1),
        "state_sha256": state_sha256((state.params, state.batch_stats, state.opt_state)),
    }
