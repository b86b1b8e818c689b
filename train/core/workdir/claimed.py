"""A run's directory while a run goes on in it."""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from etils import epath

from train.core.config.fields import Config
from train.core.data.sources.split import Split
from train.core.devices import environment
from train.core.devices.processes import barrier, is_main
from train.core.workdir import directory, image_list
from train.core.workdir.checkpoint_files import saved_steps
from train.core.workdir.lock import Lock, locked
from train.core.workdir.quarantine import set_damaged_aside
from train.core.workdir.storage import remove_temporary, write_json


@dataclasses.dataclass(frozen=True)
class Claim:
    """A directory that a run writes to.

    Attributes:
      workdir: Directory of the run.
      lock: Lock on it; None in all processes but the main one.
    """

    workdir: epath.Path
    lock: Lock | None

    def check_held(self) -> None:
        """Checks that the directory is still this run's.

        Raises:
          LostError: another run took it over.
        """
        if self.lock:
            self.lock.check_held()


@contextlib.contextmanager
def claimed(
    workdir: epath.Path, config: Config, dataset: Mapping[str, Any], splits: Collection[Split] = ()
) -> Iterator[Claim]:
    """Keeps a directory for a run, and makes it ready to go on in. Called by all processes.

    Args:
      workdir: Directory of the run; it is made where it is missing.
      config: Config of the run.
      dataset: What dataset.json says of the images.
      splits: Splits that the images are of.

    Raises:
      ConfigError: it holds a run of another config or of other images, another run is going on in
        it, or it cannot be written.
      RunError: no checkpoint in it is whole.
    """
    with locked(workdir) if is_main() else contextlib.nullcontext() as lock:
        if is_main():
            directory.claim(workdir, config)
            remove_temporary(workdir)
            if saved_steps(workdir / "checkpoints"):
                directory.check_classes(workdir, dataset["class_names"])
                # Of the others the list tells which.
                numbers = {each.name: each.num_examples for each in splits if not each.files}
                directory.check_images(workdir, dataset["image_shape"], numbers)
            image_list.keep(workdir, splits)
        barrier("the directory is claimed")
        if not is_main():
            # A directory that is not the same would make for a mixed run.
            directory.check_config(workdir, config)
        set_damaged_aside(workdir)
        if is_main():
            write_json(workdir / "environment.json", environment.describe())
            write_json(workdir / "dataset.json", dataset)
        yield Claim(workdir, lock)
