"""Pictures, for light and dark pages."""

import io
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from train.errors import ConfigError
from train.results import CONFIDENCE, Estimate, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Theme = Literal["light", "dark"]
Draw = Callable[["Figure"], None]

# Ink, paper, and lines of the grid.
COLORS: dict[Theme, tuple[str, str, str]] = {
    "light": ("#1f2328", "#ffffff", "#d8dee4"),
    "dark": ("#e6edf3", "#161b22", "#30363d"),
}
# Told apart with colour-blind eyes too (M. Okabe and K. Ito 2008), on both papers.
CYCLE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


def check_installed() -> None:
    """Checks that pictures can be made, before the work that they are of.

    Raises:
      ConfigError: matplotlib is missing.
    """
    try:
        # Only to find here that it is missing.
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError("pictures need matplotlib: pip install '.[train,plot]'.") from error


def png(draw: Draw, width: float, height: float, theme: Theme = "light") -> bytes:
    """Makes a picture.

    Args:
      draw: draws into an empty figure.
      width: in inches, of 144 pixels each.
      height: likewise.
      theme: of the page that it is for.

    Returns:
      A PNG file.
    """
    # Not pyplot, which would keep every figure and look for a screen.
    import matplotlib
    from matplotlib.figure import Figure

    file = io.BytesIO()
    with matplotlib.rc_context(_style(theme)), warnings.catch_warnings():
        # A box stands for what the font lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure = Figure(figsize=(width, height), dpi=144, layout="constrained")
        draw(figure)
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _style(theme: Theme) -> dict[Any, Any]:
    import cycler

    ink, paper, grid = COLORS[theme]
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(inked, ink),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), paper),
        "legend.frameon": False,
        "grid.color": grid,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler.cycler(color=CYCLE),
        "font.size": 9.0,
    }


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
