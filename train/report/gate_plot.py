"""The plot of NAM's gates: how far those of each layer are from the constant 0.5."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nam_jax.inspection import NEAR_HALF, GateStatistics
from train.core.plotting import CYCLE
from train.report.page import Plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def spread(layers: Mapping[str, GateStatistics]) -> Plot:
    """The gates of every layer, on the whole of their scale.

    Args:
      layers: Statistics by the path of the module, at least one, from input to output.
    """

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.axvspan(0.5 - NEAR_HALF, 0.5 + NEAR_HALF, color=CYCLE[2], alpha=0.35, linewidth=0)
        for place, layer in enumerate(layers.values()):
            deviation = math.hypot(layer.between, layer.within)
            axes.hlines(place, layer.low, layer.high, color=CYCLE[0], linewidth=1)
            ends = layer.mean - deviation, layer.mean + deviation
            axes.hlines(place, *ends, color=CYCLE[0], linewidth=5)
            axes.plot(layer.mean, place, ".", color=CYCLE[1], markersize=5)
        axes.set_xlim(0, 1)
        axes.set_yticks(range(len(layers)), [short(path) for path in layers], fontsize=7)
        axes.set_ylim(len(layers) - 0.4, -0.6)
        axes.set_xlabel("gate: 0 closes, 1 opens")

    near = sum(layer.near_half for layer in layers.values()) / len(layers)
    alt = (
        f"A bar for the gates of each of {len(layers)} layers, on a scale from 0 to 1. On average "
        f"{100 * near:.0f} % of a layer's gates are within {NEAR_HALF:g} of 0.5."
    )
    caption = (
        "Gates of each layer, from input to output: mean (dot), mean ± standard deviation (bar), "
        f"lowest to highest (line). In the green band they are within {NEAR_HALF:g} of 0.5: gates "
        "that stay there are a constant factor."
    )
    return Plot("gates", draw, 1.0 + 0.16 * max(len(layers), 6), alt, caption)


def short(path: str) -> str:
    """A layer's path without what all have in common.

    Example:
      >>> from train.report.gate_plot import short
      >>> short("layer1_0/attention/channel"), short("layer1_0/attention")
      ('layer1_0/channel', 'layer1_0')
    """
    return "/".join(part for part in path.split("/") if part != "attention") or "network"
