"""Trains the runs of a comparison that are missing, and writes its tables."""

import dataclasses
import datetime
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from train.compare import chart, columns
from train.compare.estimates import variants_of
from train.compare.runs import ComparedRun, read_runs
from train.core import plotting
from train.core.config.data_fields import DataConfig
from train.core.data.sources.registry import source_of
from train.core.data.sources.split import Source
from train.core.devices import compilation_cache, processes
from train.core.devices.busy import busy
from train.core.engine import loop
from train.core.engine.experiment import Experiment, build_experiment
from train.core.errors import ConfigError, PreemptedError, RunError, reason
from train.core.workdir import storage


def train_all(runs: Sequence[ComparedRun], workdir: epath.Path) -> None:
    """Trains the runs that are not finished, one after another, with tables after each.

    Args:
      runs: Runs of one comparison, at least one.
      workdir: Directory of the comparison.

    Raises:
      ConfigError: a run cannot begin, or the directory holds those of another comparison.
      RunError: some failed; the others are done.
      PreemptedError: it was told to stop.
    """
    read = read_runs(workdir, runs[0].config)
    finished = {run.name: run.summary["wall_seconds"] for run in read if run.summary}
    left = [run for run in runs if run.name not in finished]
    seconds = [finished[run.name] for run in runs if run.name in finished]
    # All are checked before the first, whose training may take days.
    open_source = _shared_sources()
    experiments = [build_experiment(run.config, open_source=open_source) for run in left]
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


def _shared_sources() -> Callable[[DataConfig], Source]:
    """Opens each dataset once: runs have theirs in common, and folders take long to list."""
    opened: dict[Any, Source] = {}

    def open_source(config: DataConfig) -> Source:
        key = dataclasses.astuple(config)
        if key not in opened:
            opened[key] = source_of(config)
        return opened[key]

    return open_source


def _train(run: ComparedRun, experiment: Experiment, workdir: epath.Path) -> float | None:
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
    """Writes the tables and the chart of the finished runs.

    Args:
      workdir: Directory of the comparison.

    Returns:
      The table in Markdown.

    Raises:
      ConfigError: no run is finished.
    """
    runs = read_runs(workdir)
    variants = variants_of(runs)
    if not variants:
        raise ConfigError(
            f"--workdir {workdir}: there is no finished run of a comparison; train them with "
            "--config, or name another directory."
        )
    with busy("writing the tables"):
        text = columns.markdown(variants, columns.caption(runs))
        storage.write_text(workdir / "results.csv", columns.csv_text(variants))
        storage.write_text(workdir / "results.md", text)
        storage.write_bytes(workdir / "results.png", plotting.png(*chart.comparison(variants)))
    return text


def time_left(seconds: Sequence[float], runs: int) -> str:
    """What the runs to come may take, by what others took.

    Args:
      seconds: Seconds that each finished run took.
      runs: Number of the runs to come.

    Example:
      >>> from train.compare.train_all import time_left
      >>> time_left([100, 140], 3)
      ', 0:06:00 left for all'
    """
    if not seconds:
        return ""
    left = round(statistics.fmean(seconds) * runs)
    return f", {datetime.timedelta(seconds=left)} left for all"
