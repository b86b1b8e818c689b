"""gates.json in the directory of a run: how far the gates of a checkpoint are from a constant."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from nam_jax.inspection import NEAR_HALF, GateStatistics
from train.core.errors import RunError
from train.core.tables import Table
from train.core.workdir import storage

FILE = "gates.json"
LEGEND = (
    "A unit is a channel or a pixel; sd between units: standard deviation of their means; "
    "sd within: that of a unit's gates around its mean."
)


def write(workdir: epath.Path, figures: Mapping[str, Any]) -> None:
    """Writes the figures of an evaluation: whose they are, errors, and `gates` by layer."""
    storage.write_json(workdir / FILE, figures)


def read(workdir: epath.Path) -> tuple[dict[str, Any], dict[str, GateStatistics]] | None:
    """Reads what `write` has written.

    Args:
      workdir: Directory of the run.

    Returns:
      The figures, and the statistics of each layer's gates; None where nobody has looked.

    Raises:
      RunError: the file is damaged.
    """
    try:
        text = storage.read_text(workdir / FILE)
        if text is None:
            return None
        figures = dict(json.loads(text))
        layers = {path: GateStatistics(**layer) for path, layer in figures.pop("gates").items()}
        numbers = [value for layer in layers.values() for value in layer]
        numbers += [figures[name] for name in ("step", "top1_error", "half_gates_top1_error")]
        texts = [figures["which"], figures["split"]]
        if not layers or not all(map(storage.is_number, numbers)):
            raise ValueError("a figure is no number")
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a name is no text")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{workdir / FILE} is damaged: python -m train.evaluate --gates writes it again."
        ) from error
    return figures, layers


def table(layers: Mapping[str, GateStatistics]) -> Table:
    """A line for every layer.

    Args:
      layers: Statistics by the path of the module.
    """
    header = (
        "layer",
        "mean",
        "sd between units",
        "sd within",
        "lowest",
        "highest",
        f"within {NEAR_HALF:g} of 0.5, %",
    )
    rows = [
        (path or "network", *(f"{value:.4f}" for value in layer[:-1]), f"{100 * layer[-1]:.2f}")
        for path, layer in layers.items()
    ]
    return Table(header, rows)
