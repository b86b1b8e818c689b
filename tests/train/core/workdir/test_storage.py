"""Directories on a disk and in a bucket: their names, what is written whole, a run in one."""

import errno
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from etils import epath

from tests.helpers import commands, gcs_server
from tests.helpers.commands import LIMIT_SECONDS, MAIN, REPOSITORY, TINY, finish, run
from tests.helpers.gcs_server import Server
from train.core.errors import ConfigError, reason
from train.core.monitor import metric_rows
from train.core.monitor.metric_rows import RowFile, RowSegments
from train.core.workdir import storage
from train.core.workdir.checkpoint_files import saved_steps
from train.core.workdir.checkpoints import Checkpoints


@pytest.fixture
def server(monkeypatch):
    with gcs_server.serve() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        # fsspec has read its own part of it already.
        monkeypatch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
        yield server


def full_disk(_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "change",
    [lambda path: storage.write_text(path, "new"), lambda path: RowFile(path).truncate(0)],
    ids=["write_text", "truncate"],
)
def test_write_that_fails_midway_leaves_the_old_file(tmp_path, monkeypatch, change):
    path = tmp_path / "rows"
    text = '{"step": 1, "epoch": 0.1, "split": "train"}\n'
    path.write_text(text)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        change(path)
    assert path.read_text() == text
    assert os.listdir(tmp_path) == ["rows"]


def test_write_text_replaces_the_old_file(tmp_path):
    for text in ("old and longer", "new"):
        storage.write_text(tmp_path / "file", text)
        assert (tmp_path / "file").read_text() == text
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_kill_left_is_removed_and_no_more(tmp_path):
    names = ["config.json", "config.json.0123abcd.tmp", "summary.json.89abcdef.tmp", "tmp", "lock"]
    kept = ["notes.tmp", "folder.89abcdef.tmp"]
    for name in (*names, "notes.tmp"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder.89abcdef.tmp").mkdir()
    storage.remove_temporary(epath.Path(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted(["config.json", "lock", "tmp", *kept])


def test_writers_at_the_same_time_do_not_disturb_one_another(tmp_path):
    texts = ["short", "longer" * 10_000]

    def write(text):
        for _ in range(50):
            storage.write_text(tmp_path / "file", text)
            assert (tmp_path / "file").read_text() in texts

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, texts))
    assert os.listdir(tmp_path) == ["file"]


def test_local_directory_may_begin_with_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert os.fspath(storage.locate("~/runs/first")) == "/home/somebody/runs/first"
    assert os.fspath(storage.locate("runs/[1]")) == "runs/[1]"


def test_children_are_in_order(tmp_path):
    directory = epath.Path(tmp_path) / "[1]"
    assert storage.children(directory) == []
    directory.mkdir()
    for name in ("b", "c", "a"):
        storage.write_text(directory / name, name)
    assert [path.name for path in storage.children(directory)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "text", ["gs://", "gs://bucket", "gs://bucket/", "gs:///run", "s3://bucket/run", "://run"]
)
def test_other_places_are_refused(text):
    with pytest.raises(ConfigError, match=r"^--workdir: got .*; allowed: a local directory, or gs"):
        storage.locate(text)


@pytest.mark.parametrize("package", ["gcsfs", "google.cloud"])
def test_missing_packages_are_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{package}.*pip install -e '\.\[train,gcs\]'\.$"):
        storage.locate("gs://bucket/run")


def test_missing_credentials_are_said(monkeypatch):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    with pytest.raises(ConfigError, match=r"^--workdir: gs://bucket cannot .* not found\.$"):
        storage.locate("gs://bucket/run")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied."),
        (OSError("Forbidden: b/bucket\nno storage.objects.create"), "Forbidden: b/bucket."),
        (ValueError(), "ValueError."),
    ],
)
def test_reason_is_one_line(error, expected):
    assert reason(error) == expected


def test_missing_bucket_is_said(server):
    with pytest.raises(ConfigError, match=r"^--workdir: gs://other cannot .* does not exist\.$"):
        storage.locate("gs://other/run")
    assert not server.blobs


def test_objects_are_replaced_and_listed(server):
    directory = storage.locate("gs://bucket/run")
    assert storage.is_bucket(directory)
    assert storage.children(directory) == []
    for text in ("old and longer", "new"):
        storage.write_text(directory / "b", text)
        assert (directory / "b").read_text() == text
    assert [path.name for path in storage.children(directory)] == ["b"]
    # As another process or TensorStore would.
    server.write("run/a", b"")
    server.write("run/c/d", b"")
    assert [path.name for path in storage.children(directory)] == ["a", "b", "c"]


def test_rows_lie_in_segments_in_a_bucket_alone(server, tmp_path):
    directory = storage.locate("gs://bucket/run")
    assert isinstance(metric_rows.of(epath.Path(tmp_path)), RowFile)
    segments = metric_rows.of(directory)
    assert isinstance(segments, RowSegments)
    segments.truncate(0)
    rows = [{"step": step, "epoch": step / 10, "split": "train"} for step in range(1, 7)]
    for row in rows:
        segments.append(row)
        if row["step"] % 2 == 0:
            segments.sync()
    segments.truncate(3)
    assert metric_rows.of(directory).rows() == rows[:3]
    assert list(server.blobs) == ["run/metrics/000000.jsonl", "run/metrics/000001.jsonl"]


def test_checkpoint_in_a_bucket_counts_when_it_is_marked_as_finished(server):
    directory = storage.locate("gs://bucket/run/checkpoints")
    assert not saved_steps(directory)
    server.write("run/checkpoints/4/state/manifest.ocdbt", b"")
    assert not saved_steps(directory)
    server.write("run/checkpoints/4/commit_success.txt", b"")
    assert saved_steps(directory)


def test_unfinished_checkpoint_in_a_bucket_is_passed_over(server):
    directory = storage.locate("gs://bucket/run/checkpoints")
    for name in ("4/state/manifest.ocdbt", "4/commit_success.txt", "8/state/manifest.ocdbt"):
        server.write(f"run/checkpoints/{name}", b"")
    # Only to read: Orbax removes the other one in the background, longer than the server lasts.
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.latest_step() == 4


def test_checkpoint_on_a_disk_counts_when_it_has_its_name(tmp_path):
    directory = epath.Path(tmp_path) / "[1]" / "checkpoints"
    assert not saved_steps(directory)
    (directory / "4.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not saved_steps(directory)
    (directory / "4").mkdir()
    assert saved_steps(directory)


# A run in a bucket: stopped in the midst, it goes on there and ends as on a disk.

DIRECTORY = "runs/digits"
WORKDIR: Any = f"gs://{gcs_server.BUCKET}/{DIRECTORY}"
OPTIONS = (
    *commands.PLAIN,
    *("--config.steps=16", "--config.batch_size=16"),
    *("--config.checkpoint.every_steps=4", "--config.log_every_steps=3"),
)
TIMED = {"images_per_second", "data_wait", "wall_seconds"}


def mark(step: int) -> str:
    """The object that a finished checkpoint holds."""
    return f"{DIRECTORY}/checkpoints/{step}/commit_success.txt"


def checkpoints(server: Server) -> dict[int, bool]:
    """By their steps: whether they are finished."""
    steps = {int(name.split("/")[3]) for name in server.blobs if "/checkpoints/" in name}
    return {step: mark(step) in server.blobs for step in sorted(steps)}


def stop_after_a_checkpoint(server: Server, module: str) -> None:
    # The smallest network would be at the end before the signal comes.
    environment = {**server.environment, "STEP_SECONDS": "0.2"}
    with commands.started(1, WORKDIR, *OPTIONS, module=module, **environment) as (process,):
        commands.wait_for(lambda: mark(4) in server.blobs, process)
        process.send_signal(signal.SIGTERM)
        ((code, _, error),) = finish([process])
    assert code == 75, error


def call(server: Server, module: str, *arguments: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", module, "--workdir", WORKDIR, *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | server.environment | environment,
        timeout=LIMIT_SECONDS,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
    ).stdout


def evaluate_best(server: Server, module: str) -> str:
    config = ("--config", "configs/digits_resnet20.py", *OPTIONS)
    evaluates = "train.evaluate" if module == MAIN else module
    return call(server, evaluates, *config, "--which", "best", COMMAND="train.evaluate")


def untimed(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name not in TIMED}


@pytest.mark.parametrize(
    "module",
    [pytest.param(TINY, marks=pytest.mark.slow), pytest.param(MAIN, marks=pytest.mark.long)],
)
def test_stopped_run_goes_on_and_ends_with_the_same_bits(module: str, tmp_path: Path) -> None:
    run(1, tmp_path, *OPTIONS, module=module)
    expected = commands.summary(tmp_path)
    with gcs_server.serve() as server:
        stop_after_a_checkpoint(server, module)
        *_, before, last = checkpoints(server)
        # As a kill in the midst of the last checkpoint would have left it.
        del server.blobs[mark(last)]
        # Marked as finished, and without anything in it.
        server.blobs[mark(99)] = server.blobs[mark(before)]
        (output,) = run(1, WORKDIR, *OPTIONS, module=module, **server.environment)
        assert "warning: checkpoints/99 is damaged: " in output
        assert f"going on from the checkpoint of step {before}\n" in output
        assert "no TensorBoard events in a bucket" in output
        evaluation = evaluate_best(server, module)
        assert call(server, "train.report") == f"{WORKDIR}/report.html\n"
    assert f"step {expected['best_step']}\n" in evaluation
    assert f"top1_error {expected['best_top1_error']:.6g}\n" in evaluation
    assert checkpoints(server) == dict.fromkeys({expected["best_step"], 12, 16}, True)
    files = {name.removeprefix(f"{DIRECTORY}/"): blob.data for name, blob in server.blobs.items()}
    assert untimed(json.loads(files["summary.json"])) == untimed(expected)
    segments = [files[name] for name in sorted(files) if name.startswith("metrics/")]
    assert len(segments) > 3
    rows = map(json.loads, b"".join(segments).splitlines())
    local = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert list(map(untimed, rows)) == list(map(untimed, local))
    assert b"Finished after 16 steps" in files["report.html"]
    assert files["report/loss-dark.png"].startswith(b"\x89PNG")
    top = {"config.json", "dataset.json", "environment.json", "summary.json"}
    top |= {"checkpoints", "metrics", "report.html", "report", "damaged"}
    assert {name.partition("/")[0] for name in files} == top
