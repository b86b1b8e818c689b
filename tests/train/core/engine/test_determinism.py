"""The same command gives the same bits, another seed others, and the clock has no say."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from configs import digits_resnet20
from tests.helpers import tiny
from train.core.engine import experiment as experiment_lib
from train.core.engine import loop
from train.core.monitor.metric_rows import Row, RowFile

TIMED = {"images_per_second", "data_wait", "wall_seconds"}
DAY = 86400.0
# Of the clock, from ten rows to ten rows.
SHIFTS = (0, DAY, -400 * DAY, 400 * DAY)


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.use(monkeypatch)


def train(workdir: Path, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary and the rows of a run."""
    config = digits_resnet20.get_config()
    config.steps, config.log_every_steps, config.checkpoint.every_steps = 30, 1, 7
    config.seed, config.optimizer.sparsity = seed, 0.0
    summary = loop.train(experiment_lib.build(config), workdir)
    assert summary is not None
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return summary, [{k: v for k, v in row.items() if k not in TIMED} for row in rows]


def test_same_command_gives_the_same_bits_and_another_seed_others(tmp_path: Path) -> None:
    runs = [train(tmp_path / str(number), seed) for number, seed in enumerate((0, 0, 1))]
    digests = [summary["state_sha256"] for summary, _ in runs]
    assert digests[0] == digests[1] != digests[2]
    assert runs[0][1] == runs[1][1]
    losses = [[row["loss"] for row in rows] for _, rows in runs]
    assert not set(losses[0]) & set(losses[2])


def test_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, rows = train(tmp_path / "undisturbed")
    now, append, written = time.time, RowFile.append, []

    def count(self: RowFile, row: Row) -> None:
        written.append(row)
        append(self, row)

    monkeypatch.setattr(RowFile, "append", count)
    monkeypatch.setattr(time, "time", lambda: now() + SHIFTS[len(written) // 10])
    found, found_rows = train(tmp_path / "disturbed")
    assert len(written) == 31
    assert found["state_sha256"] == expected["state_sha256"]
    assert found_rows == rows
    assert 0 < found["wall_seconds"] < DAY
    for line in (tmp_path / "disturbed" / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line).get("images_per_second", 1) > 0
