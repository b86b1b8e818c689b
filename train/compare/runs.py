"""Runs that differ in their attention, penalty and seed alone: which there are, what came out."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from etils import epath

from nam_jax.attention import NAMES
from train.core.config.checks import validate
from train.core.config.fields import Config, marked, replaced, with_attention
from train.core.config.spec import Mark
from train.core.errors import ConfigError
from train.core.workdir import directory as workdir_lib
from train.core.workdir import storage

# What the runs of a comparison may differ in.
AXES = ("model.attention", "optimizer.sparsity", "seed")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a comparison.

    Attributes:
      config: of the run.
      summary: as in summary.json; None before the run is finished.
    """

    config: Config
    summary: dict[str, Any] | None = None

    @property
    def attention(self) -> str:
        """The name of its attention."""
        return self.config.model.attention

    @property
    def sparsity(self) -> float:
        """The strength of its penalty."""
        return self.config.optimizer.sparsity

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.config.seed

    @property
    def variant(self) -> str:
        """What it has in common with runs of other seeds, such as `nam` or `nam-p0.0001`."""
        return self.attention + (f"-p{self.sparsity!r}" if self.sparsity else "")

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"{self.variant}-seed{self.seed}"


def plan(
    config: Config,
    names: Sequence[str],
    seeds: Sequence[int],
    sparsities: Sequence[float] | None = None,
) -> list[Run]:
    """The runs of a comparison, all attentions with the first seed first.

    Args:
      config: what they have in common.
      names: of the attentions.
      seeds: of the runs with each.
      sparsities: strengths of the penalty, for attentions with NAM scales; default: the config's.
    """
    strengths = [config.optimizer.sparsity] if sparsities is None else sparsities
    runs: dict[str, Run] = {}
    for seed, name, strength in itertools.product(seeds, names, strengths):
        varied = replaced(config, {"seed": seed, "optimizer.sparsity": strength})
        run = Run(with_attention(varied, name))
        # Without NAM scales all strengths are one.
        runs[run.name] = run
    return list(runs.values())


def read_runs(directory: epath.Path, config: Config | None = None) -> list[Run]:
    """The runs in a directory, finished or not, in the order of `nam_jax.attention.NAMES`.

    Args:
      directory: of the comparison.
      config: what they have in common; default: that of the first one.

    Raises:
      ConfigError: they are not of one comparison.
    """
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"--workdir {directory} is a file; name a directory.")
    if (directory / "config.json").exists():
        raise ConfigError(
            f"--workdir {directory} holds a single run; a comparison needs a directory of its own."
        )
    runs = []
    for path in storage.children(directory):
        if not _is_there(path / "config.json"):
            continue
        run = Run(_config(path), workdir_lib.summary(path))
        config = run.config if config is None else config
        workdir_lib.check(path, config, marked(Mark.FREE) | set(AXES))
        if path.name != run.name:
            raise ConfigError(f"{path} holds the run {run.name}; give the directory that name.")
        runs.append(run)
    return sorted(runs, key=lambda run: (NAMES.index(run.attention), run.sparsity, run.seed))


def _is_there(path: epath.Path) -> bool:
    # Not exists, which is False as well for what may not be read.
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _config(path: epath.Path) -> Config:
    config = workdir_lib.saved_config(path)
    try:
        validate(config)
    except ConfigError as error:
        raise ConfigError(f"{path} is no run of this comparison: {error}") from error
    return config
