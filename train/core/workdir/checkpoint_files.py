"""What a checkpoint holds on disk: reads it back, and finds out whether it is what was saved.

Layout: `<directory>/<step>/state` holds the train state, `progress` the time that it took,
`metrics`, where the step was evaluated, the result, and `digests` those of the three, with the
step: Orbax has none, and reads a flipped bit as another number.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from train.core.errors import reason_and_file
from train.core.workdir import storage

# What is kept no longer, until it is removed; a bucket has no such directory.
REMOVED = "removed"


class DamagedError(Exception):
    """A checkpoint is not what was saved; the message says why."""


def state_sha256(state: Any) -> str:
    """A digest of the paths, dtypes, shapes and bytes of all arrays of a tree.

    A tree of dicts and lists, as Orbax reads it back, has that of the objects that were saved.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(by_name(state).items()):
        array = np.asarray(leaf)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, equal for an object and for the dict of its fields."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def json_sha256(value: Any) -> str:
    """A digest of what a JSON file holds."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def saved_steps(directory: epath.Path) -> list[int]:
    """The steps of the finished checkpoints in a directory, or of what looks like one."""
    with storage.reporting(directory):
        finished = ocp.path.step.standard_name_format().find_all(directory)
        return sorted(metadata.step for metadata in finished)


def read(path: epath.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a checkpoint. Waits for no other process.

    Args:
      path: Directory of the checkpoint, `<directory>/<step>`.

    Returns:
      The state, as trees of dicts and lists with NumPy arrays, and the progress.

    Raises:
      DamagedError: it is not what was saved, or cannot be read.
    """
    with _finding_damage():
        progress, digests = _read_figures(path)
        state = _read_state(path)
        _compare("state", state_sha256(state), digests)
    return state, progress


def read_evaluation(path: epath.Path) -> dict[str, float] | None:
    """Reads the evaluation of a checkpoint, None without one, and checks all but its state.

    Args:
      path: Directory of the checkpoint, `<directory>/<step>`.

    Raises:
      DamagedError: it is not what was saved, or cannot be read.
    """
    with _finding_damage():
        _, digests = _read_figures(path)
        return _read_json(path, "metrics") if digests["metrics"] else None


def _read_figures(path: epath.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    progress, digests = _read_json(path, "progress"), _read_json(path, "digests")
    if digests.get("step") != int(path.name):
        raise DamagedError(f"its digests are those of step {digests.get('step')}")
    _compare("progress", json_sha256(progress), digests)
    if digests["metrics"]:
        _compare("metrics", json_sha256(_read_json(path, "metrics")), digests)
    return progress, digests


@contextlib.contextmanager
def _finding_damage() -> Iterator[None]:
    try:
        yield
    # What is damaged raises errors of all kinds.
    except Exception as error:
        raise DamagedError(reason_and_file(error)) from error


def _compare(name: str, digest: str, saved: Mapping[str, Any]) -> None:
    if digest != saved[name]:
        raise DamagedError(f"the digest of its {name} is another than when it was saved")


def _read_json(path: epath.Path, item: str) -> Any:
    # Where Orbax puts them.
    name = "metrics" if item == "metrics" else "metadata"
    return json.loads((path / item / name).read_text())


def _read_state(path: epath.Path) -> dict[str, Any]:
    path = storage.absolute(path)
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
        description = reader.metadata(path / "state").item_metadata
        if description is None:
            raise DamagedError("its state has no description that can be read")
        # Otherwise the devices that it was saved on would have to be there.
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), description.tree)
        return reader.restore(path / "state", ocp.args.PyTreeRestore(restore_args=as_numpy))
