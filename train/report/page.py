"""Pages in HTML that need nothing from outside: text, tables, and plots in both themes."""

import base64
import dataclasses
from html import escape
from pathlib import Path
from string import Template

from etils import epath

from train.core import plotting
from train.core.plotting import COLORS, Draw, Theme
from train.core.workdir import storage

# Of the page, in the directory that it is about, and of the plots beside it.
FILE, FOLDER = "report.html", "report"

# In inches: on a phone, that makes letters of 9 points just legible.
WIDTH = 5.0
# Pixels of CSS.
INCH = 96


@dataclasses.dataclass(frozen=True)
class Plot:
    """A plot with what is said about it.

    Attributes:
      name: Name of its files, without theme and ending.
      draw: Function that draws it into an empty figure.
      height: Height in inches.
      alt: Description for those who do not see it.
      caption: What it means.
      width: Width in inches; wider ones than the default are scrolled on a phone.
    """

    name: str
    draw: Draw
    height: float
    alt: str
    caption: str
    width: float = WIDTH


def document(title: str, *parts: str) -> str:
    """A whole page.

    Args:
      title: Title of the page, plain text.
      *parts: Parts of the page, HTML.
    """
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        light=_variables("light"),
        dark=_variables("dark"),
        title=escape(title),
        parts="\n".join(parts),
    )


def _variables(theme: Theme) -> str:
    names = ("ink", "paper", "line")
    return "; ".join(f"--{n}: {color}" for n, color in zip(names, COLORS[theme], strict=True))


def section(title: str, *parts: str) -> str:
    """A part of a page, with a heading.

    Args:
      title: Heading, plain text.
      *parts: Contents, HTML.
    """
    return "\n".join(["<section>", f"<h2>{escape(title)}</h2>", *parts, "</section>"])


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def folded(title: str, *parts: str) -> str:
    """Parts of a page that are shown when they are asked for.

    Args:
      title: What is always shown, plain text.
      *parts: Contents, HTML.
    """
    return "\n".join(["<details>", f"<summary>{escape(title)}</summary>", *parts, "</details>"])


def side_by_side(folder: epath.Path, *plots: Plot) -> str:
    """Plots side by side, as far as there is room.

    Args:
      folder: Directory where each is written as well, as <name>-light.png and <name>-dark.png.
      *plots: Plots to draw.
    """
    folder.mkdir(exist_ok=True)
    return "\n".join(['<div class="plots">', *(_figure(plot, folder) for plot in plots), "</div>"])


def _figure(plot: Plot, folder: epath.Path) -> str:
    light, dark = (_source(plot, folder, theme) for theme in ("light", "dark"))
    width, height = round(plot.width * INCH), round(plot.height * INCH)
    kind = ' class="wide" tabindex="0"' if plot.width > WIDTH else ""
    return "\n".join(
        [
            f"<figure{kind}>",
            f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">',
            f'<img src="{light}" width="{width}" height="{height}" alt="{escape(plot.alt)}">',
            f"</picture><figcaption>{escape(plot.caption)}</figcaption>",
            "</figure>",
        ]
    )


def _source(plot: Plot, folder: epath.Path, theme: Theme) -> str:
    png = plotting.png(plot.draw, plot.width, plot.height, theme)
    storage.write_bytes(folder / f"{plot.name}-{theme}.png", png)
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
