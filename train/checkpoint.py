"""Checkpoints through Orbax: asynchronous, the latest ones and the best.

Layout: `<directory>/<step>/state` holds the train state, `progress` the time that it took,
and `metrics`, where the step was evaluated, the result. While a checkpoint is being written its
directory has a longer name; in a bucket it lacks `commit_success.txt`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from train import storage
from train.errors import RunError

State = TypeVar("State")


def state_sha256(state: Any) -> str:
    """A digest of the paths, dtypes, shapes and bytes of all arrays of a tree, in its order."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def has_any(directory: epath.Path) -> bool:
    """Whether a directory holds a finished checkpoint."""
    with storage.reporting(directory):
        return any(ocp.path.step.standard_name_format().find_all(directory))


class Checkpoints:
    """The checkpoints of one run.

    A context manager: leaving it waits until the last checkpoint is on disk.
    """

    def __init__(self, directory: epath.Path, keep: int | None = None):
        """Opens the directory.

        Args:
          directory: of all the checkpoints of a run.
          keep: how many of the latest to keep, at least 2; the best is kept as well. None: only
            to read, beside a run that may be writing.
        """

        def error(metrics: Mapping[str, float]) -> float:
            return metrics["top1_error"]

        best = checkpoint_managers.BestN(
            get_metric_fn=error, reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            read_only=keep is None,
            create=keep is not None,
            best_fn=error,
            best_mode="min",
            # Not max_to_keep: with best_fn it would delete the latest when it is not the best.
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                [checkpoint_managers.LatestN(keep), best]
            ),
            cleanup_tmp_directories=keep is not None,
        )
        # Orbax wants absolute paths, which those of a bucket are; epath does not know that.
        directory = directory if storage.is_bucket(directory) else directory.absolute()
        self._manager = ocp.CheckpointManager(directory, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """The step of the latest checkpoint, None without any."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step of the evaluation with the lowest top-1 error, the later one of equals."""
        return self._manager.best_step()

    def save(
        self,
        step: int,
        state: Any,
        progress: Mapping[str, float],
        evaluation: Mapping[str, float] | None,
    ) -> None:
        """Starts to write a checkpoint; the state may be donated as soon as this returns.

        Args:
          step: of the state.
          state: a tree of arrays.
          progress: any figures to be restored beside it.
          evaluation: the result at this step, with `top1_error`; None without one.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(dict(progress))
        )
        self._manager.save(step, args=args, metrics=evaluation)

    def wait(self) -> None:
        """Waits until the last checkpoint is on disk.

        Raises:
          Exception: what made writing it fail.
        """
        self._manager.wait_until_finished()

    def restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        """Reads a checkpoint.

        Args:
          step: of the checkpoint.
          like: a state of the same structure, shapes, dtypes and shardings.

        Returns:
          The state and the progress, as saved.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like)),
            progress=ocp.args.JsonRestore(),
        )
        restored = self._manager.restore(step, args=args)
        return restored["state"], restored["progress"]

    def restore_parts(self, step: int, *names: str) -> dict[str, Any]:
        """Reads parts of a checkpoint's state, without a state of the same structure.

        Args:
          step: of the checkpoint.
          *names: of fields of the state, such as `params`.

        Returns:
          The parts by name: trees of dicts with NumPy arrays, whatever devices they were saved on.

        Raises:
          RunError: it is damaged, or gone by now.
        """
        try:
            return self._restore_parts(step, names)
        # What is damaged raises errors of all kinds.
        except Exception as error:
            reason = storage.reason(error)
            raise RunError(f"the checkpoint of step {step} cannot be read: {reason}") from error

    def _restore_parts(self, step: int, names: Sequence[str]) -> dict[str, Any]:
        path = self._manager.directory / str(step) / "state"
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            saved = reader.metadata(path).item_metadata.tree
            wanted = {name: saved[name] for name in names}
            args = ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), wanted),
                partial_restore=True,
            )
            return reader.restore(path, args)
