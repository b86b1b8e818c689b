"""Several processes train as one does, stop together, and go on with other devices."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.commands import (
    MAIN,
    OPTIMIZED,
    PLAIN,
    TINY,
    finish,
    rows,
    run,
    saved,
    started,
    summary,
    wait_for,
)
from tests.helpers.image_datasets import folders, tfds_writer
from train.core.config.fields import default_config
from train.core.data.sources import registry

# A signal reaches the processes within a second: enough steps are left then, on fast machines too.
STEPS = 20
EXACT = (
    *(f"--config.steps={STEPS}", "--config.log_every_steps=1", "--config.batch_size=16"),
    *("--config.model.sync_bn_devices=-1", "--config.model.dtype=float64"),
)
SHORT = (*EXACT, *PLAIN)
# All at once that draws, divides or resizes.
RECIPE = (
    *("--config.loss=sigmoid", "--config.loss_threshold=0.2", "--config.data.mixup=0.1"),
    *("--config.model.drop_path=0.2", "--config.model.dropout=0.2"),
    *("--config.data.augmentation=randaugment_increasing", "--config.data.randaugment_std=1.5"),
    *("--config.data.augment_repeats=3", "--config.data.eval_image_size=12"),
    *("--config.data.image_size=8", "--config.optimizer.name=lamb"),
    *("--config.optimizer.weight_decay_on=kernels", "--config.optimizer.sparsity_mode=proximal"),
)
X64 = {"JAX_ENABLE_X64": "true"}
# The smallest network would be at the end before the signal comes.
SLOW_STEPS = X64 | {"STEP_SECONDS": "0.1"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with the digits as a dataset that can be streamed."""
    config, directory = default_config().data, tmp_path_factory.mktemp("data")
    config.name = "digits"
    for name in ("train", "test"):
        images, labels = registry.source_of(config).open_split(name).load()
        tfds_writer.write(directory, "png_digits", images, labels, 10, split=name)
    return directory


def streamed(directory: Path) -> tuple[str, ...]:
    data = {"name": "png_digits", "dir": directory, "loader": "streaming"}
    return tuple(f"--config.data.{name}={value}" for name, value in data.items())


@pytest.fixture(scope="module", params=[TINY, pytest.param(MAIN, marks=pytest.mark.long)])
def module(request: pytest.FixtureRequest) -> str:
    """What is run."""
    return request.param


@pytest.fixture(scope="module")
def alone(module: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process with one device."""
    workdir = tmp_path_factory.mktemp("alone")
    run(1, workdir, *SHORT, module=module, devices=1, **X64)
    assert [row["step"] for row in rows(workdir)] == list(range(1, STEPS + 1))
    return workdir


def assert_same_rows(actual: Path, expected: Path) -> None:
    """Sums over devices in another order differ in the last bits."""
    for split in ("train", "eval"):
        written, wanted = rows(actual, split), rows(expected, split)
        for name in ("step", "num_images"):
            assert [row.get(name) for row in written] == [row.get(name) for row in wanted], name
        for name in ("loss", "cross_entropy", "penalty", "top1_error"):
            values = pytest.approx([row[name] for row in wanted], rel=1e-9, abs=1e-9)
            assert [row[name] for row in written] == values, name


def assert_first_writes_logs_and_all_the_checkpoint(workdir: Path, printed: list[str]) -> None:
    assert ["train  step" in text for text in printed] == [True] + [False] * (len(printed) - 1)
    parts = {path.name for path in (workdir / f"checkpoints/{STEPS}/state").glob("*.process_*")}
    assert parts == {f"ocdbt.process_{i}" for i in range(len(printed))}


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(module: str, alone: Path, tmp_path: Path) -> None:
    printed = run(2, tmp_path, *SHORT, module=module, **X64)
    assert_same_rows(tmp_path, alone)
    assert_first_writes_logs_and_all_the_checkpoint(tmp_path, printed)


@pytest.mark.slow
def test_two_processes_on_a_folder_have_the_losses_of_one_and_need_the_same_files(
    tmp_path: Path,
) -> None:
    data = {"name": "folder", "image_size": 8, "loader": "streaming", "eval_split": "val"}
    options = (*SHORT, *(f"--config.data.{name}={value}" for name, value in data.items()))
    # Without splits: every process divides the files by itself.
    names = [f"{name}/{i}.png" for name in folders.CLASSES for i in range(20)]
    copies = [folders.write(tmp_path / f"copy {i}", names) for i in range(2)]

    def own(process: int) -> list[str]:
        return [f"--config.data.dir={copies[process]}"]

    run(1, tmp_path / "one", *options, *own(0), module=TINY, devices=1, **X64)
    with started(2, tmp_path / "two", *options, module=TINY, own=own, **X64) as processes:
        assert [code for code, _, _ in finish(processes)] == [0, 0]
    assert_same_rows(tmp_path / "two", tmp_path / "one")
    (copies[1] / names[0]).rename(copies[1] / "cat/other.png")
    with started(2, tmp_path / "other", *options, module=TINY, own=own, **X64) as processes:
        results = finish(processes)
    assert [code for code, _, _ in results] == [2, 2], results
    assert all("different values of the files of the split" in err for _, _, err in results)


@pytest.mark.long
def test_four_processes_with_attention_have_the_losses_of_one(digits: Path, tmp_path: Path) -> None:
    run(1, tmp_path / "one", *EXACT, devices=1, **X64)
    printed = run(4, tmp_path / "four", *EXACT, *streamed(digits), **X64)
    assert_same_rows(tmp_path / "four", tmp_path / "one")
    assert all(row["penalty"] > 0 for row in rows(tmp_path / "four"))
    assert_first_writes_logs_and_all_the_checkpoint(tmp_path / "four", printed)


@pytest.mark.long
def test_processes_with_a_recipe_of_today_have_the_losses_of_one(
    digits: Path, tmp_path: Path
) -> None:
    options = (*EXACT, *RECIPE, *streamed(digits))
    run(1, tmp_path / "one", *options, devices=1, **X64)
    run(2, tmp_path / "two", *options, **X64)
    assert_same_rows(tmp_path / "two", tmp_path / "one")


@pytest.mark.long
@pytest.mark.parametrize(("count", "loader"), [(2, "streaming"), (4, "resident"), (4, "streaming")])
def test_processes_learn_the_digits(count: int, loader: str, digits: Path, tmp_path: Path) -> None:
    data = streamed(digits) if loader == "streaming" else ()
    run(count, tmp_path, *data, **OPTIMIZED)
    assert summary(tmp_path)["top1_error"] <= 3


@pytest.mark.long
def test_killed_and_interrupted_processes_learn_the_digits(tmp_path: Path) -> None:
    options = ("--config.checkpoint.every_steps=11", "--config.epochs=12")
    # A process that is killed may leave half an entry in the cache.
    uncached = {**OPTIMIZED, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    with started(2, tmp_path, *options, **uncached) as processes:
        wait_for(lambda: saved(tmp_path), processes[0])
        processes[1].kill()
        assert all(code != 0 for code, _, _ in finish(processes))
    with started(2, tmp_path, *options, **OPTIMIZED) as processes:
        before = saved(tmp_path)[-1]
        wait_for(lambda: saved(tmp_path)[-1] > before, processes[0])
        # A terminal sends Ctrl-C to all of them.
        for process in processes:
            process.send_signal(signal.SIGINT)
        results = finish(processes)
    assert [code for code, _, _ in results] == [75, 75], results
    assert f"going on from the checkpoint of step {before}" in results[0][1]
    (out, _) = run(2, tmp_path, *options, **OPTIMIZED)
    assert f"going on from the checkpoint of step {saved_by(results[0][1])}" in out
    assert [row["step"] for row in rows(tmp_path)] == list(range(22, 265, 22))
    assert summary(tmp_path)["top1_error"] <= 5


def saved_by(output: str) -> int:
    """The step after which a run that was told to stop has saved itself."""
    return int(output.split("stopped after step ")[1].split(",")[0])


@pytest.fixture(scope="module")
def preempted(module: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes with two devices each, of which one was told to stop."""
    workdir = tmp_path_factory.mktemp("preempted")
    with started(2, workdir, *SHORT, module=module, **SLOW_STEPS) as processes:
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
    module: str, devices: int, preempted: Path, alone: Path, tmp_path: Path
) -> None:
    shutil.copytree(preempted, tmp_path, dirs_exist_ok=True)
    (out,) = run(1, tmp_path, *SHORT, module=module, devices=devices, **X64)
    assert f"going on from the checkpoint of step {saved(preempted)[0]}" in out
    assert_same_rows(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_one_process_saves_and_goes_on_with_the_same_bits(
    module: str, tmp_path: Path, alone: Path, number: signal.Signals
) -> None:
    with started(1, tmp_path, *SHORT, module=module, devices=1, **SLOW_STEPS) as (process,):
        wait_for(lambda: len(rows(tmp_path)) >= 2, process)
        process.send_signal(number)
        ((code, out, error),) = finish([process])
    assert code == 75, error
    assert "the same command goes on" in out
    run(1, tmp_path, *SHORT, module=module, devices=1, **X64)
    assert summary(tmp_path)["state_sha256"] == summary(alone)["state_sha256"]


@pytest.mark.slow
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
        module=TINY,
        own=lambda i: streamed(damaged) if i == 1 else (),
        **X64,
    ) as processes:
        results = finish(processes)
    assert results[0][0] != 0
    code, _, error = results[1]
    assert code == 1
    assert error.splitlines()[-1].startswith("error: ")


@pytest.mark.slow
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
