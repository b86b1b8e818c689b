"""A run in a bucket: stopped in the midst, it goes on there and ends as on a disk."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import commands, gcs_server
from tests.helpers.commands import LIMIT_SECONDS, QUICK_COMPILATION, REPOSITORY, finish, run
from tests.helpers.gcs_server import Server

# A kill in the midst of a checkpoint, and what lies where, are tested in test_storage.py too.
pytestmark = pytest.mark.slow

DIRECTORY = "runs/digits"
WORKDIR: Any = f"gs://{gcs_server.BUCKET}/{DIRECTORY}"
OPTIONS = (
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


def stop_after_a_checkpoint(server: Server) -> None:
    with commands.started(1, WORKDIR, *OPTIONS, **server.environment) as (process,):
        commands.wait_for(lambda: mark(4) in server.blobs, process)
        process.send_signal(signal.SIGTERM)
        ((code, _, error),) = finish([process])
    assert code == 75, error


def evaluate_best(server: Server) -> str:
    config = ("--config", "configs/digits_resnet20.py")
    return call(server, "evaluate", *config, *OPTIONS, "--which", "best")


def call(server: Server, command: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", f"train.{command}", "--workdir", WORKDIR, *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | QUICK_COMPILATION | server.environment,
        timeout=LIMIT_SECONDS,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
    ).stdout


def untimed(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name not in TIMED}


def test_stopped_run_goes_on_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    run(1, tmp_path, *OPTIONS)
    expected = commands.summary(tmp_path)
    with gcs_server.serve() as server:
        stop_after_a_checkpoint(server)
        *_, before, last = checkpoints(server)
        # As a kill in the midst of the last checkpoint would have left it.
        del server.blobs[mark(last)]
        # Marked as finished, and without anything in it.
        server.blobs[mark(99)] = server.blobs[mark(before)]
        (output,) = run(1, WORKDIR, *OPTIONS, **server.environment)
        assert "warning: checkpoints/99 is damaged: " in output
        assert f"going on from the checkpoint of step {before}\n" in output
        assert "no TensorBoard events in a bucket" in output
        evaluation = evaluate_best(server)
        assert call(server, "report") == f"{WORKDIR}/report.html\n"
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
    assert files["report/maps-dark.png"].startswith(b"\x89PNG")
    top = {"config.json", "dataset.json", "environment.json", "summary.json"}
    top |= {"checkpoints", "metrics", "report.html", "report", "damaged"}
    assert {name.partition("/")[0] for name in files} == top
