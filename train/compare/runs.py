"""Runs that differ in their attention, penalty and seed alone: which there are, what came out."""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from etils import epath

from nam_jax.attention import NAMES
from train.core.config.attentions import attention_name, with_attention
from train.core.config.checks import check_field
from train.core.config.fields import Config, marked, replaced
from train.core.config.model_fields import HYPERPARAMETERS
from train.core.config.parsing import from_fields
from train.core.config.spec import Mark
from train.core.errors import ConfigError
from train.core.workdir import directory, storage

# What the runs of a comparison may differ in.
VARIED = (
    "model.attention",
    *(f"model.{name}" for name in HYPERPARAMETERS),
    "optimizer.sparsity",
    "seed",
)

Number = TypeVar("Number", int, float)


@dataclasses.dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison.

    Attributes:
      config: Config of the run.
      summary: Contents of summary.json; None before the run is finished.
    """

    config: Config
    summary: dict[str, Any] | None = None

    @property
    def attention(self) -> str:
        """Its attention, such as `nam` or `nam+normalization=mean`."""
        return attention_name(self.config)

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
        """The name of its directory."""
        return f"{self.variant}-seed{self.seed}"


def asked(
    config: Config,
    names: Sequence[str] | None = None,
    seeds: Sequence[str] | None = None,
    sparsities: Sequence[str] | None = None,
    only: str | None = None,
) -> list[ComparedRun]:
    """The runs that a command line asks for.

    Args:
      config: Config that they have in common.
      names: Attentions, see `with_attention`; default: none, and the config's.
      seeds: What --seeds lists; default: the config's seed.
      sparsities: What --sparsity lists; default: the config's strength.
      only: What --only says; default: all runs.

    Raises:
      ConfigError: an option says what it may not.
    """
    names = names or list(dict.fromkeys(["none", attention_name(config)]))
    drawn = [config.seed] if seeds is None else listed_numbers("seeds", seeds, int, "seed")
    if sparsities is None:
        return share(plan(config, names, drawn), only)
    strengths = listed_numbers("sparsity", sparsities, float, "optimizer.sparsity")
    runs = plan(config, names, drawn, strengths)
    if any(strengths) and not any(run.sparsity for run in runs):
        raise ConfigError(
            f"--sparsity: got {','.join(sparsities)!r} with {', '.join(names)}, without NAM "
            "scales; leave it out, or name an attention that has some."
        )
    return share(runs, only)


def plan(
    config: Config,
    names: Sequence[str],
    seeds: Sequence[int],
    sparsities: Sequence[float] | None = None,
) -> list[ComparedRun]:
    """The runs of a comparison, all attentions with the first seed first.

    Args:
      config: Config that they have in common.
      names: Attentions, see `with_attention`.
      seeds: Seeds of the runs with each attention.
      sparsities: Strengths of the penalty, for attentions with NAM scales; default: the config's.
    """
    strengths = [config.optimizer.sparsity] if sparsities is None else sparsities
    runs: dict[str, ComparedRun] = {}
    for seed, name, strength in itertools.product(seeds, names, strengths):
        varied = replaced(config, {"seed": seed, "optimizer.sparsity": strength})
        run = ComparedRun(with_attention(varied, name))
        # Without NAM scales all strengths are one.
        runs[run.name] = run
    return list(runs.values())


def share(runs: list[ComparedRun], only: str | None) -> list[ComparedRun]:
    """The runs that this machine trains.

    Args:
      runs: Runs of all machines.
      only: K/N, for every Nth from the Kth on; default: all.

    Raises:
      ConfigError: it is something else, or N is more than the runs.
    """
    if only is None:
        return runs
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", only)
    first, every = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first <= every <= len(runs):
        raise ConfigError(
            f"--only: got {only!r}; allowed: K/N with K from 1 to N, and N at most the "
            f"{len(runs)} runs."
        )
    return runs[first - 1 :: every]


def listed_numbers(
    option: str, texts: Sequence[str], kind: Callable[[str], Number], field: str
) -> list[Number]:
    """The numbers that an option lists.

    Args:
      option: Name of the option.
      texts: What stands between its commas.
      kind: Type of the numbers, int or float.
      field: Field of the config that they are for.

    Raises:
      ConfigError: one is no such number, there twice, or not allowed there.
    """
    try:
        values = [kind(text) for text in texts]
    except ValueError:
        values = []
    if not values or len(set(values)) < len(values) or not all(0 <= n < math.inf for n in values):
        what = "whole numbers" if kind is int else "numbers"
        raise ConfigError(
            f"--{option}: got {','.join(texts)!r}; allowed: {what} from 0 on, each once, with "
            "commas between."
        )
    for value in values:
        try:
            check_field(field, value)
        except ConfigError as error:
            raise ConfigError(f"--{option}: {error}") from error
    return values


def read_runs(workdir: epath.Path, config: Config | None = None) -> list[ComparedRun]:
    """The runs in a directory, finished or not, in the order of `nam_jax.attention.NAMES`.

    Args:
      workdir: Directory of the comparison.
      config: Config that they have in common; default: that of the first one.

    Raises:
      ConfigError: they are not of one comparison.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"--workdir {workdir} is a file; name a directory.")
    if (workdir / "config.json").exists():
        raise ConfigError(
            f"--workdir {workdir} holds a single run; a comparison needs a directory of its own."
        )
    runs = []
    for path in storage.children(workdir):
        if not _is_there(path / "config.json"):
            continue
        run = ComparedRun(_config(path), directory.summary(path))
        if path.name != run.name:
            raise ConfigError(
                f"{path} holds the run {run.name}; rename it where {workdir} is a comparison, or "
                "name another directory by --workdir."
            )
        config = run.config if config is None else config
        advice = (
            f"Runs of a comparison differ in attention, penalty and seed alone; move this one out "
            f"of {workdir}, or name another directory by --workdir"
        )
        directory.check_config(path, config, marked(Mark.FREE) | set(VARIED), advice)
        runs.append(run)
    return sorted(runs, key=_order)


def _order(run: ComparedRun) -> tuple[Any, ...]:
    name = run.config.model.attention
    return NAMES.index(name), run.attention, run.sparsity, run.seed


def _is_there(path: epath.Path) -> bool:
    # Not exists, which is False as well for what may not be read.
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _config(path: epath.Path) -> Config:
    fields = directory.saved_fields(path)
    try:
        return from_fields(fields)
    except ConfigError as error:
        raise ConfigError(f"{path} is no run of this comparison: {error}") from error
