"""The command that evaluates the checkpoint of a run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from tests.helpers import tiny
from tests.helpers.tiny import digits
from train import evaluate
from train.core.command_line import call
from train.core.engine import loop
from train.core.engine.experiment import build_experiment

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


def test_repeats_the_last_evaluation(trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    workdir, expected = trained
    assert run(workdir) == 0
    out = capsys.readouterr().out
    assert f"step {expected['steps']}\nnum_images 359\n" in out
    assert f"top1_error {expected['top1_error']:.6g}\n" in out


def test_refuses_another_config(trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(trained[0], "--config.optimizer.momentum=0.5") == 2
    assert "optimizer.momentum is 0.9 there and 0.5 here" in capsys.readouterr().err
