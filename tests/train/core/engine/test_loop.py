"""A run from start to end, in one process: what it learns, what it writes, how it fails."""

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from flax import linen as nn

from nam_jax import NAM, models
from nam_jax.models import blocks
from tests.helpers import tiny
from tests.helpers.tiny import digits
from train.core.config.fields import Config
from train.core.data import resident
from train.core.devices import environment
from train.core.engine import compiled_steps, loop
from train.core.engine.evaluation import checkpoint_weights, evaluate, evaluate_split
from train.core.engine.experiment import Experiment, build_experiment
from train.core.errors import ConfigError, PreemptedError, RunError
from train.core.monitor.metric_rows import Row, RowFile
from train.core.monitor.profiler import Span
from train.core.workdir import lock

TIMED = {"images_per_second", "data_wait", "wall_seconds"}
DAY = 86400.0
# Of the clock, from ten rows to ten rows.
SHIFTS = (0, DAY, -400 * DAY, 400 * DAY)

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


def build(**changes: Any) -> Experiment:
    return build_experiment(digits(**{"batch_size": 64, **changes}))


def train(workdir: Path, profile: Span | None = None, **changes: Any) -> dict[str, Any]:
    summary = loop.train(build(**changes), epath.Path(workdir), profile)
    assert summary is not None
    return summary


def rows(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def untimed_rows(workdir: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMED} for row in rows(workdir)]


# The network's number of parameters.
PARAMETERS = {"resnet20": 270610, "small": 5370}


@pytest.fixture(scope="module", params=[pytest.param("resnet20", marks=pytest.mark.long), "small"])
def learned(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, str]]:
    """A run's directory, and the name of its network."""
    workdir = tmp_path_factory.mktemp("learned")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "small":
            patch.setattr(models, "create", small_network)
        train(workdir, epochs=4, ema_decay=0.9, eval_every_epochs=2)
        yield workdir, request.param


class Small(nn.Module):
    """A convolution, attention and a linear layer."""

    num_classes: int
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = {"use_running_average": not train, "axis_name": self.axis_name}
        x = nn.relu(nn.BatchNorm(**norm)(nn.Conv(8, (3, 3))(x)))
        x = NAM(**norm, name="attention")(x)
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


def small_network(name: str, *, num_classes: int, axis_name: str | None = None, **_: Any) -> Small:
    return Small(num_classes, axis_name)


def test_learns_the_digits(learned: tuple[Path, str]) -> None:
    evaluations = [row for row in rows(learned[0]) if row["split"] == "eval"]
    assert [row["step"] for row in evaluations] == [44, 88]
    # Chance is 90 %.
    assert evaluations[-1]["top1_error"] < 40
    assert evaluations[-1]["top5_error"] <= evaluations[-1]["top1_error"]


def test_fields_of_rows_and_summary(learned: tuple[Path, str]) -> None:
    for row in rows(learned[0]):
        expected = ROW_FIELDS | (TRAIN_FIELDS if row["split"] == "train" else set())
        assert expected <= row.keys()
        assert row["loss"] == pytest.approx(row["cross_entropy"] + row["penalty"])
    summary = json.loads((learned[0] / "summary.json").read_text())
    assert summary.keys() >= SUMMARY_FIELDS
    assert summary["steps"] == 88
    assert summary["num_eval_images"] == 359
    assert summary["params"] == PARAMETERS[learned[1]]


def test_evaluations_of_nam_tell_its_small_weights(learned: tuple[Path, str]) -> None:
    for row in rows(learned[0]):
        found = {name for name in row if name.endswith("small_weights")}
        wanted = {"small_weights", "ema_small_weights"} if row["split"] == "eval" else set()
        assert found == wanted
        assert all(0 <= row[name] <= 100 for name in found)


def test_averaged_weights_are_evaluated_beside_the_others(learned: tuple[Path, str]) -> None:
    last = rows(learned[0])[-1]
    # Their errors may be alike by chance.
    assert 0 < last["ema_cross_entropy"] != last["cross_entropy"]
    assert last["ema_top1_error"] < 90
    summary = json.loads((learned[0] / "summary.json").read_text())
    for name in ("top1_error", "top5_error", "loss"):
        assert summary[f"ema_{name}"] == last[f"ema_{name}"]
    assert summary["best_ema_top1_error"] <= summary["ema_top1_error"]
    assert summary["best_ema_step"] in (44, 88)


def test_directory_of_a_run(learned: tuple[Path, str]) -> None:
    names = {path.name for path in learned[0].iterdir()}
    files = {"config.json", "dataset.json", "environment.json", "metrics.jsonl", "summary.json"}
    assert names == files | {"checkpoints", "tensorboard"}
    dataset = json.loads((learned[0] / "dataset.json").read_text())
    assert dataset == {
        **{"num_classes": 10, "class_names": None, "image_shape": [8, 8, 1]},
        "num_images": {"train": 1438, "test": 359},
    }
    config = json.loads((learned[0] / "config.json").read_text())
    assert config["epochs"] == 4
    assert config["optimizer"]["milestones"] == [0.3, 0.6, 0.8]
    checkpoints = {path.name for path in (learned[0] / "checkpoints").iterdir()}
    assert "88" in checkpoints


def test_evaluation_does_not_depend_on_batch_and_groups(learned: tuple[Path, str]) -> None:
    trained = rows(learned[0])[-1]
    changes = {"epochs": 4, "ema_decay": 0.9, "eval_every_epochs": 2}
    experiment = build(batch_size=100, **{"model.sync_bn_devices": -1}, **changes)
    step, weights = checkpoint_weights(experiment, epath.Path(learned[0]), "last")
    assert step == 88
    result = evaluate_split(experiment, weights)
    assert result == pytest.approx({name: trained[name] for name in result}, rel=1e-5)


@pytest.fixture
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.use(monkeypatch)


@pytest.mark.usefixtures("tiny_network")
def test_every_start_of_an_unfinished_run_tells_of_its_machine(tmp_path: Path) -> None:
    file = tmp_path / "environment.json"
    file.write_text("of an earlier start")
    tmp_path.joinpath("checkpoints").mkdir()
    train(tmp_path, **SHORT)
    # Midnight may lie between.
    undated = {"date": None}
    assert json.loads(file.read_text()) | undated == environment.describe() | undated
    file.write_text("of the run")
    train(tmp_path, **SHORT)
    assert file.read_text() == "of the run"


@pytest.mark.usefixtures("tiny_network")
def test_steps_that_are_asked_for_are_traced(tmp_path: Path) -> None:
    train(tmp_path, Span(1, 1), **SHORT)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_network")
def test_as_many_checkpoints_stay_as_are_asked_for(tmp_path: Path) -> None:
    changes = {"steps": 5, "checkpoint.every_steps": 1, "checkpoint.keep": 3}
    train(tmp_path, **SHORT | changes)
    # The last is the best as well.
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"3", "4", "5"}


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


@pytest.mark.slow
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
        return evaluate(*arguments)

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
    experiments = [build(batch_size=size) for size in (32, 64)]

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


@pytest.mark.slow
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
    with pytest.raises(RunError, match=r"batch_size takes less \(RESOURCE_EXHAUSTED: 9 GiB\)"):
        train(tmp_path, **SHORT)


# The same command gives the same bits, another seed others, and the clock has no say.


def train_30(workdir: Path, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary and the rows of a run of 30 steps."""
    changes = {"optimizer.sparsity": 0.0, "checkpoint.every_steps": 7, "steps": 30}
    summary = train(workdir, seed=seed, log_every_steps=1, **changes)
    return summary, untimed_rows(workdir)


@pytest.mark.usefixtures("tiny_network")
def test_same_command_gives_the_same_bits_and_another_seed_others(tmp_path: Path) -> None:
    runs = [train_30(tmp_path / str(number), seed) for number, seed in enumerate((0, 0, 1))]
    digests = [summary["state_sha256"] for summary, _ in runs]
    assert digests[0] == digests[1] != digests[2]
    assert runs[0][1] == runs[1][1]
    losses = [[row["loss"] for row in rows] for _, rows in runs]
    assert not set(losses[0]) & set(losses[2])


@pytest.mark.usefixtures("tiny_network")
def test_a_stopped_run_in_a_relative_directory_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save = loop.Log.train

    def interrupted(log: Any, steps: range, metrics: Any) -> None:
        save(log, steps, metrics)
        if 1 in steps:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as stopping:
        stopping.setattr(loop.Log, "train", interrupted)
        with pytest.raises(PreemptedError):
            train(Path("runs/run"), steps=4, **{"optimizer.sparsity": 0.0})
    assert train(Path("runs/run"), steps=4, **{"optimizer.sparsity": 0.0})["steps"] == 4
    assert [row["step"] for row in rows(tmp_path / "runs" / "run")] == [4, 4]
    assert not (tmp_path / "runs" / "run" / "damaged").exists()


@pytest.mark.usefixtures("tiny_network")
def test_run_goes_on_with_as_many_images_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"steps": 4, "optimizer.sparsity": 0.0}
    monkeypatch.setattr(loop.Preemption, "reached", lambda self: True)
    with pytest.raises(PreemptedError):
        train(tmp_path, **changes)
    path = tmp_path / "dataset.json"
    path.write_text(path.read_text().replace("1438", "1000"))
    with pytest.raises(ConfigError, match="the number of 'train' is 1000 there and 1438 here"):
        train(tmp_path, **changes)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_network")
def test_all_rows_and_the_summary_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    sender = SimpleNamespace(write=sent.append, finish=sent.append)

    def opened(workdir: epath.Path, config: Config, start_step: int) -> Any:
        sent.append((workdir, config.log.wandb_project, start_step))
        return contextlib.nullcontext(sender)

    monkeypatch.setattr("train.core.monitor.weights_and_biases.opened", opened)
    monkeypatch.setattr("train.core.monitor.weights_and_biases.check_installed", lambda _: None)
    changes = {"log.wandb_project": "digits", "log_every_steps": 1, **SHORT}
    summary = train(tmp_path, **changes)
    assert sent == [(tmp_path, "digits", 0), *rows(tmp_path), summary]


@pytest.mark.usefixtures("tiny_network")
def test_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, rows = train_30(tmp_path / "undisturbed")
    now, append, written = time.time, RowFile.append, []

    def count(self: RowFile, row: Row) -> None:
        written.append(row)
        append(self, row)

    monkeypatch.setattr(RowFile, "append", count)
    monkeypatch.setattr(time, "time", lambda: now() + SHIFTS[len(written) // 10])
    found, found_rows = train_30(tmp_path / "disturbed")
    assert len(written) == 31
    assert found["state_sha256"] == expected["state_sha256"]
    assert found_rows == rows
    assert 0 < found["wall_seconds"] < DAY
    for line in (tmp_path / "disturbed" / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line).get("images_per_second", 1) > 0


# With all that the recipes of today have, too.

RECIPE = {
    **{"steps": 6, "checkpoint.every_steps": 3, "loss": "sigmoid", "loss_threshold": 0.2},
    **{"model.drop_path": 0.5, "model.dropout": 0.2, "data.mixup": 0.1, "ema_decay": 0.9},
    **{"data.augment_repeats": 4, "data.eval_image_size": 12, "optimizer.schedule": "exponential"},
}


class Dropping(nn.Module):
    """A branch with attention and a classifier, of which a recipe drops rows and features."""

    num_classes: int
    axis_name: str | None
    drop_path: float
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, row_keys: jax.Array | None = None) -> jax.Array:
        keys = blocks.needed_keys(row_keys, x.shape[0], self.drop_path, self.dropout, train=train)
        norm = {"use_running_average": not train, "axis_name": self.axis_name}
        x = nn.Conv(8, (3, 3), 2)(x)
        y = NAM(**norm, name="attention")(nn.BatchNorm(**norm)(x))
        x = nn.relu(x + blocks.drop(y, blocks.keys_of(keys, 0), self.drop_path))
        return blocks.head(x, self.num_classes, blocks.keys_of(keys, 1), self.dropout)


def dropping_network(name: str, *, num_classes: int, **fields: Any) -> Dropping:
    return Dropping(
        num_classes, **{key: fields[key] for key in ("axis_name", "drop_path", "dropout")}
    )


@pytest.mark.parametrize(
    ("create", "name", "mode"),
    [
        pytest.param(dropping_network, "adamw", "proximal", marks=pytest.mark.slow),
        (dropping_network, "lamb", "sign"),
        pytest.param(dropping_network, "muon", "proximal", marks=pytest.mark.slow),
        pytest.param(models.create, "adamw", "proximal", marks=pytest.mark.long),
    ],
)
def test_recipe_of_today_goes_on_with_the_same_bits(
    create: Any, name: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "create", create)
    changes = {**RECIPE, "optimizer.name": name, "optimizer.sparsity_mode": mode}
    expected = train(tmp_path / "expected", **changes)
    take = loop.Log.train

    def interrupted(log: Any, steps: range, metrics: Any) -> None:
        take(log, steps, metrics)
        if 4 in steps:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop.Log, "train", interrupted)
    with pytest.raises(PreemptedError, match="stopped after step 4, which is saved"):
        train(tmp_path / "run", **changes)
    resumed = train(tmp_path / "run", **changes)
    assert resumed["state_sha256"] == expected["state_sha256"]
    assert untimed_rows(tmp_path / "run") == untimed_rows(tmp_path / "expected")


# Several updates in one dispatch change nothing else.


def group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups updates, as on GPUs and TPUs."""
    for module in (resident, compiled_steps):
        monkeypatch.setattr(module, "is_cpu", lambda mesh: False)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_network")
@pytest.mark.parametrize("every", [5, pytest.param(1000, marks=pytest.mark.slow)])
def test_groups_do_not_change_the_rows(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"log_every_steps": every, "checkpoint.every_steps": 9, "steps": 50}
    changes |= {"optimizer.sparsity": 0.0}
    one = train(tmp_path / "one", **changes)
    group(monkeypatch)
    grouped = train(tmp_path / "grouped", **changes)
    assert grouped["loss"] == pytest.approx(one["loss"], rel=1e-4)
    both = (untimed_rows(tmp_path / name) for name in ("grouped", "one"))
    pairs = list(zip(*both, strict=True))
    assert [actual["step"] for actual, _ in pairs] == [expected["step"] for _, expected in pairs]
    for actual, expected in pairs:
        numbers = [{k: v for k, v in row.items() if k != "split"} for row in (actual, expected)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-4)
        assert actual["split"] == expected["split"]
    saved = {path.name for path in (tmp_path / "grouped/checkpoints").iterdir()}
    assert saved == {path.name for path in (tmp_path / "one/checkpoints").iterdir()}


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_network")
def test_signal_ends_a_run_after_the_group_that_it_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"log_every_steps": 5, "eval_every_epochs": 4, "epochs": 4}
    changes |= {"optimizer.sparsity": 0.0}
    group(monkeypatch)
    expected = train(tmp_path / "expected", **changes)
    take = loop.Log.train

    def interrupted(log: Any, steps: range, metrics: Any) -> None:
        take(log, steps, metrics)
        if 12 in steps:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop.Log, "train", interrupted)
    with pytest.raises(PreemptedError, match="stopped after step 15, which is saved"):
        train(tmp_path / "run", **changes)
    resumed = train(tmp_path / "run", **changes)
    assert resumed["state_sha256"] == expected["state_sha256"]
    assert untimed_rows(tmp_path / "run") == untimed_rows(tmp_path / "expected")
