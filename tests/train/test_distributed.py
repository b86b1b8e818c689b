"""Several processes, preemption, and going on with other devices: real processes and signals."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
STEPS = 50


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start(workdir: Path, *arguments: str, devices: int) -> subprocess.Popen[str]:
    """Starts a short run on the digits, with a few virtual devices."""
    command = [
        *(sys.executable, "-m", "train.main", "--config", "configs/digits_resnet20.py"),
        *("--workdir", str(workdir), f"--config.steps={STEPS}", "--config.log_every_steps=1"),
        *("--config.batch_size=16", "--config.model.sync_bn_devices=-1", *arguments),
    ]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def start_two(workdir: Path, *arguments: str) -> list[subprocess.Popen[str]]:
    port = free_port()
    flags = (f"--coordinator=localhost:{port}", "--num_processes=2", "--heartbeat_seconds=10")
    return [start(workdir, *flags, f"--process_id={i}", *arguments, devices=2) for i in range(2)]


def finish(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, standard output and standard error of each."""
    return [(p.returncode, out, error) for p in processes for out, error in [p.communicate(300)]]


def rows(workdir: Path, split: str = "train") -> list[dict[str, Any]]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [row for row in map(json.loads, lines) if row["split"] == split]


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def saved(workdir: Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process with four devices."""
    workdir = tmp_path_factory.mktemp("alone")
    ((code, _, error),) = finish([start(workdir, devices=4)])
    assert code == 0, error
    return workdir


@pytest.fixture(scope="module")
def preempted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run of two processes with two devices each, of which one was told to stop."""
    workdir = tmp_path_factory.mktemp("preempted")
    processes = start_two(workdir)
    wait_for(lambda: len(rows(workdir)) >= 2, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    return workdir, finish(processes)


def test_all_processes_stop_at_one_step_and_save_it(preempted: tuple[Path, Any]) -> None:
    workdir, results = preempted
    assert [code for code, _, _ in results] == [75, 75], results
    (step,) = saved(workdir)
    assert 2 <= step < STEPS
    assert f"stopped after step {step}, which is saved" in results[0][1]


def test_the_first_process_alone_writes_logs(preempted: tuple[Path, Any]) -> None:
    workdir, results = preempted
    steps = [row["step"] for row in rows(workdir)]
    assert steps == list(range(1, len(steps) + 1))
    assert "train  step" in results[0][1]
    assert "train  step" not in results[1][1]


def test_two_processes_train_as_one_does(preempted: tuple[Path, Any], alone: Path) -> None:
    workdir, _ = preempted
    # In float32, sums over devices in another order drift apart with the steps.
    pairs = list(zip(rows(workdir)[:2], rows(alone)[:2], strict=True))
    for actual, expected in pairs:
        assert actual["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_another_number_of_processes_and_devices_goes_on(
    preempted: tuple[Path, Any], alone: Path
) -> None:
    workdir, _ = preempted
    ((code, out, error),) = finish([start(workdir, devices=8)])
    assert code == 0, error
    assert "going on from the checkpoint of step" in out
    assert [row["step"] for row in rows(workdir)] == list(range(1, STEPS + 1))
    evaluations = [rows(directory, "eval")[-1] for directory in (workdir, alone)]
    assert evaluations[0]["num_images"] == evaluations[1]["num_images"]
    assert abs(evaluations[0]["loss"] - evaluations[1]["loss"]) < 0.5


def test_a_lost_process_ends_the_other(tmp_path: Path) -> None:
    processes = start_two(tmp_path, "--config.steps=100000")
    wait_for(lambda: len(rows(tmp_path)) >= 1, processes[0])
    processes[1].kill()
    assert all(code != 0 for code, _, _ in finish(processes))


def test_another_config_in_one_of_the_processes_ends_both(tmp_path: Path) -> None:
    port = free_port()
    flags = (f"--coordinator=localhost:{port}", "--num_processes=2", "--heartbeat_seconds=10")
    processes = [
        start(tmp_path, *flags, f"--process_id={i}", f"--config.seed={i}", devices=2)
        for i in range(2)
    ]
    results = finish(processes)
    assert all(code != 0 for code, _, _ in results)
    assert any("seed is 0 there and 1 here" in error for _, _, error in results)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_process_saves_and_goes_on_with_the_same_bits(
    tmp_path: Path, alone: Path, number: signal.Signals
) -> None:
    process = start(tmp_path, devices=4)
    wait_for(lambda: len(rows(tmp_path)) >= 2, process)
    process.send_signal(number)
    ((code, out, error),) = finish([process])
    assert code == 75, error
    assert "the same command goes on" in out
    ((code, _, error),) = finish([start(tmp_path, devices=4)])
    assert code == 0, error
    digests = [
        json.loads((workdir / "summary.json").read_text())["state_sha256"]
        for workdir in (tmp_path, alone)
    ]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--coordinator=localhost:1",),
        ("--num_processes=2", "--process_id=0"),
        ("--coordinator=localhost", "--num_processes=2", "--process_id=0"),
        ("--coordinator=localhost:1", "--num_processes=2", "--process_id=2"),
        ("--coordinator=localhost:1", "--num_processes=2", "--process_id=-1"),
    ],
)
def test_incomplete_or_wrong_flags_are_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    ((code, _, error),) = finish([start(tmp_path / "run", *arguments, devices=1)])
    assert code == 2
    assert error.startswith("error: --coordinator, --num_processes and --process_id")
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()
