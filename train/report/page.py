"""Pages in HTML that need nothing from outside: text, tables, and pictures in both themes."""

import base64
import dataclasses
import functools
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from etils import epath

from train.core import plotting
from train.core.plotting import COLORS, Draw, Theme
from train.core.workdir import storage

# Of the page, in the directory that it is about, and of the pictures beside it.
FILE, FOLDER = "report.html", "report"

# In inches: on a phone, that makes letters of 9 points just legible.
WIDTH = 5.0
# Pixels of CSS.
INCH = 96


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
      name: of its files, without theme and ending.
      draw: draws into an empty figure.
      height: in inches.
      alt: what is to be seen, for those who do not see it.
      caption: what it means.
      width: in inches; wider ones than the default are scrolled on a phone.
    """

    name: str
    draw: Draw
    height: float
    alt: str
    caption: str
    width: float = WIDTH


class Link(NamedTuple):
    """A cell of a table that leads to another page.

    Attributes:
      text: that is shown.
      target: relative to this page.
    """

    text: str
    target: str


Cell = str | Link


def document(title: str, *parts: str) -> str:
    """A whole page.

    Args:
      title: plain text.
      *parts: HTML.
    """
    return _PAGE.format(title=escape(title), style=_style(), parts="\n".join(parts))


def section(title: str, *parts: str) -> str:
    """A part of a page, with a heading.

    Args:
      title: plain text.
      *parts: HTML.
    """
    return "\n".join(["<section>", f"<h2>{escape(title)}</h2>", *parts, "</section>"])


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def folded(title: str, *parts: str) -> str:
    """Parts of a page that are shown when they are asked for.

    Args:
      title: plain text.
      *parts: HTML.
    """
    return "\n".join(["<details>", f"<summary>{escape(title)}</summary>", *parts, "</details>"])


def table(
    name: str,
    header: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    numbers: bool = True,
    marked: Sequence[int] = (),
) -> str:
    """A table, which scrolls by itself where the page is narrow.

    Args:
      name: of the table, for those who do not see it.
      header: titles of the columns.
      rows: their cells.
      numbers: all columns but the first hold numbers.
      marked: places of the rows that stand out.
    """
    kind = ' class="numbers"' if numbers else ""
    # A box that scrolls has to be reached by the keyboard.
    box = f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">'
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in header)
    lines = [_row(row, place in marked) for place, row in enumerate(rows)]
    start = [box, f"<table{kind}>", f"<thead><tr>{head}</tr></thead>", "<tbody>"]
    return "\n".join([*start, *lines, "</tbody>", "</table>", "</div>"])


def _row(cells: Sequence[Cell], is_marked: bool) -> str:
    first, *rest = map(_content, cells)
    kind = ' class="marked"' if is_marked else ""
    others = "".join(f"<td>{cell}</td>" for cell in rest)
    return f'<tr{kind}><th scope="row">{first}</th>{others}</tr>'


def _content(cell: Cell) -> str:
    if isinstance(cell, Link):
        return f'<a href="{escape(cell.target)}">{escape(cell.text)}</a>'
    return escape(cell)


def gallery(folder: epath.Path, *pictures: Picture) -> str:
    """Pictures side by side, as far as there is room.

    Args:
      folder: where each is written as well, as <name>-light.png and <name>-dark.png.
      *pictures: to draw.
    """
    folder.mkdir(exist_ok=True)
    shown = [_figure(picture, folder) for picture in pictures]
    return "\n".join(['<div class="gallery">', *shown, "</div>"])


def _figure(picture: Picture, folder: epath.Path) -> str:
    light, dark = (_source(picture, folder, theme) for theme in ("light", "dark"))
    width, height = round(picture.width * INCH), round(picture.height * INCH)
    kind = ' class="wide" tabindex="0"' if picture.width > WIDTH else ""
    return "\n".join(
        [
            f"<figure{kind}>",
            f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">',
            f'<img src="{light}" width="{width}" height="{height}" alt="{escape(picture.alt)}">',
            f"</picture><figcaption>{escape(picture.caption)}</figcaption>",
            "</figure>",
        ]
    )


def _source(picture: Picture, folder: epath.Path, theme: Theme) -> str:
    png = plotting.png(picture.draw, picture.width, picture.height, theme)
    storage.write_bytes(folder / f"{picture.name}-{theme}.png", png)
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


@functools.cache
def _style() -> str:
    def variables(theme: Theme) -> str:
        names = ("ink", "paper", "line")
        return "; ".join(f"--{n}: {c}" for n, c in zip(names, COLORS[theme], strict=True))

    dark = f"@media (prefers-color-scheme: dark) {{ :root {{ {variables('dark')} }} }}"
    return "\n".join([f":root {{ {variables('light')} }}", dark, _RULES])


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
{parts}
</main>
</body>
</html>
"""

_RULES = """body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word;
}
main { max-width: 90rem; margin: auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; }
h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
p { max-width: 45rem; }
a { color: inherit; }
.gallery {
  display: grid; gap: 1.5rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
}
figure { margin: 0; min-width: 0; }
figure.wide { grid-column: 1 / -1; overflow-x: auto; }
figure.wide img { min-width: 40rem; }
img { display: block; max-width: 100%; height: auto; }
figcaption { font-size: .875rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem .25rem 0; text-align: left; vertical-align: top; }
tr { border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; }
tbody th { font-weight: normal; white-space: nowrap; }
summary { margin: 1rem 0; }
.numbers td, .numbers th + th { text-align: right; }
.numbers td { white-space: nowrap; }
.marked th, .marked td { font-weight: bold; }"""
