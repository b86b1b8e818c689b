"""What a run tells of itself: rows, TensorBoard events, log lines."""

import collections
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from train.core.config.fields import Config
from train.core.devices import processes
from train.core.errors import LostError
from train.core.monitor import metric_rows
from train.core.monitor.metric_rows import Row
from train.core.monitor.tensorboard import Events
from train.core.monitor.terminal import Display
from train.core.monitor.timing import Stopwatch
from train.core.monitor.weights_and_biases import Sender
from train.core.workdir import storage

# Metrics are fetched this many dispatches late, so that the device has work while the host logs.
LAG = 2


class Progress(NamedTuple):
    """What a run has counted, over all restarts.

    Attributes:
      wall_seconds: Seconds that it has taken, without compilation.
      train_seconds: Seconds of them without evaluations and checkpoints.
      bad_records: Number of unreadable records since the last row.
    """

    wall_seconds: float = 0.0
    train_seconds: float = 0.0
    bad_records: int = 0


class _Dispatch(NamedTuple):
    """Steps that were dispatched together, and their metrics, still on the device."""

    steps: range
    metrics: Mapping[str, jax.Array]


class NonFiniteError(RuntimeError):
    """A loss or an update is NaN or infinite; the message names the step."""


class RowWriter:
    """Writes rows for the run, as events for TensorBoard, as log lines, and to a server."""

    def __init__(
        self, workdir: epath.Path, start_step: int, total_steps: int, sender: Sender | None
    ):
        """Drops what an earlier process wrote after start_step.

        Args:
          workdir: Directory of the run.
          start_step: Number of updates done so far.
          total_steps: Number of updates at the end of the run.
          sender: Thread that sends them to Weights & Biases; None: nothing does.
        """
        self._sender = sender
        self._rows = metric_rows.of(workdir)
        self._rows.truncate(start_step)
        self._events = _open_events(workdir, start_step)
        self._display = Display(total_steps)

    def write(self, row: Row, wall_seconds: float) -> None:
        """Writes a row.

        Args:
          row: Row of metrics, of a training step or an evaluation.
          wall_seconds: Seconds that the run has taken up to it.
        """
        self._rows.append(row)
        if self._events:
            self._events.write(row)
        if self._sender:
            self._sender.write(row)
        self._display.show(row, wall_seconds)

    def sync(self) -> None:
        """Waits until all rows are safe."""
        self._rows.sync()
        if self._events:
            self._events.sync()

    def close(self, *, is_held: bool) -> None:
        """Ends the rows, the events and the live line.

        Args:
          is_held: Whether the directory is still the run's own, and takes the rows that wait.
        """
        self._display.close()
        if is_held:
            self._rows.sync()
        if self._events:
            self._events.close()


def _open_events(workdir: epath.Path, start_step: int) -> Events | None:
    if storage.is_bucket(workdir):
        processes.say(f"no TensorBoard events in a bucket; {workdir}/metrics has their figures")
        return None
    return Events(workdir / "tensorboard", start_step)


class Log:
    """Turns the metrics of steps into rows, which the main process writes.

    A row holds the values of its own step; only its speed and its bad records cover all steps
    since the row before. The loss of every step is checked, also of those without a row.
    """

    def __init__(
        self,
        workdir: epath.Path,
        config: Config,
        progress: Progress,
        *,
        start_step: int,
        total_steps: int,
        steps_per_epoch: int,
        sender: Sender | None = None,
    ):
        """Goes on from start_step.

        Args:
          workdir: Directory of the run.
          config: Config of the run.
          progress: What the run has counted up to start_step.
          start_step: Number of updates done so far.
          total_steps: Number of updates at the end of the run.
          steps_per_epoch: Number of updates of an epoch.
          sender: Thread that sends the rows to Weights & Biases; None: nothing does.
        """
        self._writer = None
        if processes.is_main():
            self._writer = RowWriter(workdir, start_step, total_steps, sender)
        self._config = config
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._pending: collections.deque[_Dispatch] = collections.deque()
        self._bad_records = progress.bad_records
        self._wall = Stopwatch(progress.wall_seconds)
        self._training = Stopwatch(progress.train_seconds)
        self._waiting_seconds = 0.0
        self._window_start = (start_step, self._training.seconds)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._writer:
            self._writer.close(is_held=kind is None or not issubclass(kind, LostError))

    @property
    def progress(self) -> Progress:
        """What the run has counted up to the last flush."""
        return Progress(self._wall.seconds, self._training.seconds, self._bad_records)

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts what happens inside as time without data."""
        start = time.monotonic()
        yield
        self._waiting_seconds += time.monotonic() - start

    def training_paused(self) -> AbstractContextManager[None]:
        """Leaves what happens inside out of the training speed."""
        return self._training.paused()

    def train(self, steps: range, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of steps that were dispatched together, still on the device.

        Waits for the dispatch LAG before it: batches that are dispatched too early would fill the
        device's memory, and waiting for them be taken for waiting for data.

        Args:
          steps: Numbers of the steps, from 1 on.
          metrics: Metrics by name, of one step (), or of each along the first axis (n,), which may
            be longer; `bad_records` counts those of its batch.

        Raises:
          NonFiniteError: a loss that is known by then is NaN or infinite.
        """
        self._pending.append(_Dispatch(steps, metrics))
        if len(self._pending) > LAG:
            late = self._pending[-1 - LAG]
            jax.block_until_ready(late.metrics)
            if late.steps[-1] % self._config.log_every_steps == 0:
                self._fetch(late.steps[-1])

    def flush(self, step: int) -> None:
        """Fetches, checks and writes all up to a step.

        Raises:
          NonFiniteError: a step's loss is NaN or infinite.
        """
        self._fetch(step)
        self._sync()

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the row of an evaluation.

        Args:
          step: Number of updates before it.
          metrics: Result of the evaluation, by name.

        Raises:
          NonFiniteError: a figure of it is NaN or infinite.
        """
        for value in metrics.values():
            _check_finite("the evaluation", step, value)
        self._write({**self._place(step, "eval"), **metrics})
        self._sync()

    def _fetch(self, last: int) -> None:
        due = []
        while self._pending and self._pending[0].steps[-1] <= last:
            due.append(self._pending.popleft())
        speed: Row = {}
        for step, metrics in _by_step(due):
            _check_finite("the loss", step, metrics["loss"])
            self._bad_records += int(metrics["bad_records"])
            if step % self._config.log_every_steps == 0 or step == self._total_steps:
                # Rows that are fetched together share their speed.
                speed = speed or self._speed(last)
                bad = {"bad_records": self._bad_records}
                self._write({**self._place(step, "train"), **metrics, **bad, **speed})
                self._bad_records = 0

    def _place(self, step: int, split: str) -> Row:
        return {"step": step, "epoch": round(step / self._steps_per_epoch, 4), "split": split}

    def _speed(self, step: int) -> Row:
        (start_step, start_seconds), seconds = self._window_start, self._training.seconds
        elapsed = max(seconds - start_seconds, 1e-6)
        images = (step - start_step) * self._config.batch_size
        speed = {
            "images_per_second": round(images / elapsed, 1),
            "data_wait": round(self._waiting_seconds / elapsed, 4),
        }
        self._window_start, self._waiting_seconds = (step, seconds), 0.0
        return speed

    def _write(self, row: Row) -> None:
        if self._writer:
            self._writer.write(row, self._wall.seconds)

    def _sync(self) -> None:
        if self._writer:
            self._writer.sync()


def _by_step(dispatches: Sequence[_Dispatch]) -> Iterator[tuple[int, dict[str, float]]]:
    for steps, values in jax.device_get(dispatches):
        for index, step in enumerate(steps):
            yield step, {name: float(np.atleast_1d(v)[index]) for name, v in values.items()}


def _check_finite(what: str, step: int, value: float) -> None:
    if not math.isfinite(value):
        raise NonFiniteError(f"{what} of step {step} is {value}")
