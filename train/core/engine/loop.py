"""The training loop."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from nam_jax.models.size import parameters
from train.core.config.attentions import attention_name
from train.core.data.feed import Feed
from train.core.devices import mesh
from train.core.devices.busy import LOG_SECONDS, busy
from train.core.devices.processes import Preemption, check_agreement, is_main, say
from train.core.engine.compiled_steps import COMPILING, build_eval_step, lower_train_step
from train.core.engine.evaluation import evaluate, fitted, summarize
from train.core.engine.experiment import Experiment
from train.core.engine.feeds import eval_feed, train_feed
from train.core.engine.pretrained import load_pretrained
from train.core.engine.state import TrainState, initial_state, is_finite
from train.core.errors import PreemptedError, RunError, explaining_memory, reason_and_file
from train.core.monitor import metric_rows, weights_and_biases
from train.core.monitor.log import Log, NonFiniteError, Progress
from train.core.monitor.profiler import Profiler, Span
from train.core.monitor.timing import Laps
from train.core.monitor.weights_and_biases import Sender
from train.core.workdir import directory
from train.core.workdir.checkpoint_files import saved_steps, state_sha256
from train.core.workdir.checkpoints import Checkpoints
from train.core.workdir.claimed import Claim, claimed
from train.core.workdir.storage import write_json


def train(
    experiment: Experiment,
    workdir: epath.Path,
    profile: Span | None = None,
    startup: Laps | None = None,
) -> dict[str, Any] | None:
    """Trains to the end, from the last checkpoint in workdir where there is one.

    Args:
      experiment: Experiment to run.
      workdir: Directory where everything is written.
      profile: Steps to trace.
      startup: What has been done so far; default: nothing.

    Returns:
      The summary, as in summary.json; None in all processes but the main one.

    Raises:
      ConfigError: the directory belongs to a run of another config, another run is going on in
        it, or a package is missing.
      RunError: a loss or an update is not finite, or there is not enough memory or room.
      PreemptedError: it was told to stop, and has saved a checkpoint.
    """
    startup = startup or Laps()
    weights_and_biases.check_installed(experiment.config)
    # First: the weights of a file may fit the images of one process alone.
    splits = experiment.train_split, experiment.eval_split
    for split in splits:
        check_agreement(split.description)
        if split.note:
            say(split.note)
    variables = None if saved_steps(workdir / "checkpoints") else load_pretrained(experiment)
    finished = directory.summary(workdir)
    _agree(variables, finished)
    if finished is not None:
        directory.check_config(workdir, experiment.config)
        say(f"the run in {workdir} is finished")
        return finished if is_main() else None
    with (
        claimed(workdir, experiment.config, experiment.dataset, splits) as claim,
        _explained(),
    ):
        return _train(experiment, claim, variables, profile, startup)


def _agree(variables: Any, finished: Mapping[str, Any] | None) -> None:
    """Checks that all processes begin with the same, or none goes on."""
    check_agreement(
        {
            "config.model.pretrained's weights": state_sha256(variables),
            "the summary in --workdir": finished,
        }
    )


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Says in one line that there is not enough memory on a device, or room on a disk."""
    try:
        with explaining_memory():
            yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunError(
            f"{reason_and_file(error)} What was saved is whole: make room where there is none, "
            "and the same command goes on from there."
        ) from error


@dataclasses.dataclass(frozen=True)
class _Session:
    """What the steps are made with from one start to the next."""

    experiment: Experiment
    claim: Claim
    checkpoints: Checkpoints
    preemption: Preemption
    profiler: Profiler
    sender: Sender | None
    startup: Laps


def _train(
    experiment: Experiment, claim: Claim, variables: Any, profile: Span | None, startup: Laps
) -> dict[str, Any] | None:
    workdir = claim.workdir
    with (
        Preemption() as preemption,
        Checkpoints(workdir / "checkpoints", experiment.config.checkpoint.keep) as checkpoints,
        Profiler(workdir / "profile", profile) as profiler,
    ):
        with busy("setting up the network"):
            state, progress = _restore_or_init(experiment, checkpoints, variables)
        startup.end("set-up")
        with weights_and_biases.opened(workdir, experiment.config, int(state.step)) as sender:
            session = _Session(
                experiment, claim, checkpoints, preemption, profiler, sender, startup
            )
            return _to_the_end(session, state, progress)


def _to_the_end(session: _Session, state: TrainState, progress: Progress) -> dict[str, Any] | None:
    experiment, workdir = session.experiment, session.claim.workdir
    if state.step < experiment.total_steps:
        try:
            state, progress = _run_steps(session, state, progress)
        except NonFiniteError as error:
            raise RunError(_advice(error, session.checkpoints, workdir)) from error
    # What a finished run leaves is all there.
    session.checkpoints.wait()
    if not is_main():
        return None
    session.claim.check_held()
    summary = summarize(experiment, state, progress, metric_rows.of(workdir).rows())
    write_json(workdir / "summary.json", summary)
    if session.sender:
        session.sender.finish(summary)
    return summary


def _restore_or_init(
    experiment: Experiment, checkpoints: Checkpoints, variables: Any
) -> tuple[TrainState, Progress]:
    state = initial_state(experiment, variables)
    latest = checkpoints.latest_step()
    if latest is None:
        return state, Progress()
    say(f"going on from the checkpoint of step {latest}")
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
    session: _Session, state: TrainState, progress: Progress
) -> tuple[TrainState, Progress]:
    experiment, start = session.experiment, int(state.step)
    feed, evaluation_feed = train_feed(experiment), eval_feed(experiment)
    session.startup.end("data")
    train_step, eval_step = _compile(session, state, feed, evaluation_feed)
    with (
        contextlib.closing(feed.batches(start)) as batches,
        _open_log(session, progress, start) as log,
        busy("training", experiment.total_steps - start, "steps", patience=LOG_SECONDS) as work,
    ):
        for steps in experiment.dispatches(start):
            with log.waiting_for_data():
                arguments = next(batches)
            session.profiler.before(steps)
            state, metrics = train_step(state, *arguments)
            session.profiler.after(steps, state)
            log.train(steps, metrics)
            work.advance(len(steps))
            step, is_preempted = steps[-1], session.preemption.reached()
            session.claim.check_held()
            if experiment.is_saved(step) or is_preempted:
                _save(session, log, step, state, eval_step, evaluation_feed)
            if is_preempted and step < experiment.total_steps:
                session.checkpoints.wait()
                raise PreemptedError(f"stopped after step {step}, which is saved")
        return state, log.progress


def _save(
    session: _Session, log: Log, step: int, state: TrainState, eval_step: Any, feed: Feed
) -> None:
    """Saves a step, evaluated where that is due, if all of it is finite."""
    experiment, evaluation = session.experiment, None
    log.flush(step)
    with log.training_paused():
        if experiment.is_evaluated(step):
            evaluation = evaluate(experiment, eval_step, state.evaluated, feed)
            log.evaluation(step, evaluation)
        if not is_finite(state):
            raise NonFiniteError(f"the update of step {step} is not finite")
        session.claim.check_held()
        session.checkpoints.save(step, state, log.progress._asdict(), evaluation)


def _open_log(session: _Session, progress: Progress, start: int) -> Log:
    experiment = session.experiment
    return Log(
        session.claim.workdir,
        experiment.config,
        progress,
        start_step=start,
        total_steps=experiment.total_steps,
        steps_per_epoch=experiment.steps_per_epoch,
        sender=session.sender,
    )


def _compile(session: _Session, state: TrainState, feed: Feed, evaluation_feed: Feed) -> Any:
    """Compiles both steps ahead of time, so that no speed figure contains a compilation."""
    experiment = session.experiment
    config = experiment.config
    say(
        f"{config.model.name}, attention {attention_name(config)}, {parameters(state.params):,} "
        f"parameters, {experiment.total_steps:,} steps, {mesh.describe(experiment.mesh)}"
    )
    with busy(COMPILING):
        lowered = (
            lower_train_step(experiment, state, feed.example),
            build_eval_step(experiment).lower(
                fitted(experiment, state.variables), *evaluation_feed.example
            ),
        )
        session.startup.end("tracing")
        compiled = [program.compile() for program in lowered]
        session.startup.end("compilation")
    say(f"ready after {session.startup}")
    return compiled
