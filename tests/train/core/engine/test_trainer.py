"""A run from start to end, in one process: what it learns, what it writes, how it fails."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from configs import digits_resnet20
from nam_jax.attention import NAMES
from tests.helpers import tfds_writer, tiny
from train.core.config.fields import Config
from train.core.engine import evaluation, loop
from train.core.engine import experiment as experiment_lib
from train.core.errors import ConfigError, RunError
from train.core.workdir import lock

SUMMARY_FIELDS = {
    *("top1_error", "top5_error", "loss", "best_top1_error", "best_step", "num_eval_images"),
    *("steps", "devices", "params", "macs", "wall_seconds", "images_per_second", "state_sha256"),
}
ROW_FIELDS = {
    *("step", "epoch", "split", "loss", "cross_entropy", "penalty", "top1_error", "top5_error"),
}
TRAIN_FIELDS = {"learning_rate", "images_per_second", "data_wait"}
DIVERGING = {
    **{"optimizer.learning_rate": 1e30, "optimizer.schedule": "constant"},
    "optimizer.sparsity": 0.0,
}
SHORT = {"steps": 1, "optimizer.sparsity": 0.0}


def digits(**changes: Any) -> Config:
    config = digits_resnet20.get_config()
    config.batch_size = 64
    config.update_from_flattened_dict(changes)
    return config


def train(workdir: Path, **changes: Any) -> dict[str, Any]:
    return loop.train(experiment_lib.build(digits(**changes)), workdir)


def rows(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("learned")
    train(workdir, epochs=4, ema_decay=0.9, eval_every_epochs=2)
    return workdir


def test_learns_the_digits(learned: Path) -> None:
    evaluations = [row for row in rows(learned) if row["split"] == "eval"]
    assert [row["step"] for row in evaluations] == [44, 88]
    # Chance is 90 %.
    assert evaluations[-1]["top1_error"] < 40
    assert evaluations[-1]["top5_error"] <= evaluations[-1]["top1_error"]


def test_fields_of_rows_and_summary(learned: Path) -> None:
    for row in rows(learned):
        expected = ROW_FIELDS | (TRAIN_FIELDS if row["split"] == "train" else set())
        assert expected <= row.keys()
        assert row["loss"] == pytest.approx(row["cross_entropy"] + row["penalty"])
    summary = json.loads((learned / "summary.json").read_text())
    assert summary.keys() >= SUMMARY_FIELDS
    assert summary["steps"] == 88
    assert summary["num_eval_images"] == 359
    assert summary["params"] == 270610


def test_evaluations_of_nam_tell_its_small_weights(learned: Path) -> None:
    for row in rows(learned):
        found = {name for name in row if name.endswith("small_weights")}
        wanted = {"small_weights", "ema_small_weights"} if row["split"] == "eval" else set()
        assert found == wanted
        assert all(0 <= row[name] <= 100 for name in found)


def test_averaged_weights_are_evaluated_beside_the_others(learned: Path) -> None:
    last = rows(learned)[-1]
    assert last["ema_top1_error"] != last["top1_error"]
    assert last["ema_cross_entropy"] > 0


def test_directory_of_a_run(learned: Path) -> None:
    names = {path.name for path in learned.iterdir()}
    files = {"config.json", "environment.json", "metrics.jsonl", "summary.json"}
    assert names == files | {"checkpoints", "tensorboard"}
    config = json.loads((learned / "config.json").read_text())
    assert config["epochs"] == 4
    assert config["optimizer"]["milestones"] == [0.3, 0.6, 0.8]
    checkpoints = {path.name for path in (learned / "checkpoints").iterdir()}
    assert "88" in checkpoints


def test_evaluation_does_not_depend_on_batch_and_groups(learned: Path) -> None:
    trained = rows(learned)[-1]
    config = digits(epochs=4, ema_decay=0.9, eval_every_epochs=2, batch_size=100)
    config.model.sync_bn_devices = -1
    step, result = evaluation.evaluate_checkpoint(experiment_lib.build(config), learned, "last")
    assert step == 88
    assert result == pytest.approx({name: trained[name] for name in result}, rel=1e-5)


@pytest.fixture
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.use(monkeypatch)


@pytest.mark.usefixtures("tiny_network")
def test_infinite_loss_stops_the_run_and_names_the_step(tmp_path: Path) -> None:
    changes = {**DIVERGING, "steps": 30}
    with pytest.raises(
        RunError, match=r"the loss of step \d+ is (nan|inf); there is no checkpoint"
    ) as error:
        train(tmp_path, **changes)
    assert "config.optimizer.learning_rate" in str(error.value)
    assert all(np.isfinite(row["loss"]) for row in rows(tmp_path))
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.usefixtures("tiny_network")
def test_update_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    # The loss of step 2 is still finite: only that of step 3 would tell.
    changes = {"optimizer.weight_decay": 1e25, "optimizer.weight_decay_on": "kernels"}
    changes |= {"optimizer.sparsity": 0.0, "steps": 3, "checkpoint.every_steps": 1}
    with pytest.raises(
        RunError, match="the update of step 2 is not finite; the last good checkpoint is 1"
    ):
        train(tmp_path, **changes)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


@pytest.mark.usefixtures("tiny_network")
def test_infinite_evaluation_is_not_a_result(tmp_path: Path) -> None:
    changes = {**DIVERGING, "optimizer.learning_rate": 1e38, "steps": 1}
    with pytest.raises(RunError, match=r"the evaluation of step 1 is (nan|inf); there is no"):
        train(tmp_path, **changes)
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.usefixtures("tiny_network")
def test_run_that_loses_its_directory_in_an_evaluation_writes_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[lock.Lock] = []
    monkeypatch.setattr(lock.Lock, "_beat", lambda self: held.append(self))

    def taken_over(*arguments: Any) -> Any:
        held[0]._other = lock.Owner("elsewhere", 7, "of another start")
        return evaluation.evaluate(*arguments)

    monkeypatch.setattr(loop, "evaluate", taken_over)
    with pytest.raises(RunError, match="process 7 on elsewhere took the directory over"):
        train(tmp_path, **SHORT)
    assert not list((tmp_path / "checkpoints").iterdir())
    assert not (tmp_path / "summary.json").exists()


def test_of_two_starts_at_the_same_moment_one_has_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    is_refused = threading.Event()

    def held(experiment: Any, *rest: object) -> None:
        begun.append(experiment.config.batch_size)
        is_refused.wait(60)

    monkeypatch.setattr(loop, "_train", held)
    experiments = [experiment_lib.build(digits(batch_size=size)) for size in (32, 64)]

    def start(workdir: Path, experiment: Any) -> str:
        try:
            loop.train(experiment, epath.Path(workdir))
        except ConfigError as error:
            is_refused.set()
            return str(error)
        return ""

    for number in range(20):
        begun.clear()
        is_refused.clear()
        workdir = tmp_path / str(number)
        with ThreadPoolExecutor() as pool:
            said = list(pool.map(start, [workdir] * 2, experiments))
        (size,) = begun
        assert json.loads((workdir / "config.json").read_text())["batch_size"] == size
        (refused,) = filter(None, said)
        assert f"--workdir {workdir}: another run is going on in it" in refused


@pytest.mark.usefixtures("tiny_network")
def test_rows_that_are_gone_are_no_result(tmp_path: Path) -> None:
    train(tmp_path, **SHORT)
    (tmp_path / "summary.json").unlink()
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match="rows of the run lack its evaluations"):
        train(tmp_path, **SHORT)


@pytest.mark.usefixtures("tiny_network")
def test_device_without_enough_memory_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GiB\nand more")

    monkeypatch.setattr(loop, "evaluate", fail)
    with pytest.raises(RunError, match=r"^RESOURCE_EXHAUSTED: 9 GiB; a smaller config\.batch_size"):
        train(tmp_path, **SHORT)


@pytest.mark.parametrize("attention", NAMES)
def test_every_attention_builds(attention: str) -> None:
    changes = {"model.attention": attention, "optimizer.sparsity": 0.0}
    experiment = experiment_lib.build(digits(**changes))
    assert experiment.model.attention == attention
    assert experiment.total_steps == 30 * 22


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 66}, "nearest sizes that do: 64 or 68"),
        ({"batch_size": 1440}, "the split train has 1438"),
        ({"data.mean": (0.1, 0.2)}, "config.data.mean: 2 numbers"),
        ({"optimizer.warmup_epochs": 40.0}, "config.optimizer.warmup_epochs: 40"),
        ({"batch_size": 4, "data.mixup": 0.2}, "use a multiple of 8"),
        ({"model.sync_bn_devices": 3}, "config.model.sync_bn_devices"),
        ({"data.eval_split": "validation"}, "splits train and test"),
        ({"data.resident_limit_gb": 1e-5}, "config.data.resident_limit_gb: the split train"),
    ],
)
def test_config_that_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment_lib.build(digits(**changes))


def test_empty_split_is_refused(tmp_path: Path) -> None:
    images, labels = np.zeros((3, 8, 8, 1), np.uint8), [0, 1, 0]
    tfds_writer.write(tmp_path, "tiny", images, labels, 2)
    data = {"name": "tiny", "dir": str(tmp_path), "eval_split": "train[:0]"}
    config = digits(batch_size=4, **{f"data.{name}": value for name, value in data.items()})
    with pytest.raises(ConfigError, match=r"'train\[:0\]' of tiny is empty"):
        experiment_lib.build(config)
