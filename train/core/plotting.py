"""Figures as PNG, for light and dark pages."""

import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from train.core.errors import ConfigError

if TYPE_CHECKING:
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
        raise ConfigError(
            "pictures need the package matplotlib; get it with pip install -e '.[train,plot]'."
        ) from error


def png(draw: Draw, width: float, height: float, theme: Theme = "light") -> bytes:
    """Draws a figure.

    Args:
      draw: Function that draws into an empty figure.
      width: Width in inches, of 144 pixels each.
      height: Height in inches.
      theme: Theme of the page that it is for.

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
