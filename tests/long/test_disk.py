"""Full and read-only disks: one clear line, nothing saved is lost, and the run goes on later."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.commands import (
    LIMIT_SECONDS,
    PLAIN,
    REPOSITORY,
    TINY,
    Process,
    finish,
    run,
    saved,
    started,
    summary,
    wait_for,
)
from train.core.workdir.lock import locked

pytestmark = pytest.mark.faults

OPTIONS = (
    *("--config.epochs=2", "--config.eval_every_epochs=1", "--config.data.image_size=16"),
    *("--config.checkpoint.every_steps=8", "--config.log_every_steps=1", *PLAIN),
)
# A checkpoint takes about two of these.
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("undisturbed")
    run(1, workdir, *OPTIONS, devices=1)
    return workdir


class Disk:
    """A small disk of its own."""

    def __init__(self, path: Path):
        self.path = path

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.path], check=True)

    def fill(self) -> None:
        with (self.path / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    mount = ["mount", "-t", "tmpfs", "-o", f"size={64 * MEGABYTE}", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a disk")
    yield Disk(tmp_path)
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@contextmanager
def saving(workdir: Path) -> Iterator[Process]:
    """A run that has saved something; killed at the end of the block."""
    with started(1, workdir, *OPTIONS, devices=1) as processes:
        wait_for(lambda: saved(workdir), processes[0])
        yield processes[0]


def fails(workdir: Path, code: int) -> str:
    """Starts the run, which ends with the exit code; the only line of its standard error."""
    with started(1, workdir, *OPTIONS, devices=1) as processes:
        return line_of(finish(processes)[0], code)


def line_of(result: tuple[int, str, str], code: int) -> str:
    returncode, _, error = result
    assert returncode == code, error
    *signs, line = error.splitlines()
    assert line.startswith("error: "), error
    # What took long said so before.
    assert all(" so far" in sign or ": took " in sign for sign in signs), error
    return line


def goes_on(workdir: Path, undisturbed: Path) -> None:
    (out,) = run(1, workdir, *OPTIONS, devices=1)
    assert "going on from the checkpoint" in out
    assert summary(workdir)["state_sha256"] == summary(undisturbed)["state_sha256"]
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len((undisturbed / "metrics.jsonl").read_text().splitlines())
    assert all(map(json.loads, lines))


@pytest.mark.long
def test_no_room_for_a_checkpoint(disk: Disk, undisturbed: Path) -> None:
    workdir = disk.path / "run"
    disk.remount(f"size={4 * MEGABYTE}")
    line = fails(workdir, 1)
    assert f"cannot be written to {workdir}/checkpoints; those before it are whole" in line
    assert len(saved(workdir)) == 1
    disk.remount(f"size={64 * MEGABYTE}")
    goes_on(workdir, undisturbed)


@pytest.mark.long
def test_no_room_for_rows(disk: Disk, undisturbed: Path) -> None:
    workdir = disk.path / "run"
    with saving(workdir) as process:
        disk.fill()
        line = line_of(finish([process])[0], 1)
    assert f"error: {workdir}/" in line
    assert "No space left on device" in line
    assert "the same command goes on" in line
    assert saved(workdir)
    (disk.path / "filler").unlink()
    goes_on(workdir, undisturbed)


@pytest.mark.long
def test_disk_that_cannot_be_written(disk: Disk, undisturbed: Path) -> None:
    workdir = disk.path / "run"
    with saving(workdir):
        pass
    disk.remount("ro")
    said = "Read-only file system. Name a directory that can be written."
    assert fails(workdir, 2) == f"error: --workdir {workdir}: {said}"
    other = disk.path / "other"
    assert fails(other, 2) == f"error: --workdir {other}: {said}"
    disk.remount("rw")
    goes_on(workdir, undisturbed)


def test_file_that_may_not_grow(tmp_path: Path) -> None:
    # Without a disk of its own: as on one with a quota.
    code = "import resource, runpy, sys\n"
    # Less than any large array takes: Orbax writes several to one file, or each to its own.
    code += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({MEGABYTE // 8},) * 2)\n"
    code += f"runpy.run_module('{TINY}', run_name='__main__')"
    # The network is small, its images large, and so is its checkpoint.
    options = (*OPTIONS, "--config.data.image_size=64", "--config.epochs=1")
    arguments = ("--config", "configs/digits_resnet20.py", "--workdir", str(tmp_path), *options)
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=REPOSITORY,
        # It would leave half of an entry in the cache.
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        check=False,
        timeout=LIMIT_SECONDS,
        capture_output=True,
        text=True,
    )
    line = line_of((result.returncode, result.stdout, result.stderr), 1)
    assert line.startswith("error: the checkpoint of step 8 cannot be written to ")
    assert not saved(tmp_path)
    run(1, tmp_path, *options, devices=1, module=TINY)


@pytest.mark.slow
def test_directory_in_use_names_who_uses_it(tmp_path: Path) -> None:
    with locked(tmp_path):
        line = fails(tmp_path, 2)
    assert f"another run is going on in it, process {os.getpid()} on " in line
