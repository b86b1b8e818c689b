"""Tables of text."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns, the first one flush left and all others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])])
        for first, *rest in rows
    ]


def ruled(rows: Sequence[Sequence[str]]) -> str:
    """The same as one text, with a rule below the first line."""
    header, *lines = aligned(rows)
    return "\n".join([header, "-" * len(header), *lines])
