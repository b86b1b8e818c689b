"""The processes of a run: how they start, which one writes, and how they stop together.

One process needs nothing. Several are connected by JAX's own runtime: automatically where it
knows the cluster (TPU pods, Slurm, Kubernetes, Open MPI), and elsewhere by three options.
"""

import contextlib
import os
import re
import signal
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, NoReturn, TextIO

import jax
import numpy as np
from jax.experimental import multihost_utils

from train.core.devices.busy import CLEAR, busy, hush, postpone
from train.core.errors import ConfigError, RunError

FAIL_ALIKE_SECONDS = 2
_is_connected = False


def start(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    heartbeat_seconds: int,
) -> None:
    """Connects this process with the others, before any device is touched.

    Args:
      coordinator: HOST:PORT of the first process; None where JAX knows the cluster.
      num_processes: Number of processes in all; None where JAX knows the cluster.
      process_id: Number of this process, from 0; None where JAX knows the cluster.
      heartbeat_seconds: Seconds after which a process that is lost ends the others.

    Raises:
      ConfigError: the arguments do not say who the others are.
      RunError: the others are not found.
    """
    global _is_connected
    given = coordinator, num_processes, process_id
    is_automatic = given == (None, None, None)
    if not is_automatic and given != (None, 1, None):
        _check_given(*given)
    if num_processes == 1 or (is_automatic and os.environ.get("SLURM_NTASKS") == "1"):
        return
    try:
        with busy("finding the other processes, for at most 5 minutes"):
            jax.distributed.initialize(*given, heartbeat_timeout_seconds=heartbeat_seconds)
        _is_connected = True
        if not is_main():
            hush()
    # What asks a cluster raises errors of its own kinds.
    except Exception as error:
        # JAX's word for: this is no cluster that I know.
        if is_automatic and "coordinator_address should be defined" in str(error):
            return
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise RunError(
            f"this process does not find the others: {reason}; give --coordinator, "
            "--num_processes and --process_id, or --num_processes=1 for one process alone."
        ) from error


def _check_given(coordinator: Any, num_processes: Any, process_id: Any) -> None:
    got = f"got {coordinator!r}, {num_processes!r}, {process_id!r}"
    names = "--coordinator, --num_processes and --process_id"
    if None in (coordinator, num_processes, process_id):
        raise ConfigError(f"{names} belong together; {got}.")
    match = re.fullmatch(r".+:(\d{1,5})", coordinator)
    if not match or int(match[1]) >= 2**16 or not 0 <= process_id < num_processes:
        raise ConfigError(
            f"{names}: {got}; allowed: HOST:PORT, at least 1, and 0 to one less than that."
        )


def is_main() -> bool:
    """Whether this is the process that writes logs."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line, once for all processes."""
    if is_main():
        postpone()
        # A line that is rewritten may stand there.
        start = CLEAR if sys.stdout.isatty() else ""
        print(f"{start}{text}", flush=True)


def barrier(name: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def check_agreement(values: Mapping[str, Any]) -> None:
    """Checks that all processes train the same: each would wait for the others in vain.

    Args:
      values: Values that have to be equal, by their names.

    Raises:
      ConfigError: some differ; raised in all processes, with their names.
    """
    if jax.process_count() == 1:
        return
    own = np.array([zlib.crc32(repr(value).encode()) for value in values.values()], np.uint32)
    columns = multihost_utils.process_allgather(own).T
    differing = [name for name, column in zip(values, columns, strict=True) if np.ptp(column)]
    if differing:
        jax.distributed.shutdown()
        raise ConfigError(
            f"the processes have different values of {', '.join(differing)}; start all of them "
            "with the same command, and give them the same files."
        )


def fail(code: int) -> NoReturn:
    """Ends this process without waiting, as leaving in peace would.

    Other processes are ended when its heartbeat is missed.

    Args:
      code: Exit code of the process.
    """
    if jax.distributed.is_initialized() and is_main():
        # The others may fail alike, and are cut off when this process is gone.
        time.sleep(FAIL_ALIKE_SECONDS)
    if _threads_may_wait():
        _is_all_written()
        os._exit(code)
    leave(code)


def leave(code: int) -> NoReturn:
    """Ends this process in peace, also where nobody takes its output any more.

    Args:
      code: Exit code of the process.
    """
    if not _is_all_written():
        os._exit(code)
    sys.exit(code)


def _is_all_written() -> bool:
    is_written = [_is_written(stream) for stream in (sys.stdout, sys.stderr)]
    return all(is_written)


def _is_written(stream: TextIO | None) -> bool:
    # It may lie on a full disk.
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        return False
    return True


def _threads_may_wait() -> bool:
    # Those of JAX's runtime wait for other processes, also after its shutdown; those of a
    # checkpoint that cannot be written would never end.
    return _is_connected or threading.active_count() > 1


class Preemption:
    """Hears SIGTERM and the first Ctrl-C, and tells all processes at which step to stop.

    A context manager, entered after `start`. A second Ctrl-C leaves at once. Of two, one within the
    other, both hear.
    """

    def __init__(self) -> None:
        self._noticed = False
        self._asked = 0

    def __enter__(self) -> "Preemption":
        # JAX's runtime hears SIGTERM itself where it connects processes.
        hears_sigterm = jax.distributed.is_initialized()
        heard = [signal.SIGINT] if hears_sigterm else [signal.SIGINT, signal.SIGTERM]
        self._handlers = {number: signal.signal(number, self._hear) for number in heard}
        outer = self._outer()
        if outer is not None:
            self._noticed = outer._noticed
            if self._handlers[signal.SIGINT] == outer._leave:
                signal.signal(signal.SIGINT, self._leave)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        outer = self._outer()
        if outer is not None:
            outer._noticed |= self._noticed

    def _outer(self) -> "Preemption | None":
        """The one around this."""
        outer = getattr(self._handlers[signal.SIGINT], "__self__", None)
        return outer if isinstance(outer, Preemption) else None

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._noticed = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._leave)
            _tell(b"\nstopping soon, with a checkpoint; Ctrl-C again leaves at once\n")
            if jax.distributed.is_initialized():
                os.kill(os.getpid(), signal.SIGTERM)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        _tell(b"error: interrupted\n")
        os._exit(1)

    def reached(self) -> bool:
        """Whether to save and stop now; all processes have to ask equally often."""
        self._asked += 1
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(self._asked)
        return self._noticed


def _is_stopping() -> bool:
    """Whether this process was told to stop, and is about to."""
    hearer = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
    return isinstance(hearer, Preemption) and hearer._noticed


@contextlib.contextmanager
def unheard_if_stopping() -> Iterator[None]:
    """Passes over output that nobody reads any more where a stop is due: saving matters more."""
    try:
        yield
    except BrokenPipeError:
        if not _is_stopping():
            raise


def _tell(line: bytes) -> None:
    """Writes to stderr; not by print, which the signal may have interrupted."""
    # What reads it, such as `2>&1 | tee`, has heard the same Ctrl-C.
    with contextlib.suppress(OSError):
        os.write(2, line)
