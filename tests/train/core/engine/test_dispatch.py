"""Several updates in one dispatch: where the groups end, and that nothing else changes."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from configs import digits_resnet20
from tests.helpers import tiny
from train.core.devices import mesh as mesh_lib
from train.core.engine import experiment as experiment_lib
from train.core.engine import loop
from train.core.engine.experiment import Experiment
from train.core.errors import PreemptedError

SPEED = {"images_per_second", "data_wait"}


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.use(monkeypatch)


@pytest.fixture
def grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups updates, as on GPUs and TPUs."""
    monkeypatch.setattr(mesh_lib, "is_cpu", lambda mesh: False)


def build(**changes: Any) -> Experiment:
    """22 steps an epoch."""
    config = digits_resnet20.get_config()
    config.update_from_flattened_dict({"optimizer.sparsity": 0.0, "epochs": 4, **changes})
    return experiment_lib.build(config)


def rows(workdir: Path) -> list[dict[str, Any]]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in SPEED} for line in lines]


def test_on_a_cpu_every_update_is_a_dispatch() -> None:
    assert list(build(steps=3).dispatches(1)) == [range(2, 3), range(3, 4)]


@pytest.mark.usefixtures("grouped")
def test_streamed_batches_are_dispatched_one_by_one() -> None:
    config = build().config.copy_and_resolve_references()
    experiment = build()
    config.data.loader = "streaming"
    object.__setattr__(experiment, "config", config)
    assert experiment.longest_dispatch == 1


@pytest.mark.usefixtures("grouped")
@pytest.mark.parametrize(
    ("changes", "start", "ends"),
    [
        ({"log_every_steps": 1000}, 0, [16, 22, 38, 44, 60, 66, 82, 88]),
        ({"log_every_steps": 10}, 15, [20, 22, 30, 40, 44, 50, 60, 66, 70, 80, 88]),
        ({"log_every_steps": 1000, "checkpoint.every_steps": 12}, 40, [44, 48, 60, 66, 72, 84, 88]),
        ({"log_every_steps": 1000, "steps": 30}, 0, [16, 22, 30]),
    ],
)
def test_groups_end_where_something_is_due(
    changes: dict[str, Any], start: int, ends: list[int]
) -> None:
    dispatches = list(build(**changes).dispatches(start))
    assert [steps[-1] for steps in dispatches] == ends
    assert [step for steps in dispatches for step in steps] == list(range(start + 1, ends[-1] + 1))


@pytest.mark.parametrize("every", [5, 1000])
def test_groups_do_not_change_the_rows(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"log_every_steps": every, "checkpoint.every_steps": 9, "steps": 50}
    one = loop.train(build(**changes), tmp_path / "one")
    monkeypatch.setattr(mesh_lib, "is_cpu", lambda mesh: False)
    grouped = loop.train(build(**changes), tmp_path / "grouped")
    assert grouped["loss"] == pytest.approx(one["loss"], rel=1e-4)
    pairs = list(zip(rows(tmp_path / "grouped"), rows(tmp_path / "one"), strict=True))
    assert [actual["step"] for actual, _ in pairs] == [expected["step"] for _, expected in pairs]
    for actual, expected in pairs:
        numbers = [{k: v for k, v in row.items() if k != "split"} for row in (actual, expected)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-4)
        assert actual["split"] == expected["split"]
    saved = {path.name for path in (tmp_path / "grouped/checkpoints").iterdir()}
    assert saved == {path.name for path in (tmp_path / "one/checkpoints").iterdir()}


@pytest.mark.usefixtures("grouped")
def test_signal_ends_a_run_after_the_group_that_it_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"log_every_steps": 5, "eval_every_epochs": 4}
    expected = loop.train(build(**changes), tmp_path / "expected")
    take = loop.Log.train

    def interrupted(log: Any, steps: range, metrics: Any) -> None:
        take(log, steps, metrics)
        if 12 in steps:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop.Log, "train", interrupted)
    with pytest.raises(PreemptedError, match="stopped after step 15, which is saved"):
        loop.train(build(**changes), tmp_path / "run")
    resumed = loop.train(build(**changes), tmp_path / "run")
    assert resumed["state_sha256"] == expected["state_sha256"]
    assert rows(tmp_path / "run") == rows(tmp_path / "expected")
