r"""Trains a network with several attentions and seeds, and compares what comes out.

Usage: python -m train.compare --config FILE --workdir DIR
                               [--attention NAME,...] [--seeds N,...]
                               [--sparsity P,...] [--only K/N]
                               [--config.FIELD=VALUE ...]
       python -m train.compare --report --workdir DIR

  --config FILE          the experiment; configs/ holds examples
  --workdir DIR          where all runs and the tables are written
  --attention NAME,...   default: none and the config's
  --seeds N,...          default: the config's
  --sparsity P,...       strengths of the penalty for NAM; default: the config's
  --only K/N             every Nth run from the Kth on: N machines share the work
  --report               only the tables, of the runs that are in DIR
  --config.FIELD=VALUE   overrides a field; python -m train.config lists them

Writes estimates.csv, estimates.md and estimates.png after every run. The same
command goes on where it was stopped. Needs pip install '.[train,plot]'.

Example:
  python -m train.compare --config configs/digits_resnet20.py \
      --workdir runs/digits --attention none,se,nam --seeds 0,1,2

Exit codes: 0 done, 1 failed, 2 the command line or the config is wrong,
75 told to stop (SIGTERM, Ctrl-C) and saved: the same command goes on.
"""

import datetime
import math
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
from absl import flags
from etils import epath

from train.compare import chart, estimates
from train.compare.runs import Run, plan, read_runs
from train.core import attentions, command_line, plotting
from train.core.config import checks
from train.core.devices import compilation_cache, processes
from train.core.engine import loop
from train.core.engine.experiment import Experiment, build_experiment
from train.core.errors import ConfigError, PreemptedError, RunError, reason
from train.core.workdir import storage

SEEDS = flags.DEFINE_list("seeds", None, "The seeds of the runs with each attention.")
SPARSITY = flags.DEFINE_list("sparsity", None, "Strengths of the penalty.")
ONLY = flags.DEFINE_string("only", None, "K/N: every Nth run from the Kth on.")
REPORT = flags.DEFINE_bool("report", False, "Only make the tables.")

Number = TypeVar("Number", int, float)


def main() -> None:
    """Trains what is not trained yet, and makes the tables."""
    plotting.check_installed()
    workdir = command_line.named_workdir()
    if not REPORT.value:
        train_all(_planned(), workdir)
    elif not any(run.summary for run in read_runs(workdir)):
        raise ConfigError(f"--workdir {workdir}: there is no finished run of a comparison.")
    print(write_tables(workdir))


def train_all(runs: Sequence[Run], workdir: epath.Path) -> None:
    """Trains the runs that are not finished, one after another, with tables after each.

    Args:
      runs: of one comparison, at least one.
      workdir: of the comparison.

    Raises:
      ConfigError: a run cannot begin, or the directory holds those of another comparison.
      RunError: some failed; the others are done.
      PreemptedError: it was told to stop.
    """
    found = read_runs(workdir, runs[0].config)
    finished = {run.name: run.summary["wall_seconds"] for run in found if run.summary}
    left = [run for run in runs if run.name not in finished]
    seconds = [finished[run.name] for run in runs if run.name in finished]
    # All are checked before the first, whose training may take days.
    experiments = [build_experiment(run.config) for run in left]
    compilation_cache.enable()
    if seconds:
        print(f"{len(seconds)} of {len(runs)} runs are finished")
    failed: list[str] = []
    with processes.Preemption() as preemption:
        for run, experiment in zip(left, experiments, strict=True):
            if preemption.reached():
                raise PreemptedError(f"stopped before {run.name}")
            done = len(seconds) + len(failed)
            print(f"[{done + 1}/{len(runs)}] {run.name}{time_left(seconds, len(runs) - done)}")
            took = _train(run, experiment, workdir)
            if took is None:
                failed.append(run.name)
            else:
                seconds.append(took)
    if failed:
        raise RunError(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}.")


def _train(run: Run, experiment: Experiment, workdir: epath.Path) -> float | None:
    """Seconds that it took; None where it failed."""
    start = time.monotonic()
    try:
        summary = loop.train(experiment, workdir / run.name)
    except (RunError, MemoryError) as error:
        print(f"{run.name} failed: {reason(error)}")
        return None
    finally:
        # The programs of one network do not serve the next.
        jax.clear_caches()
    write_tables(workdir)
    # A part of it may have been done before; the summary has no compilation.
    return max(time.monotonic() - start, (summary or {}).get("wall_seconds", 0.0))


def write_tables(workdir: epath.Path) -> str:
    """Writes the tables and the picture of the finished runs, at least one.

    Args:
      workdir: of the comparison.

    Returns:
      The table in Markdown.
    """
    runs = read_runs(workdir)
    table = estimates.rows(runs)
    text = estimates.markdown(table, estimates.caption(runs))
    storage.write_text(workdir / "results.csv", estimates.csv_text(table))
    storage.write_text(workdir / "results.md", text)
    storage.write_bytes(workdir / "results.png", plotting.png(*chart.comparison(table)))
    return text


def _planned() -> list[Run]:
    config = command_line.CONFIG.value
    names = attentions.asked(config) if attentions.ATTENTION.value else ["none"]
    if config.model.attention not in names and not attentions.ATTENTION.value:
        names.append(config.model.attention)
    seeds = [config.seed] if SEEDS.value is None else numbers("seeds", SEEDS.value, int, "seed")
    sparsities = None
    if SPARSITY.value is not None:
        sparsities = numbers("sparsity", SPARSITY.value, float, "optimizer.sparsity")
    return share(plan(config, names, seeds, sparsities), ONLY.value)


def numbers(
    option: str, texts: Sequence[str], kind: Callable[[str], Number], field: str
) -> list[Number]:
    """The numbers that an option lists.

    Args:
      option: its name.
      texts: between its commas.
      kind: int or float.
      field: of the config that they are for.

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
            checks.check(field, value)
        except ConfigError as error:
            raise ConfigError(f"--{option}: {error}") from error
    return values


def share(runs: list[Run], only: str | None) -> list[Run]:
    """The runs that this machine trains.

    Args:
      runs: of all machines.
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


def time_left(seconds: Sequence[float], runs: int) -> str:
    """What the runs to come may take, by what others took.

    Args:
      seconds: that finished ones took.
      runs: how many are to come.

    Example:
      >>> time_left([100, 140], 3)
      ', 0:06:00 left for all'
    """
    if not seconds:
        return ""
    left = round(statistics.fmean(seconds) * runs)
    return f", {datetime.timedelta(seconds=left)} left for all"


if __name__ == "__main__":
    command_line.run(main, __doc__, needs_config=lambda: not REPORT.value)
