"""What a run finds when it goes on: damaged checkpoints are set aside, nothing is deleted."""

import re

from etils import epath

from train.core.devices import processes
from train.core.devices.busy import busy
from train.core.errors import RunError
from train.core.workdir import checkpoint_files, storage
from train.core.workdir.checkpoint_files import DamagedError

ASIDE = "damaged"
# Names in `checkpoints` of what a run leaves there.
OWN = rf"(0|[1-9]\d*)(\.orbax-checkpoint-tmp.*)?|{checkpoint_files.REMOVED}"


def set_damaged_aside(workdir: epath.Path) -> None:
    """Moves what is no whole checkpoint out of `checkpoints`, so that the one before counts.

    Of the whole checkpoints the newest is read in full: it is the one that a run goes on from.
    Called by all processes.

    Args:
      workdir: Directory of the run; what is moved goes to `damaged` in it.

    Raises:
      RunError: there are checkpoints, and none is whole; nothing is moved then.
    """
    if processes.is_main():
        directory = workdir / "checkpoints"
        with busy("checking the checkpoints"):
            damage = {**_foreign(directory), **_damaged(directory)}
        for name, reason in damage.items():
            place = _free(workdir / ASIDE / name)
            storage.move(directory / name, place)
            print(f"warning: checkpoints/{name} {reason} It is now {place}", flush=True)
    processes.barrier("damaged checkpoints are set aside")


def _damaged(directory: epath.Path) -> dict[str, str]:
    """What is wrong with checkpoints that are not whole, by their names."""
    damage: dict[str, str] = {}
    has_whole = False
    for step in reversed(checkpoint_files.saved_steps(directory)):
        try:
            if has_whole:
                checkpoint_files.read_evaluation(directory / str(step))
            else:
                checkpoint_files.read(directory / str(step))
                has_whole = True
        except DamagedError as error:
            damage[str(step)] = f"is damaged: {error}"
    if damage and not has_whole:
        reasons = "; ".join(f"{step} {reason.rstrip('.')}" for step, reason in damage.items())
        raise RunError(
            f"no checkpoint in {directory} is whole: {reasons}. Nothing was changed; to start from "
            "the beginning, give another --workdir."
        )
    return damage


def _foreign(directory: epath.Path) -> dict[str, str]:
    return {
        path.name: "is no checkpoint."
        for path in storage.children(directory)
        if path.is_dir() and not re.fullmatch(OWN, path.name)
    }


def _free(path: epath.Path) -> epath.Path:
    """The path, with a number behind it where it is taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
