"""The examples run as they stand, and learn."""

from pathlib import Path
from typing import Any

import pytest

from examples import linen_model, nnx_model, pretrained_model
from tests.helpers.commands import OPTIMIZED
from tests.helpers.real_data import real
from tests.helpers.values import with_slow

EXAMPLES = Path(__file__).parents[1] / "examples"


@with_slow("attention", ["nam", "none", "bam"], ("none", "bam"))
def test_linen_model_learns(attention: str) -> None:
    losses = linen_model.train(attention, steps=5)
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_nnx_model_learns() -> None:
    losses = nnx_model.train(steps=5)
    assert losses[-1] < losses[0]


@pytest.mark.long
def test_pretrained_network_keeps_its_error() -> None:
    files = "weights/mobilenet_v2-b0353104.pth", "imagenet_samples", "imagenet_classes.txt"
    weights, images, classes = (str(real(file)) for file in files)
    plain, once, twice = pretrained_model.main(weights, images, classes).values()
    assert plain == 16.5
    assert once > 95
    assert abs(twice - plain) <= 1


# Of the training: ten epochs as they stand, or as few steps as there is something to draw from.
TEN_EPOCHS = "--config.epochs=10 --config.eval_every_epochs=1 --config.log_every_steps=66"
TWO_STEPS = "--config.steps=2 --config.log_every_steps=1 --config.batch_size=8"


@pytest.mark.parametrize(
    ("training", "environment"),
    [
        pytest.param(TWO_STEPS, {}, marks=pytest.mark.slow, id="two steps"),
        pytest.param(TEN_EPOCHS, OPTIMIZED, marks=pytest.mark.long, id="ten epochs"),
    ],
)
def test_tour_runs_from_top_to_bottom(
    training: str, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    # What it writes, and what its kernel does.
    for name in ("TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tour = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    (trains,) = (cell for cell in tour.cells if TEN_EPOCHS in cell.source)
    trains.source = trains.source.replace(TEN_EPOCHS, training)
    shown = [kinds_of_output(cell) for cell in tour.cells]
    resources = {"metadata": {"path": str(EXAMPLES)}}
    nbclient.NotebookClient(tour, timeout=600, resources=resources).execute()
    assert [kinds_of_output(cell) for cell in tour.cells] == shown
    assert "done: top-1 error" in str(tour.cells)


def kinds_of_output(cell: Any) -> list[str]:
    """What a cell prints or shows: `stream`, `display_data`, ….

    A tour that is stored without outputs, or whose outputs are other ones by now, shows here.
    """
    return sorted({output["output_type"] for output in cell.get("outputs", ())})
