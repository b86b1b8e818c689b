"""What follows from a config: the network, the dispatches, and what does not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nam_jax.attention import NAMES
from tests.helpers.image_datasets import tfds_writer
from tests.helpers.tiny import digits
from train.core.data import resident
from train.core.data.resident import LONGEST_DISPATCH
from train.core.data.streaming import Streaming
from train.core.engine.experiment import Experiment, build_experiment
from train.core.errors import ConfigError


def build(**changes: Any) -> Experiment:
    """22 steps an epoch."""
    return build_experiment(digits(**{"optimizer.sparsity": 0.0, "epochs": 4, **changes}))


@pytest.fixture
def grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups updates, as on GPUs and TPUs."""
    monkeypatch.setattr(resident, "is_cpu", lambda mesh: False)


def test_on_a_cpu_every_update_is_a_dispatch() -> None:
    assert list(build(steps=3).dispatches(1)) == [range(2, 3), range(3, 4)]


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({}, "shortcut", "pad_centre"),
        ({"model.shortcut": "pad_end"}, "shortcut", "pad_end"),
        ({"model.name": "mobilenet_v2"}, "width_multiplier", 1),
        ({}, "drop_path", 0),
        ({"model.drop_path": 0.1}, "drop_path", 0.1),
        ({"model.name": "mobilenet_v2", "model.dropout": 0.2}, "dropout", 0.2),
        ({"model.name": "mobilenet_v2", "model.width": 0.5}, "width_multiplier", 0.5),
        ({"model.stem": "imagenet"}, "stem", "imagenet"),
        ({"model.dtype": "bfloat16"}, "dtype", "bfloat16"),
        ({"model.zero_init_last_scale": True}, "zero_init_last_scale", True),
        ({"model.remat": True}, "remat", True),
        ({}, "attention_options", {}),
        (
            {"model.attention": "nam", "model.normalization": "mean", "model.gate_scale": 2.0},
            "attention_options",
            {"normalization": "mean", "gate_scale": 2.0},
        ),
    ],
)
def test_network_has_the_fields_of_the_config(
    changes: dict[str, Any], field: str, expected: Any
) -> None:
    assert getattr(build(**changes).model, field) == expected


@pytest.mark.parametrize(("changes", "size"), [({}, 8), ({"data.eval_image_size": 12}, 12)])
def test_images_that_are_evaluated_may_have_another_size(
    changes: dict[str, Any], size: int
) -> None:
    experiment = build(**changes)
    assert experiment.train_split.image_shape == (8, 8, 1)
    assert experiment.eval_split.image_shape == (size, size, 1)
    assert experiment.dataset["image_shape"] == (8, 8, 1)


def test_exponential_schedule_knows_the_epochs() -> None:
    changes = {"optimizer.schedule": "exponential", "optimizer.decay_factor": 0.5}
    rates = [float(build(**changes).learning_rate(step)) for step in (0, 21, 22, 44)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.05, 0.025], rtol=1e-6)


def test_learning_rate_follows_batch_size_and_warm_up() -> None:
    changes = {
        "batch_size": 64,
        "optimizer.reference_batch_size": 32,
        "optimizer.warmup_epochs": 1.0,
    }
    experiment = build(**changes, **{"optimizer.schedule": "constant"})
    rates = [float(experiment.learning_rate(step)) for step in (0, 11, 22, 80)]
    np.testing.assert_allclose(rates, np.array([1 / 23, 12 / 23, 1, 1]) * 0.2, rtol=1e-5)


def test_float64_has_to_be_allowed() -> None:
    with pytest.raises(ConfigError, match=r"^config\.model\.dtype: float64 needs JAX_ENABLE_X64=1"):
        build(**{"model.dtype": "float64"})


@pytest.mark.usefixtures("grouped")
def test_streamed_batches_are_dispatched_one_by_one() -> None:
    experiment = build()
    assert experiment.loader.longest_dispatch == LONGEST_DISPATCH
    assert Streaming(experiment.config, experiment.mesh).longest_dispatch == 1


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


@pytest.mark.parametrize("attention", NAMES)
def test_every_attention_builds(attention: str) -> None:
    changes = {"model.attention": attention, "optimizer.sparsity": 0.0}
    experiment = build_experiment(digits(batch_size=64, **changes))
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
        build_experiment(digits(**{"batch_size": 64, **changes}))


def test_empty_split_is_refused(tmp_path: Path) -> None:
    images, labels = np.zeros((3, 8, 8, 1), np.uint8), [0, 1, 0]
    tfds_writer.write(tmp_path, "tiny", images, labels, 2)
    data = {"name": "tiny", "dir": str(tmp_path), "eval_split": "train[:0]"}
    config = digits(batch_size=4, **{f"data.{name}": value for name, value in data.items()})
    with pytest.raises(ConfigError, match=r"'train\[:0\]' of tiny is empty"):
        build_experiment(config)
