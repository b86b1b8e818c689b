"""train.benchmark --loader-only: its figures and its errors, not how large they are."""

import json

import pytest
from absl import flags
from absl.testing import flagsaver

from tests.helpers import imagenet
from train.benchmark import __main__ as benchmark
from train.benchmark import loader
from train.core import command_line
from train.core.errors import ConfigError


@pytest.fixture
def options(tmp_path, monkeypatch):
    """Options of a command line for a small dataset."""
    imagenet.write(tmp_path, imagenet.jpegs(24))
    imagenet.write(tmp_path, imagenet.jpegs(2), "validation")
    config = imagenet.config(tmp_path)
    monkeypatch.setattr(command_line, "CONFIG", type("Flag", (), {"value": config}))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver():
        flags.FLAGS["loader-only"].value = True
        flags.FLAGS.workers, flags.FLAGS.seconds = ["1", "3"], 0.1
        flags.FLAGS.json = str(tmp_path / "figures.json")
        yield config


def test_figures_of_every_number_of_workers(options, tmp_path, capsys):
    benchmark.main()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [result["workers"] for result in figures["loader"]] == [1, 3]
    for result in figures["loader"]:
        assert tuple(result["microseconds_per_image"]) == loader.STAGES
        assert all(value > 0 for value in result["microseconds_per_image"].values())
        assert result["images_per_second"] >= result["images_per_second_per_core"] > 0
        assert result["images_per_cpu_second"] > 0
    out = capsys.readouterr().out
    assert "1 workers" in out
    assert "3 workers" in out
    assert "decode" in out


@pytest.mark.parametrize("workers", [[""], ["0"], ["two"], ["1", "-1"], ["²"], ["1001"], []])
def test_wrong_numbers_of_workers(options, workers):
    flags.FLAGS.workers = workers
    with pytest.raises(ConfigError, match=r"^--workers: got .*allowed: numbers from 1 to"):
        benchmark.main()


@pytest.mark.parametrize("seconds", [0.0, -1.0, 3601.0, float("inf"), float("nan")])
def test_wrong_numbers_of_seconds(options, seconds):
    flags.FLAGS.seconds = seconds
    with pytest.raises(ConfigError, match=r"^--seconds: got .*allowed: 0\.1 to 3600"):
        benchmark.main()


def test_other_loaders_are_refused(options):
    options.data.loader = "resident"
    with pytest.raises(ConfigError, match=r"^config\.data\.loader"):
        benchmark.main()
