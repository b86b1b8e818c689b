"""The command that evaluates the checkpoint of a run."""

from pathlib import Path

import pytest

from tests.helpers.commands import PLAIN, call, run, summary

CONFIG = ("--config", "configs/digits_resnet20.py")
OPTIONS = ("--config.steps=6", "--config.data.image_size=16", *PLAIN)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("run")
    run(1, workdir, *OPTIONS, devices=1)
    return workdir


def test_repeats_the_last_evaluation(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As the run was compiled.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
    arguments = (*CONFIG, "--workdir", str(workdir), *OPTIONS)
    result = call(*arguments, command="train.evaluate")
    expected = summary(workdir)
    assert f"step {expected['steps']}\nnum_images 359\n" in result.stdout
    assert f"top1_error {expected['top1_error']:.6g}\n" in result.stdout


def test_refuses_another_config(workdir: Path) -> None:
    arguments = (*CONFIG, "--workdir", str(workdir), *OPTIONS, "--config.optimizer.momentum=0.5")
    result = call(*arguments, command="train.evaluate")
    assert result.returncode == 2
    assert "optimizer.momentum is 0.9 there and 0.5 here" in result.stderr
