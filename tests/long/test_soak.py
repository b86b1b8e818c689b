"""A long run with frequent checkpoints and evaluations: what it takes more and more of."""

import contextlib
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.commands import OPTIMIZED, Process, finish, last_row, started, summary, wait_for

pytestmark = pytest.mark.faults

STEPS, EVERY, EPOCH = 4000, 10, 22
CHECKPOINTS = len({*range(EVERY, STEPS + 1, EVERY), *range(EPOCH, STEPS + 1, EPOCH)})
OPTIONS = (
    *(f"--config.steps={STEPS}", "--config.eval_every_epochs=1", "--config.log_every_steps=50"),
    f"--config.checkpoint.every_steps={EVERY}",
)
# TensorStore never frees some of the JSON that it hands to Python; all that is lost is 0.12.
MEBIBYTES_PER_CHECKPOINT = 0.18
# Python imports it when it starts. Left alone, malloc keeps freed memory, which hides what is held.
GIVING_BACK = """
import ctypes, threading, time
def give_back():
    while True:
        time.sleep(0.5)
        ctypes.CDLL(None).malloc_trim(0)
threading.Thread(target=give_back, daemon=True).start()
"""


def mebibytes(pid: int) -> float:
    """Memory but for that of files, which the system takes back as it likes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return sum(int(status[name].split()[0]) for name in ("RssAnon", "VmSwap")) / 1024


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def sampled(process: Process, workdir: Path) -> Iterator[tuple[float, float, int]]:
    """How far a run is, its memory and its open files, again and again to its end."""
    deadline = time.monotonic() + 3600
    while process.poll() is None:
        assert time.monotonic() < deadline
        share = last_row(workdir).get("step", 0) / STEPS
        # It may end meanwhile.
        with contextlib.suppress(KeyError, OSError):
            yield share, mebibytes(process.pid), open_files(process.pid)
        time.sleep(0.2)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_open_files_stay_flat_and_memory_grows_by_a_known_little(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(GIVING_BACK)
    environment = {
        **OPTIMIZED,
        "PYTHONPATH": str(tmp_path),
        # Less lies between what is freed.
        "MALLOC_ARENA_MAX": "1",
    }
    # The long run finds its programs in the cache, which are whole before the first row: compiling
    # takes memory too.
    with started(1, tmp_path / "first", *OPTIONS, **environment) as processes:
        wait_for(lambda: last_row(tmp_path / "first"), processes[0])
    with started(1, tmp_path / "long", *OPTIONS, **environment) as processes:
        samples = list(sampled(processes[0], tmp_path / "long"))
        ((code, _, error),) = finish(processes)
    assert code == 0, error
    assert summary(tmp_path / "long")["steps"] == STEPS
    tenths = [
        [(memory, files) for share, memory, files in samples if tenth <= 10 * share < tenth + 1]
        for tenth in range(10)
    ]
    memory = [statistics.median(memory for memory, _ in tenth) for tenth in tenths]
    # A checkpoint that is being written has some open.
    files = [min(files for _, files in tenth) for tenth in tenths]
    # The first tenths are those of the start.
    slope = np.polyfit(range(2, 10), memory[2:], 1)[0] / (CHECKPOINTS / 10)
    print(f"tenths of the run: {memory} MiB, {files} open files; {slope:.2f} MiB a checkpoint")
    assert slope < MEBIBYTES_PER_CHECKPOINT
    assert max(files[-3:]) <= max(files[2:5])
