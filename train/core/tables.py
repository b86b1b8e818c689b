"""Tables, as text, Markdown, HTML or CSV, and the order of what is told of layers."""

import csv
import dataclasses
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple, TypeVar


class Link(NamedTuple):
    """A cell that leads to another page.

    Attributes:
      text: Text that is shown.
      target: Address, relative to this page.
    """

    text: str
    target: str

    def __str__(self) -> str:
        return self.text


T = TypeVar("T")


def in_depth_order(layers: Mapping[str, T]) -> dict[str, T]:
    """The same by the numbers in their paths, from input to output: block10 after block9.

    Args:
      layers: Anything by the paths of its layers.
    """

    def numbered(path: str) -> list[Any]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path)]

    return {path: layers[path] for path in sorted(layers, key=numbered)}


Cell = str | float | Link | None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      header: Titles of the columns.
      rows: Cells of each row, one a column.
      sums: Number of rows at the end that add up what is above them.
      numbers: Whether all columns but the first hold numbers, which are flush right.
      marked: Indices of rows that stand out, in HTML.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    _: dataclasses.KW_ONLY
    sums: int = 0
    numbers: bool = True
    marked: Sequence[int] = ()

    def text(self) -> str:
        """Aligned columns, with a rule below the header, and one above the sums."""
        lines = [tuple(map(str, row)) for row in (self.header, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        align = str.rjust if self.numbers else str.ljust
        header, *body = (
            "  ".join([first.ljust(widths[0]), *map(align, rest, widths[1:])])
            for first, *rest in lines
        )
        rule, end = "-" * len(header), len(body) - self.sums
        sums = [rule, *body[end:]] if self.sums else []
        return "\n".join([header, rule, *body[:end], *sums])

    def markdown(self) -> str:
        """Lines of Markdown, without a line break at the end."""
        rule = ["---", *["--:" if self.numbers else "---"] * (len(self.header) - 1)]
        lines = (self.header, rule, *self.rows)
        return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)

    def csv(self) -> str:
        """Lines of CSV: numbers in full, empty where a cell is None."""
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([self.header, *self.rows])
        return file.getvalue()

    def html(self, name: str) -> str:
        """A table that scrolls by itself where the page is narrow.

        Args:
          name: Name of the table, for those who do not see it.
        """
        # A box that scrolls has to be reached by the keyboard.
        box = f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">'
        kind = ' class="numbers"' if self.numbers else ""
        head = "".join(f'<th scope="col">{escape(title)}</th>' for title in self.header)
        start = [box, f"<table{kind}>", f"<thead><tr>{head}</tr></thead>", "<tbody>"]
        return "\n".join([*start, *self._html_rows(), "</tbody>", "</table>", "</div>"])

    def _html_rows(self) -> Iterator[str]:
        for place, row in enumerate(self.rows):
            first, *rest = map(_html, row)
            kind = ' class="marked"' if place in self.marked else ""
            cells = "".join(f"<td>{cell}</td>" for cell in rest)
            yield f'<tr{kind}><th scope="row">{first}</th>{cells}</tr>'


def _html(cell: Cell) -> str:
    text = escape(str(cell))
    return f'<a href="{escape(cell.target)}">{text}</a>' if isinstance(cell, Link) else text
