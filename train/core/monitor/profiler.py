"""A trace of some steps, for TensorBoard or Perfetto."""

import re
from typing import NamedTuple

import jax
from etils import epath

from train.core.devices import processes
from train.core.errors import ConfigError, RunError, reason
from train.core.workdir import storage


class Span(NamedTuple):
    """The steps first … last."""

    first: int
    last: int


def parse(text: str, workdir: epath.Path) -> Span:
    """Reads START:STOP.

    Args:
      text: Value of --profile.
      workdir: Directory of the run, where the trace is written.

    Raises:
      ConfigError: it is something else, or no trace can be written there.
    """
    if storage.is_bucket(workdir):
        raise ConfigError(f"--profile: a trace needs a local --workdir; got {workdir}.")
    match = re.fullmatch(r"(\d{1,10}):(\d{1,10})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(
            f"--profile: got {text!r}; allowed: START:STOP, steps from 1 on, in order."
        )
    return Span(int(match[1]), int(match[2]))


class Profiler:
    """Traces a span of steps, and what is dispatched with them, in the main process.

    A context manager, whose end ends the trace at the latest.
    """

    def __init__(self, directory: epath.Path, span: Span | None):
        """Traces nothing yet.

        Args:
          directory: Directory for the trace.
          span: Steps to trace; None: no steps.
        """
        self._directory = directory
        self._span = span
        self._is_tracing = False
        self._is_due = span is not None and processes.is_main()

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        self._stop()
        if self._is_due and self._span and kind is None:
            span = f"{self._span.first}:{self._span.last}"
            processes.say(f"no profile: none of the steps {span} was run by this start")

    def _stop(self) -> None:
        if self._is_tracing:
            self._is_tracing = False
            try:
                jax.profiler.stop_trace()
            except jax.errors.JaxRuntimeError as error:
                raise RunError(f"--profile: {self._directory}: {reason(error)}") from error
            processes.say(f"profile: {self._directory}")

    def before(self, steps: range) -> None:
        """Called before steps are dispatched together."""
        is_within = self._span and self._span.first <= steps[-1] and steps[0] <= self._span.last
        if is_within and self._is_due:
            self._is_tracing, self._is_due = True, False
            jax.profiler.start_trace(str(self._directory))

    def after(self, steps: range, results: object) -> None:
        """Called after steps are dispatched, with what they give."""
        if self._span and self._span.last in steps:
            jax.block_until_ready(results)
            self._stop()
