"""A run in a bucket: stopped in the midst, it goes on there and ends as on a disk."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.train import gcs_server
from tests.train.gcs_server import Server

REPOSITORY = Path(__file__).parents[2]
BUCKET_RUN = "gs://bucket/runs/digits"
SPEED_FIELDS = {"images_per_second", "data_wait"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """In which all runs share their compiled steps."""
    cache = tmp_path_factory.mktemp("compiled")
    return os.environ | {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
    }


def command(workdir: object, name: str = "main") -> list[str]:
    return [
        *(sys.executable, "-m", f"train.{name}", "--config", "configs/digits_resnet20.py"),
        *("--workdir", str(workdir), "--config.steps=32", "--config.eval_every_epochs=1"),
        *("--config.checkpoint.every_steps=8", "--config.log_every_steps=3"),
    ]


def run(arguments: list[str], environment: dict[str, str]) -> str:
    result = subprocess.run(
        arguments, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def mark(step: int) -> str:
    """The object that a finished checkpoint holds."""
    return f"runs/digits/checkpoints/{step}/commit_success.txt"


def stop_after_a_checkpoint(server: Server, environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        command(BUCKET_RUN), cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL
    )
    while mark(8) not in server.blobs:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75


def rows(text: str) -> list[dict[str, object]]:
    return [
        {name: value for name, value in json.loads(line).items() if name not in SPEED_FIELDS}
        for line in text.splitlines()
    ]


def checkpoints(server: Server) -> dict[int, bool]:
    """By their steps: whether they are finished."""
    found = {int(name.split("/")[3]) for name in server.blobs if "/checkpoints/" in name}
    return {step: mark(step) in server.blobs for step in sorted(found)}


def test_stopped_run_goes_on_and_ends_with_the_same_bits(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    run(command(tmp_path), environment)
    with gcs_server.serve() as server:
        environment = environment | server.environment
        stop_after_a_checkpoint(server, environment)
        *_, before, last = checkpoints(server)
        # As a kill in the midst of the last checkpoint would have left it.
        del server.blobs[mark(last)]
        output = run(command(BUCKET_RUN), environment)
        assert f"going on from the checkpoint of step {before}\n" in output
        assert "no TensorBoard events in a bucket" in output
        found = [name for name in server.blobs if name.startswith("runs/digits/metrics/")]
        written = "".join(server.blobs[name].data.decode() for name in sorted(found))
        assert len(found) > 3
        assert rows(written) == rows((tmp_path / "metrics.jsonl").read_text())
        summary = json.loads(server.blobs["runs/digits/summary.json"].data)
        expected = json.loads((tmp_path / "summary.json").read_text())
        assert checkpoints(server) == dict.fromkeys({expected["best_step"], 24, 32}, True)
        timed = {"wall_seconds", "images_per_second"}
        assert {k: v for k, v in summary.items() if k not in timed} == {
            k: v for k, v in expected.items() if k not in timed
        }
        evaluation = run([*command(BUCKET_RUN, "evaluate"), "--which", "best"], environment)
        assert f"step {expected['best_step']}\n" in evaluation
        assert f"top1_error {expected['best_top1_error']:.6g}\n" in evaluation
    assert {name.split("/")[2] for name in server.blobs} == {
        *("config.json", "summary.json", "checkpoints", "metrics")
    }
