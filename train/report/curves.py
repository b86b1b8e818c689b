"""Plots of how a run goes: curves over its epochs."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from train.core.monitor.metric_rows import Row
from train.core.plotting import CYCLE
from train.report.page import Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Epochs, and a figure at each.
Points = tuple[Sequence[float], Sequence[float]]

STYLES = ("-", "--", ":")
# Fewer points than these are shown one by one.
FEW = 20
FEW_NAMES = 4
# In epochs.
SHORT = 3


def points(rows: Sequence[Row], split: str, field: str, factor: float = 1) -> Points:
    """A figure over the epochs of a run.

    Args:
      rows: Metrics of the run.
      split: Split, `train` or `eval`.
      field: Name of the figure; rows without it are left out.
      factor: Number that the figure is multiplied by.
    """
    chosen = [row for row in rows if row["split"] == split and field in row]
    return [row["epoch"] for row in chosen], [factor * row[field] for row in chosen]


def loss(rows: Sequence[Row]) -> Plot:
    """The loss in training and in the evaluations."""
    curves = {
        "training": points(rows, "train", "loss"),
        "evaluation": points(rows, "eval", "loss"),
    }
    caption = "Loss with the penalty: of single training batches, and of whole evaluations."
    return _plot("loss", "loss", curves, caption)


def errors(rows: Sequence[Row]) -> Plot:
    """The errors in training and in the evaluations, of averaged weights where there are some."""
    curves = {
        "top-1, training": points(rows, "train", "top1_error"),
        "top-1, evaluation": points(rows, "eval", "top1_error"),
        "top-5, evaluation": points(rows, "eval", "top5_error"),
        "top-1, averaged weights": points(rows, "eval", "ema_top1_error"),
    }
    caption = "Errors of single training batches, and of whole evaluations."
    return _plot("errors", "error, %", curves, caption)


def variants(curves: Mapping[str, Points]) -> Plot:
    """The top-1 errors of several variants.

    Args:
      curves: Errors over the epochs by name of the variant, at least one.
    """
    caption = (
        "Top-1 error of the evaluations: mean over the finished seeds of each variant, or over "
        "those that go on where none is finished, as far as all of them have come."
    )
    return _plot("variants", "top-1 error, %", curves, caption)


def learning_rate(rows: Sequence[Row]) -> Plot:
    """The learning rate."""
    curves = {"learning rate": points(rows, "train", "learning_rate")}
    return _plot("learning_rate", "learning rate", curves, "Learning rate of the updates.")


def images_per_second(rows: Sequence[Row]) -> Plot:
    """The speed of the training steps."""
    curves = {"images per second": points(rows, "train", "images_per_second")}
    caption = "Speed of the training steps, without evaluations and checkpoints."
    return _plot("images_per_second", "images/s", curves, caption)


def data_wait(rows: Sequence[Row]) -> Plot:
    """How much of the time the device waits for data."""
    curves = {"waiting for data": points(rows, "train", "data_wait", 100)}
    caption = "Part of the training time that passes in waiting for the next batch."
    return _plot("data_wait", "waiting for data, %", curves, caption, least_top=1)


def small_weights(rows: Sequence[Row], threshold: float) -> Plot:
    """How many NAM weights are small.

    Args:
      rows: Metrics of the run.
      threshold: Part of the mean below which a weight is small.
    """
    curves = {
        "small weights": points(rows, "eval", "small_weights"),
        "averaged weights": points(rows, "eval", "ema_small_weights"),
    }
    caption = f"NAM weights below {threshold:g} of the mean of their layer."
    return _plot("small_weights", "small NAM weights, %", curves, caption, least_top=1)


def _plot(
    name: str, unit: str, curves: Mapping[str, Points], caption: str, least_top: float = 0
) -> Plot:
    """Curves over the epochs.

    Args:
      name: Name of the plot's files.
      unit: Unit of what is shown.
      curves: Points by label; curves without any are left out.
      caption: Text below them, which says what they mean.
      least_top: Number that the axis reaches at least to.
    """
    shown = {label: curve for label, curve in curves.items() if curve[0]}
    # Beside the curves there is no room for many names.
    legend_rows = math.ceil(len(shown) / 2) if len(shown) > FEW_NAMES else 0

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        for place, (label, curve) in enumerate(shown.items()):
            _line(axes, curve, label, place)
        axes.set_xlabel("epoch")
        axes.set_ylabel(unit)
        axes.set_ylim(0, max(axes.get_ylim()[1], least_top))
        # Of a run shorter than that, parts of epochs count.
        axes.locator_params(axis="x", integer=axes.get_xlim()[1] > SHORT)
        if legend_rows:
            figure.legend(loc="outside lower center", ncols=2)
        elif len(shown) > 1:
            axes.legend()

    said = "; ".join(_told(label, curve) for label, curve in shown.items())
    height = 3.0 + 0.2 * legend_rows
    return Plot(name, draw, height, f"Chart over the epochs, {unit}. {said}.", caption)


def _line(axes: "Axes", curve: Points, label: str, place: int) -> None:
    axes.plot(
        *curve,
        label=label,
        color=CYCLE[place % len(CYCLE)],
        linestyle=STYLES[place // len(CYCLE) % len(STYLES)],
        marker="o" if len(curve[0]) < FEW else "",
        markersize=3,
        linewidth=1.2,
        # On the axis itself as well, where all is 0.
        clip_on=False,
        zorder=3,
    )


def _told(label: str, curve: Points) -> str:
    (first, *_, last) = curve[1] if len(curve[1]) > 1 else (*curve[1], *curve[1])
    return f"{label}: from {first:.4g} to {last:.4g}"
