"""The picture of a comparison: errors, and differences to no attention."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from train.compare.estimates import CONFIDENCE, Estimate, Row
from train.core.plotting import CYCLE, Draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def comparison(table: Sequence[Row]) -> tuple[Draw, float, float]:
    """The errors of all variants, and their differences to no attention.

    Args:
      table: from `results.rows`.

    Returns:
      What draws it, with its width and height.
    """

    def draw(figure: "Figure") -> None:
        errors, differences = figure.subplots(1, 2, sharey=True)
        _estimates(errors, [row.top1_error for row in table], whiskers="deviation")
        errors.set_xlabel("top-1 error, %: mean ± standard deviation")
        errors.set_yticks(range(len(table)), [row.variant for row in table])
        errors.set_ylim(len(table) - 0.5, -0.5)
        differences.axvline(0, color=CYCLE[1], linewidth=1)
        _estimates(differences, [row.difference for row in table], whiskers="interval")
        differences.set_xlabel(f"difference to none, points: {CONFIDENCE:.0%} confidence interval")

    return draw, 9.0, 1.2 + 0.4 * len(table)


def _estimates(
    axes: "Axes",
    estimates: Sequence[Estimate | None],
    *,
    whiskers: Literal["deviation", "interval"],
) -> None:
    for place, found in enumerate(estimates):
        if found is None:
            continue
        if whiskers == "deviation":
            half = found.deviation
        else:
            half = None if found.high is None else found.high - found.mean
        axes.errorbar(found.mean, place, xerr=half, fmt="o", capsize=3, color=CYCLE[0])
