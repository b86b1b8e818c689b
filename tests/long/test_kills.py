"""Killing a run at any moment costs nothing: the same command ends with the same bits."""

import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.commands import (
    LIMIT_SECONDS,
    MAIN,
    OPTIMIZED,
    TINY,
    Process,
    finish,
    last_row,
    rows,
    started,
    summary,
)
from train.core.workdir import checkpoint_files

pytestmark = pytest.mark.faults
STEPS_PER_EPOCH = 22
TIMED = {"images_per_second", "data_wait"}
# Of its own: what is killed may leave half of an entry in it.
CACHE = tempfile.TemporaryDirectory()


def start(workdir: Path, module: str) -> AbstractContextManager[list[Process]]:
    return started(
        1,
        workdir,
        *("--config.epochs=3", "--config.eval_every_epochs=1"),
        *("--config.checkpoint.every_steps=8", "--config.log_every_steps=1"),
        module=module,
        devices=1,
        **(OPTIMIZED if module == MAIN else {}),
        JAX_COMPILATION_CACHE_DIR=CACHE.name,
    )


def end(workdir: Path, module: str) -> str:
    """Starts the run and waits for its end; what it printed."""
    with start(workdir, module) as processes:
        ((code, out, error),) = finish(processes)
    assert code == 0, error
    return out


@pytest.fixture(scope="module")
def module(request: pytest.FixtureRequest) -> str:
    """What is run."""
    return request.param


@pytest.fixture(scope="module")
def uninterrupted(module: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("uninterrupted")
    end(workdir, module)
    return workdir


def kill(process: Process, is_reached: Callable[[], bool], delay: float) -> bool:
    """Kills the run a moment after a condition holds; False if it ended first."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while process.poll() is None and not is_reached():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    _, error = process.communicate()
    assert process.returncode <= 0, error
    return process.returncode < 0


def start_up(workdir: Path) -> Callable[[], bool]:
    return lambda: True


def step(workdir: Path) -> Callable[[], bool]:
    before = last_row(workdir)
    return lambda: last_row(workdir) != before


def evaluation(workdir: Path) -> Callable[[], bool]:
    before = last_row(workdir)

    def is_reached() -> bool:
        row = last_row(workdir)
        is_last = row != before and row.get("step", 1) % STEPS_PER_EPOCH == 0
        return is_last and row["split"] == "train"

    return is_reached


def checkpoint(workdir: Path) -> Callable[[], bool]:
    left_over = set((workdir / "checkpoints").glob("*tmp*"))
    return lambda: bool(set((workdir / "checkpoints").glob("*tmp*")) - left_over)


# What is killed, and how long after its beginning at most.
MOMENTS = {checkpoint: 0.05, step: 0.3, evaluation: 0.05, start_up: 6.0}


def assert_whole(workdir: Path) -> None:
    """What a killed run has left: whole checkpoints, and whole rows but for a torn last line."""
    for number in checkpoint_files.saved_steps(workdir / "checkpoints"):
        checkpoint_files.read(workdir / "checkpoints" / str(number))
    path = workdir / "metrics.jsonl"
    for line in path.read_text().split("\n")[:-1] if path.exists() else []:
        json.loads(line)


def untimed(workdir: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if name not in TIMED}
        for split in ("train", "eval")
        for row in rows(workdir, split)
    ]


def assert_equal(workdir: Path, uninterrupted: Path) -> None:
    assert summary(workdir)["state_sha256"] == summary(uninterrupted)["state_sha256"]
    assert untimed(workdir) == untimed(uninterrupted)
    assert [row["step"] for row in rows(workdir)] == list(range(1, 3 * STEPS_PER_EPOCH + 1))
    assert [row["step"] for row in rows(workdir, "eval")] == [22, 44, 66]
    assert not (workdir / "damaged").exists()


@pytest.mark.parametrize(
    ("module", "kills"),
    [
        (TINY, 1),
        pytest.param(TINY, 4, marks=pytest.mark.slow),
        pytest.param(MAIN, 100, marks=pytest.mark.long),
    ],
    indirect=["module"],
    scope="module",
)
def test_killed_runs_end_with_the_same_bits(
    module: str, kills: int, uninterrupted: Path, tmp_path: Path
) -> None:
    chance, killed, runs = random.Random(kills), Counter[str](), 0
    moments = list(MOMENTS)
    while killed.total() < kills:
        moment = moments[killed.total() % len(moments)]
        workdir = tmp_path / str(runs)
        with start(workdir, module) as (process,):
            is_killed = kill(process, moment(workdir), chance.uniform(0, MOMENTS[moment]))
        if is_killed:
            killed[moment.__name__] += 1
            assert_whole(workdir)
        else:
            assert_equal(workdir, uninterrupted)
            runs += 1
    end(workdir, module)
    assert_equal(workdir, uninterrupted)
    print(f"killed {dict(killed)} times in {runs + 1} runs")


@pytest.mark.slow
@pytest.mark.parametrize("module", [TINY], indirect=True, scope="module")
def test_finished_run_does_nothing(module: str, uninterrupted: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}
    assert "finished" in end(uninterrupted, module)
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")} == before
