"""Draws images and what a network makes of them, one row an image."""

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from train.core.plotting import Draw
from train.visualize.images import Image
from train.visualize.predictions import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# In inches.
ROW_HEIGHT, HEADER, FOOTER = 1.7, 0.45, 0.35
PROFILE_WIDTH, CHARACTER = 3.4, 0.072
# Red, green, blue, opacity: the image shows through where nothing is found.
HEAT = ((0.8, 0.0, 0.0, 0.0), (0.95, 0.25, 0.0, 0.5), (1.0, 0.85, 0.1, 0.85))
# A gate that knows nothing; all are near it, W being small.
HALF_OPEN = 0.5
NUMBER = "{x:g}"
# Of a line of text, in characters.
LONGEST_LINE = 26


class _Column(NamedTuple):
    """A column: its title, its width in inches, and what draws a cell.

    `foot` is called with the last cell and the empty one below it.
    """

    title: str
    width: float
    cell: Callable[["Axes", Image, View], None]
    foot: Callable[["Axes", "Axes"], None] = lambda last, below: None


def figure(
    images: Sequence[Image],
    views: Sequence[View],
    layer: str | None,
    names: Sequence[str] | None = None,
) -> tuple[Draw, float, float]:
    """Images, predictions, Grad-CAM maps and the gates of a layer.

    Args:
      images: Images, at least one.
      views: What a network makes of each image.
      layer: Path of the layer whose gates are in the views.
      names: Names of the classes; default: their numbers.

    Returns:
      What draws it, with its width and height in inches.
    """
    columns = [
        _captions(images, views, names),
        _Column("image", ROW_HEIGHT, lambda axes, image, view: _image(axes, image.pixels)),
        _Column("Grad-CAM\nof the prediction", ROW_HEIGHT, _heat),
    ]
    if views[0].channel_gate is not None:
        columns.append(_channel_gates(views, layer))
    if views[0].spatial_gate is not None:
        columns.append(_spatial_gates(views, layer))
    height = HEADER + ROW_HEIGHT * len(images) + FOOTER

    def draw(figure: Any) -> None:
        grid = figure.subplots(
            len(images) + 1,
            len(columns),
            squeeze=False,
            width_ratios=[column.width for column in columns],
            height_ratios=[ROW_HEIGHT] * len(images) + [FOOTER],
        )
        for row, image, view in zip(grid[:-1], images, views, strict=True):
            for axes, column in zip(row, columns, strict=True):
                column.cell(axes, image, view)
        for place, column in enumerate(columns):
            grid[0, place].set_title(column.title, fontsize="medium")
            grid[-1, place].axis("off")
            column.foot(*grid[-2:, place])

    return draw, sum(column.width for column in columns), height


def label_text(label: int, names: Sequence[str] | None) -> str:
    """What to call a class."""
    return str(label) if names is None else names[label]


def prediction_text(view: View, names: Sequence[str] | None) -> str:
    """What was predicted, with its probability."""
    return f"{label_text(view.label, names)} ({100 * view.probability:.1f} %)"


def _captions(
    images: Sequence[Image], views: Sequence[View], names: Sequence[str] | None
) -> _Column:
    def text(image: Image, view: View) -> str:
        lines = [image.name, f"predicted {prediction_text(view, names)}"]
        if image.label is not None:
            lines.append(f"label {label_text(image.label, names)}")
        return "\n".join(textwrap.fill(line, LONGEST_LINE) for line in lines)

    def cell(axes: "Axes", image: Image, view: View) -> None:
        axes.axis("off")
        color = "C1" if image.label not in (None, view.label) else None
        # Names of files may hold what is mathematics elsewhere.
        axes.text(0, 0.5, text(image, view), va="center", color=color, parse_math=False)

    texts = map(text, images, views)
    longest = max(len(line) for text in texts for line in text.splitlines())
    return _Column("", CHARACTER * longest, cell)


def _image(axes: "Axes", pixels: np.ndarray) -> None:
    axes.axis("off")
    if pixels.shape[-1] == 1:
        axes.imshow(pixels[..., 0], cmap="gray", vmin=0, vmax=255)
    else:
        axes.imshow(pixels)


def _heat(axes: "Axes", image: Image, view: View) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    # In grey, so that all colours are the map's.
    _image(axes, image.pixels.mean(-1, keepdims=True))
    height, width = image.pixels.shape[:2]
    axes.imshow(
        view.heat,
        cmap=LinearSegmentedColormap.from_list("heat", HEAT),
        vmin=0,
        vmax=view.heat.max() or 1,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation="bilinear",
    )


def _channel_gates(views: Sequence[View], layer: str | None) -> _Column:
    # One scale for all images, so that they can be compared.
    highest = 1.05 * max(1e-6, *(np.abs(view.channel_gate - HALF_OPEN).max() for view in views))

    def cell(axes: "Axes", image: Image, view: View) -> None:
        gate = view.channel_gate - HALF_OPEN
        edges = np.arange(len(gate) + 1) - 0.5
        # One shape a colour: a network may have thousands of channels.
        axes.stairs(np.maximum(gate, 0), edges, fill=True, color="C0")
        axes.stairs(np.minimum(gate, 0), edges, fill=True, color="C1")
        axes.set_ylim(-highest, highest)
        axes.set_xlim(edges[0], edges[-1])
        axes.yaxis.set_major_formatter(NUMBER)
        axes.tick_params(labelbottom=False)

    def foot(last: "Axes", below: "Axes") -> None:
        last.tick_params(labelbottom=True)
        last.set_xlabel("channel")

    return _Column(f"channel gate − {HALF_OPEN}\n{layer}", PROFILE_WIDTH, cell, foot)


def _spatial_gates(views: Sequence[View], layer: str | None) -> _Column:
    low = min(view.spatial_gate.min() for view in views) - HALF_OPEN
    high = max(view.spatial_gate.max() for view in views) - HALF_OPEN

    def cell(axes: "Axes", image: Image, view: View) -> None:
        axes.axis("off")
        axes.imshow(view.spatial_gate - HALF_OPEN, vmin=low, vmax=high)

    def foot(last: "Axes", below: "Axes") -> None:
        from matplotlib.ticker import MaxNLocator

        bar = below.inset_axes((0.05, 0.6, 0.9, 0.3))
        last.figure.colorbar(
            last.images[0], cax=bar, orientation="horizontal", ticks=MaxNLocator(3), format=NUMBER
        )

    return _Column(f"spatial gate − {HALF_OPEN}\n{layer}", ROW_HEIGHT, cell, foot)
