"""The table of what was measured of the training steps."""

from collections.abc import Mapping
from typing import Any

from train.core.devices.chips import GIB
from train.core.tables import Table

# The columns of the table: title, figure, divisor, format. The base takes the place of {}.
COLUMNS = (
    ("compile", "compile_seconds", 1, ".1f"),
    ("step ms", "step_ms", 1, ",.2f"),
    ("95 %", "step_ms_p95", 1, ",.2f"),
    ("images/s", "images_per_second", 1, ",.0f"),
    ("vs {}", "time_vs_{}", 1, ".3f"),
    ("of peak", "utilisation", 1, ".1%"),
    ("Gflop", "flops", 1e9, ",.1f"),
    ("GB", "bytes_accessed", 1e9, ",.2f"),
    ("GiB", "peak_bytes", GIB, ",.3f"),
    ("fed", "fed_images_per_second", 1, ",.0f"),
    ("wait", "data_wait", 1, ".1%"),
)


def table(figures: Mapping[str, Mapping[str, Any]], base: str) -> Table:
    """A row for every variant; a dash is for what is not known.

    Args:
      figures: What was measured, by name of the variant.
      base: Name of the variant that the others are compared with.
    """
    columns = [
        (title.format(base), key.format(base), divisor, form)
        for title, key, divisor, form in COLUMNS
    ]
    rows = [
        [name, *(_cell(measured[key], divisor, form) for _, key, divisor, form in columns)]
        for name, measured in figures.items()
    ]
    return Table(("variant", *(title for title, *_ in columns)), rows)


def _cell(figure: float | None, divisor: float, form: str) -> str:
    return "–" if figure is None else f"{figure / divisor:{form}}"
