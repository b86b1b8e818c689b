"""Killing a run at any moment costs nothing: the same command ends with the same bits."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.train.processes import QUICK_COMPILATION, REPOSITORY

SPEED_FIELDS = {"images_per_second", "data_wait"}
# One run compiles for all; what makes compiling quick would make the steps slow.
ENVIRONMENT = os.environ | QUICK_COMPILATION | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "false"}


def command(workdir: Path, *overrides: str) -> list[str]:
    return [
        *(sys.executable, "-m", "train.main", "--config", "configs/digits_resnet20.py"),
        *("--workdir", str(workdir), "--config.epochs=3", "--config.eval_every_epochs=1"),
        *("--config.checkpoint.every_steps=8", "--config.log_every_steps=5", *overrides),
    ]


def call(arguments: list[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, cwd=REPOSITORY, env=ENVIRONMENT, check=check, capture_output=True, text=True
    )


def kill_when(workdir: Path, reached: Callable[[], bool]) -> bool:
    """Starts the run and kills it at once when a condition holds; False if it ended first."""
    process = subprocess.Popen(
        command(workdir), cwd=REPOSITORY, env=ENVIRONMENT, stdout=subprocess.DEVNULL
    )
    while process.poll() is None:
        if reached():
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return True
    return False


def rows(workdir: Path) -> list[dict[str, object]]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name not in SPEED_FIELDS}
        for line in lines
    ]


def digest(workdir: Path) -> str:
    return json.loads((workdir / "summary.json").read_text())["state_sha256"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("uninterrupted")
    call(command(workdir))
    return workdir


def test_killed_runs_end_with_the_same_bits(uninterrupted: Path, tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"

    def inside_a_checkpoint() -> bool:
        return any(checkpoints.glob("*orbax-checkpoint-tmp*"))

    def between_checkpoints() -> bool:
        steps = [int(path.name) for path in checkpoints.glob("*") if path.name.isdigit()]
        return max(steps, default=0) >= 24

    assert kill_when(tmp_path, inside_a_checkpoint)
    assert inside_a_checkpoint(), "the kill came too late to interrupt the checkpoint"
    assert kill_when(tmp_path, between_checkpoints)
    call(command(tmp_path))
    assert not inside_a_checkpoint()
    assert digest(tmp_path) == digest(uninterrupted)
    assert rows(tmp_path) == rows(uninterrupted)


def test_rows_hold_each_step_once(uninterrupted: Path) -> None:
    found = [(row["split"], row["step"]) for row in rows(uninterrupted)]
    assert len(found) == len(set(found))
    assert [step for split, step in found if split == "train"] == [*range(5, 66, 5), 66]
    assert [step for split, step in found if split == "eval"] == [22, 44, 66]


def test_finished_run_does_nothing(uninterrupted: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}
    assert "finished" in call(command(uninterrupted)).stdout
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")} == before


def test_other_config_is_refused(uninterrupted: Path) -> None:
    result = call(command(uninterrupted, "--config.optimizer.sparsity=0.5"), check=False)
    assert result.returncode == 2
    assert "optimizer.sparsity is 0.0001 there and 0.5 here" in result.stderr


def test_evaluate_command_repeats_the_last_evaluation(uninterrupted: Path) -> None:
    arguments = command(uninterrupted)
    arguments[2] = "train.evaluate"
    output = call(arguments).stdout
    expected = json.loads((uninterrupted / "summary.json").read_text())
    assert f"top1_error {expected['top1_error']:.6g}" in output
    assert f"step {expected['steps']}\nnum_images 359\n" in output
