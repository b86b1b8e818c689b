"""Checkpoints through Orbax: asynchronous, the latest ones and the best.

`checkpoint_files` has the layout of each. While one is being written its directory has a longer
name; in a bucket it lacks `commit_success.txt`.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from train.core.devices import processes
from train.core.devices.busy import busy
from train.core.devices.mesh import put_copies
from train.core.errors import RunError, reason
from train.core.workdir import storage
from train.core.workdir.checkpoint_files import (
    REMOVED,
    DamagedError,
    by_name,
    json_sha256,
    read,
    read_evaluation,
    saved_steps,
    state_sha256,
)

State = TypeVar("State")

_READING = "reading the checkpoint"
# By which error the best one is chosen.
_ERRORS = {"best": "top1_error", "best_ema": "ema_top1_error"}


def _as(like: State, state: dict[str, Any]) -> State:
    """The arrays of a state that was read, in the structure and on the devices of another."""
    saved, wanted = by_name(state), by_name(like)
    for name in sorted(saved.keys() | wanted.keys()):
        there, here = (
            (tree[name].dtype, tree[name].shape) if name in tree else "missing"
            for tree in (saved, wanted)
        )
        if there != here:
            raise ValueError(f"{name} is {there} there and {here} here")
    arrays = [put_copies(saved[name], leaf.sharding) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), arrays)


def _async_options() -> ocp.AsyncOptions:
    # Orbax's limit for writing goes by the clock, which may jump; alone, no process is waited for.
    return ocp.AsyncOptions(timeout_secs=10**9) if jax.process_count() == 1 else ocp.AsyncOptions()


class Checkpoints:
    """The checkpoints of one run.

    A context manager: leaving it waits until the last checkpoint is on disk.
    """

    def __init__(self, directory: epath.Path, keep: int | None = None):
        """Opens the directory.

        Args:
          directory: Directory of all the checkpoints of a run.
          keep: Number of the latest ones to keep, at least 2; the best is kept as well, and that
            of the averaged weights. None: only to read, beside a run that may be writing.

        Raises:
          RunError: what is in it cannot be read.
        """

        def error(metrics: Mapping[str, float]) -> float:
            return metrics["top1_error"]

        def ema_error(metrics: Mapping[str, float]) -> float:
            return metrics.get("ema_top1_error", error(metrics))

        best = [
            checkpoint_managers.BestN(
                get_metric_fn=function, reverse=True, n=1, keep_checkpoints_without_metrics=False
            )
            for function in (error, ema_error)
        ]
        options = ocp.CheckpointManagerOptions(
            read_only=keep is None,
            create=keep is not None,
            best_fn=error,
            best_mode="min",
            # Not max_to_keep: with best_fn it would delete the latest when it is not the best.
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                [checkpoint_managers.LatestN(keep), *best]
            ),
            cleanup_tmp_directories=keep is not None,
            # Renamed first: what a kill left of one that is being removed would seem damaged.
            todelete_subdir=REMOVED,
            async_options=_async_options(),
        )
        self._directory = storage.absolute(epath.Path(directory))
        self._saving: int | None = None
        self._writes = keep is not None
        with _explained(f"the checkpoints in {directory} cannot be read"):
            self._manager = ocp.CheckpointManager(self._directory, options=options)
            self._remove()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, *rest: object) -> None:
        try:
            with _explained(self._unwritten()):
                self._manager.close()
                self._remove()
        except RunError:
            # What ends the run already matters more.
            if kind is None:
                raise

    def latest_step(self) -> int | None:
        """The step of the latest checkpoint, None without any."""
        return self._manager.latest_step()

    def best_step(self, error: str = "top1_error") -> int | None:
        """The step of the evaluation with the lowest error, the later one of equals.

        Args:
          error: Name of the error's figure.

        Raises:
          RunError: the figures of a checkpoint are damaged.
        """
        found = {}
        for step in saved_steps(self._directory):
            with _explained(self._unread(step)):
                found[step] = read_evaluation(self._path(step)) or {}
        errors = {step: figures[error] for step, figures in found.items() if error in figures}
        return min(errors, key=lambda step: (errors[step], -step), default=None)

    def step_of(self, which: str) -> int:
        """The step of a checkpoint.

        Args:
          which: Which one is meant, `last`, `best` or `best_ema`.

        Raises:
          RunError: there is none yet, or the figures of one are damaged.
        """
        step = self.latest_step() if which == "last" else self.best_step(_ERRORS[which])
        if step is None:
            advice = "the run saves the first after an epoch, or config.checkpoint.every_steps"
            if which != "last":
                advice = "the run evaluates the first after config.eval_every_epochs"
            if which == "best_ema" and self.best_step() is not None:
                advice = "averages are kept only with config.ema_decay above 0; take best"
            raise RunError(f"there is no {which} checkpoint in {self._directory} yet; {advice}.")
        return step

    def save(
        self,
        step: int,
        state: Any,
        progress: Mapping[str, float],
        evaluation: Mapping[str, float] | None,
    ) -> None:
        """Starts to write a checkpoint; the state may be donated as soon as this returns.

        Args:
          step: Number of updates that the state has seen.
          state: Tree of arrays.
          progress: Figures to be restored beside it.
          evaluation: Result at this step, with `top1_error`; None without one.

        Raises:
          RunError: this one or the one before cannot be written.
        """
        digests = {
            "step": step,
            "state": state_sha256(state),
            "progress": json_sha256(dict(progress)),
            "metrics": None if evaluation is None else json_sha256(dict(evaluation)),
        }
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            progress=ocp.args.JsonSave(dict(progress)),
            digests=ocp.args.JsonSave(digests),
        )
        self.wait()
        self._saving = step
        with _explained(self._unwritten()):
            if not self._manager.save(step, args=args, metrics=evaluation):
                raise ValueError(f"there is one of step {self.latest_step()} already")

    def wait(self) -> None:
        """Waits until the last checkpoint is on disk.

        Raises:
          RunError: it cannot be written.
        """
        with _explained(self._unwritten()), busy("waiting until the checkpoint is written"):
            self._manager.wait_until_finished()
            self._remove()

    def restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        """Reads a checkpoint.

        Args:
          step: Step of the checkpoint.
          like: State of the same structure, shapes, dtypes and shardings, or a dict of some of its
            fields; of arrays, or what describes them.

        Returns:
          The state and the progress, as saved.

        Raises:
          RunError: it cannot be read, or is of another structure.
        """
        with _explained(self._unread(step)), busy(_READING):
            state, progress = read(self._path(step))
            if isinstance(like, dict):
                state = {name: state[name] for name in like}
            return _as(like, state), progress

    def restore_parts(self, step: int, *names: str) -> dict[str, Any]:
        """Reads parts of a checkpoint's state, without a state of the same structure.

        Args:
          step: Step of the checkpoint.
          *names: Names of fields of the state, such as `params`.

        Returns:
          The parts by name: trees of dicts with NumPy arrays, whatever devices they were saved on.

        Raises:
          RunError: it is damaged, or gone by now.
        """
        with _explained(self._unread(step)), busy(_READING):
            state, _ = read(self._path(step))
            return {name: state[name] for name in names}

    def _remove(self) -> None:
        """Removes what is kept no longer."""
        path = self._directory / REMOVED
        is_ours = self._writes and processes.is_main() and not storage.is_bucket(path)
        if is_ours and path.exists():
            path.rmtree()

    def _path(self, step: int) -> epath.Path:
        return self._directory / str(step)

    def _unread(self, step: int) -> str:
        return f"the checkpoint of step {step} in {self._directory} cannot be read"

    def _unwritten(self) -> str:
        return (
            f"the checkpoint of step {self._saving} cannot be written to {self._directory}; those "
            "before it are whole, and the same command goes on from there"
        )


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Makes one line of errors, which those of Orbax and what is below it are not."""
    try:
        yield
    except DamagedError as error:
        raise RunError(
            f"{what}: {reason(error)} A run that goes on sets the newest one aside, and those of "
            "which the evaluation is damaged; move another away by hand, while none goes on."
        ) from error
    except Exception as error:
        raise RunError(f"{what}: {reason(error)}") from error
