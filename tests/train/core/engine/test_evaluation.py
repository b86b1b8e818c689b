"""Evaluation at another size than that of training, and with the loss of training."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from nam_jax import gate_statistics, models, resize_spatial
from nam_jax.models.resnet import BasicBlock, ResNet
from tests.helpers.tiny import digits
from tests.helpers.torch_weights import networks
from train.core.config.fields import replaced
from train.core.data.on_device import normalize
from train.core.data.sources.registry import source_of
from train.core.engine import loop, trained_network
from train.core.engine.evaluation import (
    checkpoint_weights,
    evaluate_gates,
    evaluate_split,
    pretrained_weights,
)
from train.core.engine.experiment import build_evaluation, build_experiment

CHANGES = {
    **{"steps": 2, "batch_size": 64, "data.image_size": 8, "data.eval_image_size": 12},
    **{"loss": "sigmoid", "optimizer.sparsity": 1e-3, "ema_decay": 0.5},
}


@pytest.fixture(autouse=True, scope="module")
def small_network() -> Iterator[None]:
    def create(name: str, *, num_classes: int, axis_name: str | None, **_: Any) -> ResNet:
        return small(num_classes, axis_name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "create", create)
        yield


def small(num_classes: int = 10, axis_name: str | None = None) -> ResNet:
    fields = {"attention": "nam", "stem": "cifar", "width": 4, "axis_name": axis_name}
    return ResNet(BasicBlock, (1,), num_classes=num_classes, **fields)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[epath.Path, dict[str, Any]]:
    workdir = epath.Path(tmp_path_factory.mktemp("run"))
    summary = loop.train(build_experiment(digits(**CHANGES)), workdir)
    assert summary is not None
    return workdir, summary


def inputs_of(size: int) -> tuple[Any, Any]:
    """The images of the test split at a size, normalised, and their labels."""
    data = digits(**{"data.image_size": size}).data
    images, labels = source_of(data).open_split("test").load()
    return normalize(images, data.mean, data.std, "float32"), labels


def by_numpy(variables: Any, size: int) -> tuple[float, float]:
    """The binary cross-entropy and the error of the network at a size."""
    inputs, labels = inputs_of(size)
    resized = resize_spatial(variables, small(), (1, size, size, 1))
    logits = np.asarray(jax.jit(lambda x: small().apply(resized, x, train=False))(inputs))
    targets = np.eye(10)[labels]
    losses = np.logaddexp(0, logits) - targets * logits
    return losses.mean(), 100 * (logits.argmax(-1) != labels).mean()


def variables_of(workdir: epath.Path, which: str = "last") -> Any:
    """The network's variables, for images of the size of training."""
    return trained_network._restore(workdir, which)[1]


def test_a_run_is_evaluated_at_its_size(trained: Any) -> None:
    workdir, summary = trained
    variables = variables_of(workdir)
    spatial = variables["params"]["layer1_0"]["attention"]["spatial"]["nam_bn"]["scale"]
    assert spatial.shape == (8, 8)
    loss, error = by_numpy(variables, 12)
    assert summary["top1_error"] == pytest.approx(error)
    scales = [np.abs(leaf).sum() for leaf in _scales(variables["params"])]
    # The penalty is that of the scales that are trained.
    assert summary["loss"] == pytest.approx(loss + 1e-3 * sum(scales), rel=1e-4)
    assert summary["ema_loss"] != summary["loss"]


def _scales(params: Any) -> list[Any]:
    leaves = jax.tree.leaves_with_path(params)
    return [leaf for path, leaf in leaves if "nam_bn" in str(path) and "scale" in str(path)]


@pytest.mark.parametrize("size", [0, 8, 12, pytest.param(16, marks=pytest.mark.slow)])
def test_a_checkpoint_may_be_evaluated_at_any_size(trained: Any, size: int) -> None:
    workdir, _ = trained
    changes = {**CHANGES, "data.eval_image_size": size, "optimizer.sparsity": 1e-3}
    experiment = build_experiment(digits(**changes))
    figures = evaluate_split(experiment, checkpoint_weights(experiment, workdir, "last")[1])
    loss, error = by_numpy(variables_of(workdir), size or 8)
    assert figures["top1_error"] == pytest.approx(error)
    assert figures["cross_entropy"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_gates_are_those_of_images_that_are_evaluated(trained: Any) -> None:
    experiment = build_experiment(digits(**CHANGES))
    _, weights = checkpoint_weights(experiment, trained[0], "last")
    _, layers = evaluate_gates(experiment, weights[""])
    resized = resize_spatial(variables_of(trained[0]), small(), (1, 12, 12, 1))
    expected = gate_statistics(small(), resized, inputs_of(12)[0], train=False)
    assert list(layers) == [f"layer1_0/attention/{part}" for part in ("channel", "spatial")]
    for path, layer in layers.items():
        np.testing.assert_allclose(layer, expected[path], rtol=1e-4)


def test_averaged_weights_are_evaluated_by_themselves(trained: Any) -> None:
    experiment = build_experiment(digits(**CHANGES))
    _, weights = checkpoint_weights(experiment, trained[0], "best_ema")
    figures = evaluate_split(experiment, weights)
    loss, error = by_numpy(variables_of(trained[0], "best_ema"), 12)
    assert figures["top1_error"] == pytest.approx(error)
    assert figures["cross_entropy"] == pytest.approx(loss, rel=1e-5)
    assert loss != pytest.approx(by_numpy(variables_of(trained[0]), 12)[0], rel=1e-4)


def test_a_network_is_looked_at_and_exported_as_it_is_evaluated(trained: Any) -> None:
    network = trained_network.of_run(trained[0], "last")
    assert network.image_shape == (12, 12, 1)
    assert network.open_split("test").image_shape == (12, 12, 1)
    network.model.apply(network.variables, np.zeros((1, 12, 12, 1)), train=False)


def test_weights_of_a_file_are_of_the_size_of_training(tmp_path: Path) -> None:
    variables = networks.save(tmp_path / "w.npz", small(), (8, 8, 1))
    changes = {**CHANGES, "model.pretrained": str(tmp_path / "w.npz"), "optimizer.sparsity": 0.0}
    config = digits(**{**changes, "model.attention": "nam"})
    evaluation = build_evaluation(config)
    figures = evaluate_split(evaluation, pretrained_weights(evaluation))
    loss, error = by_numpy(variables, 12)
    assert figures["top1_error"] == pytest.approx(error)
    assert figures["loss"] == pytest.approx(loss, rel=1e-5)
    network = trained_network.of_file(config)
    assert network.image_shape == network.open_split("test").image_shape == (12, 12, 1)
    same = trained_network.of_file(replaced(config, {"data.eval_image_size": 0}))
    assert same.image_shape == (8, 8, 1)
