"""The chart of a comparison: errors, and differences to no attention."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from train.compare.estimates import Estimate, Variant
from train.core.plotting import CYCLE, Draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def comparison(variants: Sequence[Variant]) -> tuple[Draw, float, float]:
    """The errors of all variants, and their differences to no attention.

    Args:
      variants: Variants of a comparison, at least one.

    Returns:
      What draws it, with its width and height in inches.
    """

    def draw(figure: "Figure") -> None:
        errors, differences = figure.subplots(1, 2, sharey=True)
        _estimates(errors, [each.mean("top1_error") for each in variants], whiskers="deviation")
        errors.set_xlabel("top-1 error, %: mean ± standard deviation")
        errors.set_yticks(range(len(variants)), [each.name for each in variants])
        errors.set_ylim(len(variants) - 0.5, -0.5)
        differences.axvline(0, color=CYCLE[1], linewidth=1)
        _estimates(differences, [each.top1_difference for each in variants], whiskers="interval")
        differences.set_xlabel("difference to none, points, with intervals at Holm's levels")

    return draw, 9.0, 1.2 + 0.4 * len(variants)


def _estimates(
    axes: "Axes",
    estimates: Sequence[Estimate | None],
    *,
    whiskers: Literal["deviation", "interval"],
) -> None:
    for place, estimate in enumerate(estimates):
        if estimate is None:
            continue
        if whiskers == "deviation":
            half = estimate.deviation
        else:
            half = None if estimate.high is None else estimate.high - estimate.mean
        axes.errorbar(estimate.mean, place, xerr=half, fmt="o", capsize=3, color=CYCLE[0])
