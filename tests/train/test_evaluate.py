"""The command that evaluates the checkpoint of a run, or the weights of a file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

import nam_jax
from nam_jax import models
from nam_jax.models.resnet import BasicBlock, ResNet
from tests.helpers import commands, tiny
from tests.helpers.image_datasets import imagenet
from tests.helpers.tiny import digits
from tests.helpers.torch_weights import networks
from train import evaluate
from train.core.command_line import call
from train.core.data.on_device import normalize
from train.core.data.sources.registry import source_of
from train.core.engine import loop, trained_network
from train.core.engine.experiment import build_experiment
from train.core.workdir import gates

CHANGES = {"steps": 6, "data.image_size": 16, "optimizer.sparsity": 0.0}


@pytest.fixture(autouse=True, scope="module")
def tiny_network() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        tiny.use(patch)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run's directory and its summary."""
    workdir = tmp_path_factory.mktemp("run")
    summary = loop.train(build_experiment(digits(**CHANGES)), epath.Path(workdir))
    assert summary is not None
    return workdir, summary


def run(workdir: Path, *more: str) -> int:
    options = [f"--config.{name}={value}" for name, value in CHANGES.items()]
    arguments = ["--config=configs/digits_resnet20.py", f"--workdir={workdir}", *options, *more]
    return call(evaluate.main, evaluate.parser(), arguments)


def test_repeats_the_last_evaluation(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, expected = trained
    assert run(workdir, f"--json={tmp_path / 'out.json'}") == 0
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["num_images"] == 359
    for name in ("top1_error", "top5_error", "loss"):
        assert figures[name] == expected[name]
    out = capsys.readouterr().out
    assert f"step {expected['steps']}\nnum_images 359\n" in out
    assert f"top1_error {expected['top1_error']:.6g}\n" in out


def test_refuses_another_config(trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(trained[0], "--config.optimizer.momentum=0.5") == 2
    told = capsys.readouterr().err
    assert "config.optimizer.momentum is 0.9 there and 0.5 here" in told
    advice = "Leave these fields as they were in training, or name another run by --workdir.\n"
    assert told.endswith(advice)


# The weights of a file, without a run.


def small(num_classes: int = 10, attention: str = "nam_channel") -> ResNet:
    return ResNet(BasicBlock, (1,), num_classes=num_classes, attention=attention, width=8)


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Makes every config's network a small one; where its weights may be written."""

    def create(name: str, *, num_classes: int, attention: str, **_: Any) -> ResNet:
        return small(num_classes, attention)

    monkeypatch.setattr(models, "create", create)
    monkeypatch.chdir(commands.REPOSITORY)
    return tmp_path / "w.npz"


def evaluated(path: Path, *more: str) -> commands.Result:
    arguments = ("--config=configs/digits_resnet20.py", f"--config.model.pretrained={path}")
    attention = "--config.model.attention=nam_channel"
    return commands.call("evaluate", *arguments, attention, *more)


def test_weights_of_a_file_need_no_run(small_network: Path, tmp_path: Path) -> None:
    variables = networks.save(small_network, small(), (8, 8, 1))
    # The loss has the penalty of the config in it.
    plain = "--config.optimizer.sparsity=0"
    done = evaluated(small_network, f"--json={tmp_path / 'out.json'}", plain)
    assert (done.code, done.err) == (0, "")
    data = digits().data
    images, labels = source_of(data).open_split("test").load()
    inputs = normalize(images, data.mean, data.std, "float32")
    logits = np.asarray(small().apply(variables, inputs, train=False))
    wrong = [(np.argsort(-logits)[:, :k] != labels[:, None]).all(1).mean() for k in (1, 5)]
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["num_images"] == len(labels) == 359
    assert [figures["top1_error"], figures["top5_error"]] == pytest.approx([100 * w for w in wrong])
    losses = -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(labels)), labels]
    assert figures["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert f"weights from {small_network}; fresh: nothing\nnum_images 359\n" in done.out
    assert f"loss {figures['loss']:.6g}\n" in done.out
    assert "step" not in done.out


def test_weights_are_evaluated_on_a_dataset_without_a_training_split(small_network: Path) -> None:
    directory = small_network.parent
    networks.save(small_network, small(1000, "none"), (16, 16, 3))
    imagenet.write(directory, imagenet.jpegs(5), "validation")
    changes = {
        "data.dir": directory,
        "data.image_size": 16,
        "model.attention": "none",
        "model.pretrained": small_network,
        "optimizer.warmup_epochs": 50,
    }
    options = [f"--config.{name}={value}" for name, value in changes.items()]
    # The batch of the config is larger than the split, which no training could be.
    done = commands.call("evaluate", "--config=configs/imagenet_resnet50.py", *options)
    assert (done.code, done.err) == (0, "")
    assert "num_images 5\n" in done.out


@pytest.mark.parametrize(
    ("num_classes", "attention", "expected"),
    [
        (7, "nam_channel", "has no weights for fc, and"),
        (10, "none", "has no weights for layer1_0/attention, and"),
        (7, "none", "has no weights for fc, layer1_0/attention, and"),
    ],
)
def test_weights_that_would_be_fresh_are_refused(
    small_network: Path, num_classes: int, attention: str, expected: str
) -> None:
    networks.save(small_network, small(num_classes, attention), (8, 8, 1))
    done = evaluated(small_network, f"--json={small_network.parent / 'out.json'}")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: config.model.pretrained: {small_network} {expected}")
    assert len(done.err.splitlines()) == 1
    assert not (small_network.parent / "out.json").exists()


@pytest.mark.parametrize("option", ["--workdir=runs/new", "--which=best"])
def test_a_run_and_weights_are_one_too_many(small_network: Path, option: str) -> None:
    done = evaluated(small_network, option)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {option.partition('=')[0]} is of a run, and config.model.")


def test_figures_that_are_not_finite_are_no_result(small_network: Path, tmp_path: Path) -> None:
    networks.save(small_network, small(), (8, 8, 1))
    state_dict = dict(np.load(small_network))
    state_dict["fc.weight"][:] = 3e38
    np.savez(small_network, **state_dict)
    done = evaluated(small_network, f"--json={tmp_path / 'out.json'}")
    assert done.code == 1
    assert "error: the loss is nan" in done.err
    assert not (tmp_path / "out.json").exists()


# Gates.


def test_gates_of_a_run(small_network: Path) -> None:
    workdir, fields = small_network.parent / "run", {"steps": 2, "model.attention": "nam_channel"}
    loop.train(build_experiment(digits(**fields)), epath.Path(workdir))
    options = [f"--config.{name}={value}" for name, value in fields.items()]
    arguments = ["--config=configs/digits_resnet20.py", f"--workdir={workdir}", *options]
    done = commands.call("evaluate", *arguments, "--gates")
    assert (done.code, done.err) == (0, "")
    figures = json.loads((workdir / "gates.json").read_text())
    assert (figures["step"], figures["which"], figures["split"]) == (2, "last", "test")

    network = trained_network.of_run(epath.Path(workdir), "last")
    images, labels = network.open_split("test").load()
    inputs = normalize(images, network.config.data.mean, network.config.data.std, "float32")
    found = nam_jax.gate_statistics(network.model, network.variables, inputs, train=False)
    assert list(found) == list(figures["gates"]) == ["layer1_0/attention"]
    for path, layer in found.items():
        np.testing.assert_allclose(list(figures["gates"][path].values()), layer, rtol=1e-4)
        assert f"{path}  {layer.mean:.4f}" in done.out
    with nam_jax.half_gates():
        logits = network.model.apply(network.variables, inputs, train=False)
    wrong = 100 * np.mean(np.argmax(logits, -1) != labels)
    assert figures["half_gates_top1_error"] == pytest.approx(wrong)
    assert f"half_gates_top1_error {wrong:.6g}\n" in done.out
    assert done.out.endswith(f"\n{gates.LEGEND}\n")


def test_gates_of_another_attention(small_network: Path) -> None:
    networks.save(small_network, small(attention="none"), (8, 8, 1))
    changes = "--config.model.attention=none", "--config.optimizer.sparsity=0"
    done = evaluated(small_network, "--gates", *changes)
    assert (done.code, done.out) == (2, "")
    assert "--gates: config.model.attention='none' has no gates of NAM" in done.err
