"""Plots of NAM weights: sorted, layer by layer, and as maps."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nam_jax.inspection import SMALL_WEIGHT, count_small_weights
from train.core.plotting import CYCLE
from train.report.page import Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# W by the path of its module: of the channels, (C,), or of the pixels, (H, W).
Weights = Mapping[str, np.ndarray]

# Columns of pixels in the heat map: fewer would blur the end where the small weights lie.
SAMPLES = 256
MAPS_A_ROW = 4
# Colours end at twice the mean, which puts the mean in the middle.
HIGHEST = 2.0


def label(path: str) -> str:
    """The block that a NAM module belongs to.

    Example:
      >>> from train.report.weight_plots import label
      >>> label("layer1_0/attention/channel")
      'layer1_0'
    """
    common = {"attention", "channel", "spatial"}
    return "/".join(part for part in path.split("/") if part not in common) or path


def sorted_weights(weights: Weights, kind: str) -> Plot:
    """The sorted weights of each layer, a curve each.

    Args:
      weights: Weights of one kind, at least one layer, from input to output.
      kind: Kind of what they weigh, `channels` or `pixels`.
    """

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        colors = _depth(len(weights))
        for layer, color in zip(weights.values(), colors.to_rgba(range(len(weights))), strict=True):
            axes.plot(_percent(layer.size), _sorted(layer), color=color, linewidth=1)
        axes.axhline(SMALL_WEIGHT, color=CYCLE[2], linestyle=":", linewidth=1.2)
        axes.set_xlabel(f"{kind} of the layer, %, largest weight first")
        axes.set_ylabel("weight / mean of the layer")
        axes.set_ylim(bottom=0)
        if len(weights) > 1:
            bar = figure.colorbar(colors, ax=axes, ticks=[0, len(weights) - 1])
            bar.ax.set_yticklabels([label(path) for path in _ends(weights)])

    largest = max(float(_sorted(layer)[0]) for layer in weights.values())
    alt = (
        f"A falling curve for each of {len(weights)} layers: the weights of its {kind}, sorted. "
        f"The largest is {largest:.3g} times the mean of its layer."
    )
    caption = (
        f"Sorted weights of the {kind}, a curve a layer; below the dotted line they are small."
    )
    return Plot(f"sorted_{kind}", draw, 3.4, alt, caption)


def heat_map(weights: Weights, kind: str) -> Plot:
    """The sorted weights of each layer, a line each.

    Args:
      weights: Weights of one kind, at least one layer, from input to output.
      kind: Kind of what they weigh, `channels` or `pixels`.
    """
    lines = np.stack([_resampled(layer) for layer in weights.values()])
    small = [count_small_weights(layer) / layer.size for layer in weights.values()]

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.grid(visible=False)
        extent = (0, 100, len(weights) - 0.5, -0.5)
        image = axes.imshow(
            lines, aspect="auto", interpolation="nearest", extent=extent, vmin=0, vmax=HIGHEST
        )
        for place, part in enumerate(small):
            if part:
                edge = 100 * (1 - part)
                axes.vlines(edge, place - 0.5, place + 0.5, color=CYCLE[1], linewidth=1.5)
        axes.set_yticks(range(len(weights)), [label(path) for path in weights], fontsize=7)
        axes.set_xlabel(f"{kind} of the layer, %, largest weight first")
        figure.colorbar(image, ax=axes, extend="max", aspect=30, label="weight / mean of the layer")

    alt = (
        f"A line for each of {len(weights)} layers, from input to output: the weights of its "
        f"{kind} as colours, sorted. {sum(map(bool, small))} layers have small ones."
    )
    caption = (
        f"Sorted weights of the {kind} as colours, a line a layer; right of an orange mark they "
        "are small."
    )
    return Plot(f"heat_map_{kind}", draw, 1.0 + 0.16 * max(len(weights), 6), alt, caption)


def maps(weights: Weights) -> Plot:
    """The weights of the pixels of each layer, as they lie in the image.

    Args:
      weights: Weights (H, W) of at least one layer, from input to output.
    """
    rows = math.ceil(len(weights) / MAPS_A_ROW)

    def draw(figure: "Figure") -> None:
        grid = figure.subplots(rows, MAPS_A_ROW, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, (path, layer) in zip(grid.flat, weights.items(), strict=False):
            image = _map(axes, path, layer)
        bar = figure.colorbar(image, ax=grid, extend="max", location="bottom", aspect=40)
        bar.set_label("weight / mean of the layer")

    alt = (
        f"{len(weights)} maps of the weights of pixels, from {_size(weights, 0)} to "
        f"{_size(weights, -1)}, coloured from 0 to {HIGHEST:g} times the mean of the layer."
    )
    caption = "Weights of the pixels where they lie, layer by layer."
    return Plot("maps", draw, 0.9 + 1.3 * rows, alt, caption)


def _map(axes: "Axes", path: str, layer: np.ndarray) -> Any:
    axes.set_title(f"{label(path)}\n{layer.shape[0]} × {layer.shape[1]}", fontsize=7)
    return axes.imshow(layer * layer.size, interpolation="nearest", vmin=0, vmax=HIGHEST)


def _size(weights: Weights, place: int) -> str:
    height, width = list(weights.values())[place].shape
    return f"{height} × {width}"


def _ends(weights: Weights) -> tuple[str, str]:
    paths = list(weights)
    return paths[0], paths[-1]


def _depth(count: int) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    # Colours that both papers leave legible.
    between = LinearSegmentedColormap.from_list("depth", [CYCLE[0], CYCLE[3], CYCLE[5]])
    return ScalarMappable(Normalize(0, max(count - 1, 1)), between)


def _percent(count: int) -> np.ndarray:
    return np.linspace(0, 100, count)


def _sorted(layer: np.ndarray) -> np.ndarray:
    """Relative to the mean, which is 1 / n even where all weights are 0."""
    return np.sort(layer.ravel())[::-1] * layer.size


def _resampled(layer: np.ndarray) -> np.ndarray:
    return np.interp(_percent(SAMPLES), _percent(layer.size), _sorted(layer))
