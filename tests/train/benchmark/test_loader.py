"""train.benchmark --loader-only: its figures and its errors, not how large they are."""

import json

import pytest

from configs import imagenet_resnet50
from tests.helpers.image_datasets import imagenet
from train.benchmark import __main__ as benchmark
from train.benchmark import loader
from train.core.command_line import call
from train.core.config.fields import flatten


@pytest.fixture
def command(tmp_path, capsys):
    """Calls the command for a small dataset; gives its exit code, output and errors."""
    imagenet.write(tmp_path, imagenet.jpegs(24))
    imagenet.write(tmp_path, imagenet.jpegs(2), "validation")
    usual = dict(flatten(imagenet_resnet50.get_config()))
    own = flatten(imagenet.config(tmp_path))
    changes = [f"--config.{name}={value}" for name, value in own if value != usual[name]]
    options = ["--config=configs/imagenet_resnet50.py", "--loader-only", "--seconds=0.1", *changes]

    def run(*more):
        code = call(benchmark.main, benchmark.parser(), [*options, *more])
        return code, *capsys.readouterr()

    return run


def test_figures_of_every_number_of_workers(command, tmp_path):
    code, out, _ = command("--workers=1,3", f"--json={tmp_path}/figures.json")
    assert code == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [result["workers"] for result in figures["loader"]] == [1, 3]
    for result in figures["loader"]:
        assert tuple(result["microseconds_per_image"]) == loader.STAGES
        assert all(value > 0 for value in result["microseconds_per_image"].values())
        assert result["images_per_second"] >= result["images_per_second_per_core"] > 0
        assert result["images_per_cpu_second"] > 0
    assert "1 workers" in out
    assert "3 workers" in out
    assert "decode" in out


@pytest.mark.slow
def test_what_fields_cost_the_host_stands_under_their_names(command, tmp_path):
    also = "data.augmentation=randaugment"
    code, out, _ = command("--workers=1", f"--also={also}", f"--json={tmp_path}/figures.json")
    assert code == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures) == ["unchanged", also]
    assert all(result["loader"][0]["images_per_second"] > 0 for result in figures.values())
    assert [line for line in out.splitlines() if line.endswith(":")] == ["unchanged:", f"{also}:"]


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ("data.workers=8", "--also data.workers: numbers of threads are those of --workers"),
        (
            "data.loader=resident+data.crop=pad",
            "config.data.loader: got 'resident', which has no work",
        ),
    ],
)
def test_fields_that_leave_nothing_to_measure_are_refused_before_the_others(command, also, message):
    code, out, error = command(f"--also={also}")
    assert (code, out) == (2, "")
    assert error.startswith(f"error: {message}")


@pytest.mark.parametrize("workers", ["0", "two", "1,-1", "²", "1001"])
def test_wrong_numbers_of_workers(command, workers):
    code, _, error = command(f"--workers={workers}")
    wrong = workers.split(",")[-1]
    expected = f"error: --workers: got {wrong!r}; allowed: 1 to 1,000, a whole number.\n"
    assert (code, error) == (2, expected)


@pytest.mark.parametrize("workers", [" ", ",", "1,,2"])
def test_empty_numbers_of_workers(command, workers):
    code, _, error = command(f"--workers={workers}")
    expected = f"error: --workers: got {workers!r}; allowed: values with commas between.\n"
    assert (code, error) == (2, expected)


@pytest.mark.parametrize("seconds", ["0.0", "-1.0", "3601.0", "inf", "nan"])
def test_wrong_numbers_of_seconds(command, seconds):
    code, _, error = command(f"--seconds={seconds}")
    assert code == 2
    assert error.startswith("error: --seconds: got ")
    assert "allowed: 0.1 to 3600" in error


def test_other_loaders_are_refused(command):
    changes = ("loader=resident", "crop=pad", "crop_padding=1")
    code, _, error = command(*(f"--config.data.{change}" for change in changes))
    assert code == 2
    assert error.startswith("error: config.data.loader: got 'resident', which has no work")
