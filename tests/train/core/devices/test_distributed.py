"""Several processes train as one does, stop together, and go on with other devices."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from tests.helpers import tfds_writer
from tests.helpers.commands import REPOSITORY
from tests.helpers.processes import PLAIN, finish, rows, run, saved, started, summary, wait_for
from train.core.config.fields import default_config
from train.core.data.sources import registry
from train.core.devices import processes
from train.core.errors import ConfigError, RunError

# A signal reaches the processes within a second: enough steps are left then, on fast machines too.
STEPS = 20
EXACT = (
    *(f"--config.steps={STEPS}", "--config.log_every_steps=1", "--config.batch_size=16"),
    *("--config.model.sync_bn_devices=-1", "--config.model.dtype=float64"),
)
SHORT = (*EXACT, *PLAIN)
X64 = {"JAX_ENABLE_X64": "true"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with the digits as a dataset that can be streamed."""
    config, directory = default_config().data, tmp_path_factory.mktemp("data")
    config.name = "digits"
    for name in ("train", "test"):
        images, labels = registry.open_split(config, name).load()
        tfds_writer.write(directory, "png_digits", images, labels, 10, split=name)
    return directory


def streamed(directory: Path) -> tuple[str, ...]:
    data = {"name": "png_digits", "dir": directory, "loader": "streaming"}
    return tuple(f"--config.data.{name}={value}" for name, value in data.items())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process with one device."""
    workdir = tmp_path_factory.mktemp("alone")
    run(1, workdir, *SHORT, devices=1, **X64)
    assert [row["step"] for row in rows(workdir)] == list(range(1, STEPS + 1))
    return workdir


def assert_same_rows(actual: Path, expected: Path) -> None:
    """Sums over devices in another order differ in the last bits."""
    for split in ("train", "eval"):
        found, wanted = rows(actual, split), rows(expected, split)
        for name in ("step", "num_images"):
            assert [row.get(name) for row in found] == [row.get(name) for row in wanted], name
        for name in ("loss", "cross_entropy", "penalty", "top1_error"):
            values = [row[name] for row in wanted]
            assert [row[name] for row in found] == pytest.approx(values, rel=1e-9, abs=1e-9), name


def assert_first_writes_logs_and_all_the_checkpoint(workdir: Path, printed: list[str]) -> None:
    assert ["train  step" in text for text in printed] == [True] + [False] * (len(printed) - 1)
    parts = {path.name for path in (workdir / f"checkpoints/{STEPS}/state").glob("*.process_*")}
    assert parts == {f"ocdbt.process_{i}" for i in range(len(printed))}


def test_two_processes_have_the_losses_of_one(alone: Path, tmp_path: Path) -> None:
    printed = run(2, tmp_path, *SHORT, **X64)
    assert_same_rows(tmp_path, alone)
    assert_first_writes_logs_and_all_the_checkpoint(tmp_path, printed)


@pytest.mark.long
def test_four_processes_with_attention_have_the_losses_of_one(digits: Path, tmp_path: Path) -> None:
    run(1, tmp_path / "one", *EXACT, devices=1, **X64)
    printed = run(4, tmp_path / "four", *EXACT, *streamed(digits), **X64)
    assert_same_rows(tmp_path / "four", tmp_path / "one")
    assert all(row["penalty"] > 0 for row in rows(tmp_path / "four"))
    assert_first_writes_logs_and_all_the_checkpoint(tmp_path / "four", printed)


@pytest.mark.long
@pytest.mark.parametrize(("count", "loader"), [(2, "streaming"), (4, "resident"), (4, "streaming")])
def test_processes_learn_the_digits(count: int, loader: str, digits: Path, tmp_path: Path) -> None:
    data = streamed(digits) if loader == "streaming" else ()
    run(count, tmp_path, *data, JAX_DISABLE_MOST_OPTIMIZATIONS="false")
    assert summary(tmp_path)["top1_error"] <= 3


@pytest.mark.long
def test_killed_and_interrupted_processes_learn_the_digits(tmp_path: Path) -> None:
    # The steps are many: what makes compiling quick makes them slow.
    options = ("--config.checkpoint.every_steps=11", "--config.epochs=12")
    environment = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "false"}
    # A process that is killed may leave half an entry in the cache.
    uncached = {**environment, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    with started(2, tmp_path, *options, **uncached) as processes:
        wait_for(lambda: saved(tmp_path), processes[0])
        processes[1].kill()
        assert all(code != 0 for code, _, _ in finish(processes))
    with started(2, tmp_path, *options, **environment) as processes:
        before = saved(tmp_path)[-1]
        wait_for(lambda: saved(tmp_path)[-1] > before, processes[0])
        # A terminal sends Ctrl-C to all of them.
        for process in processes:
            process.send_signal(signal.SIGINT)
        results = finish(processes)
    assert [code for code, _, _ in results] == [75, 75], results
    assert f"going on from the checkpoint of step {before}" in results[0][1]
    (out, _) = run(2, tmp_path, *options, **environment)
    assert f"going on from the checkpoint of step {saved_by(results[0][1])}" in out
    assert [row["step"] for row in rows(tmp_path)] == list(range(22, 265, 22))
    assert summary(tmp_path)["top1_error"] <= 5


def saved_by(output: str) -> int:
    """The step after which a run that was told to stop has saved itself."""
    return int(output.split("stopped after step ")[1].split(",")[0])


@pytest.fixture(scope="module")
def preempted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes with two devices each, of which one was told to stop."""
    workdir = tmp_path_factory.mktemp("preempted")
    with started(2, workdir, *SHORT, **X64) as processes:
        wait_for(lambda: len(rows(workdir)) >= 2, processes[0])
        processes[1].send_signal(signal.SIGTERM)
        results = finish(processes)
    assert [code for code, _, _ in results] == [75, 75], results
    (step,) = saved(workdir)
    assert 2 <= step < STEPS
    assert [row["step"] for row in rows(workdir)] == list(range(1, step + 1))
    assert f"stopped after step {step}, which is saved" in results[0][1]
    return workdir


@pytest.mark.parametrize("devices", [1, pytest.param(8, marks=pytest.mark.long)])
def test_another_number_of_processes_and_devices_goes_on(
    devices: int, preempted: Path, alone: Path, tmp_path: Path
) -> None:
    shutil.copytree(preempted, tmp_path, dirs_exist_ok=True)
    (out,) = run(1, tmp_path, *SHORT, devices=devices, **X64)
    assert f"going on from the checkpoint of step {saved(preempted)[0]}" in out
    assert_same_rows(tmp_path, alone)


def test_second_ctrl_c_leaves_at_once() -> None:
    code = "import time\nfrom train.distributed import Preemption\nwith Preemption():\n"
    code += "    print('ready', flush=True)\n    for _ in range(600): time.sleep(0.1)"
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "\n"
        assert "Ctrl-C again leaves at once" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == "error: interrupted\n"
        assert process.returncode == 1


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_one_process_saves_and_goes_on_with_the_same_bits(
    tmp_path: Path, alone: Path, number: signal.Signals
) -> None:
    with started(1, tmp_path, *SHORT, devices=1, **X64) as (process,):
        wait_for(lambda: len(rows(tmp_path)) >= 2, process)
        process.send_signal(number)
        ((code, out, error),) = finish([process])
    assert code == 75, error
    assert "the same command goes on" in out
    run(1, tmp_path, *SHORT, devices=1, **X64)
    assert summary(tmp_path)["state_sha256"] == summary(alone)["state_sha256"]


def test_a_failing_process_shows_its_error_last_and_ends_the_other(
    digits: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "data"
    shutil.copytree(digits, damaged)
    for path in damaged.glob("png_digits/*/*-train*"):
        content = path.read_bytes()
        path.write_bytes(content.replace(b"IDAT", b"XXXX"))
    with started(
        2,
        tmp_path / "run",
        *(*SHORT, *streamed(digits)),
        own=lambda i: streamed(damaged) if i == 1 else (),
        **X64,
    ) as processes:
        results = finish(processes)
    assert results[0][0] != 0
    code, _, error = results[1]
    assert code == 1
    assert error.splitlines()[-1].startswith("error: ")


def test_different_data_are_refused_by_all(digits: Path, tmp_path: Path) -> None:
    images, labels = np.zeros((80, 8, 8, 1), np.uint8), np.arange(80) % 10
    for split in ("train", "test"):
        tfds_writer.write(tmp_path / "data", "png_digits", images, labels, 10, split=split)
    directories = (digits, tmp_path / "data")
    with started(2, tmp_path / "run", own=lambda i: streamed(directories[i])) as processes:
        results = finish(processes)
    assert [code for code, _, _ in results] == [2, 2]
    assert all("different values of the images of the split train" in r[2] for r in results)


def test_different_configs_are_refused_by_all(tmp_path: Path) -> None:
    with started(
        2, tmp_path / "run", own=lambda i: (f"--config.checkpoint.keep={2 + i}",)
    ) as processes:
        results = finish(processes)
    line = "error: the processes have different values of config.checkpoint.keep; start all of "
    for code, _, error in results:
        assert code == 2
        assert error.splitlines()[-1].startswith(line)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def no_flags() -> Iterator[None]:
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(coordinator=None, num_processes=None, process_id=None):
        yield


@pytest.mark.usefixtures("no_flags")
@pytest.mark.parametrize(
    "values",
    [
        {"coordinator": "localhost:1"},
        {"num_processes": 2, "process_id": 0},
        {"coordinator": "localhost", "num_processes": 2, "process_id": 0},
        {"coordinator": "localhost:1", "num_processes": 2, "process_id": 2},
        {"coordinator": "localhost:1", "num_processes": 2, "process_id": -1},
    ],
)
def test_incomplete_or_wrong_flags_are_refused(values: dict[str, Any]) -> None:
    with (
        flagsaver.flagsaver(**values),
        pytest.raises(ConfigError, match=r"^--coordinator, --num_processes and --process_id"),
    ):
        processes.start()


@pytest.mark.usefixtures("no_flags")
def test_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Kubernetes API Error: 403 - Forbidden\nIt appears that")

    monkeypatch.setattr("jax.distributed.initialize", fail)
    with pytest.raises(RunError, match=r"the others: Kubernetes API Error: 403 - Forbidden; give"):
        processes.start()


@pytest.mark.usefixtures("no_flags")
def test_one_process_asks_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax.distributed.initialize", pytest.fail)
    with flagsaver.flagsaver(num_processes=1):
        processes.start()
    assert processes.is_main()
