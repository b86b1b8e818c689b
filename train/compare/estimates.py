"""The table of a comparison: CSV, Markdown and a picture."""

import csv
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from scipy import stats

from train.compare.runs import Run

CONFIDENCE = 0.95
# Percentages that are equal but for rounding are this near.
ROUNDING = 1e-9
BASE = "none"

# Titles of what `cells` gives.
HEADER = (
    "attention",
    "seeds",
    "parameters",
    "multiply-adds",
    "top-1 error, %",
    "top-5 error, %",
    "top-1 vs none, points",
    "best top-1 error, % (chosen on the test set)",
    "images/s vs none",
)


class Estimate(NamedTuple):
    """A mean over seeds.

    Attributes:
      seeds: number of the values.
      mean: of the values.
      deviation: standard deviation of a value; None of one alone.
      low: lower end of the confidence interval of the mean; None of one alone, and where all are
        equal, which says nothing of how far another would be.
      high: upper end.
    """

    seeds: int
    mean: float
    deviation: float | None = None
    low: float | None = None
    high: float | None = None


class Row(NamedTuple):
    """What came out with one attention and penalty.

    Attributes:
      variant: the attention, with the strength of its penalty.
      seeds: of its finished runs.
      parameters: number of trained parameters.
      multiply_adds: for one image.
      top1_error: of the last evaluation, in percent.
      top5_error: likewise.
      difference: of the top-1 error to that without attention, seed by seed, in percentage
        points; None where no seed has both.
      best_top1_error: the lowest top-1 error of any evaluation: chosen on the test set.
      speed: images per second, relative to no attention with the same seed on as many devices of
        the same kind; None likewise.
    """

    variant: str
    seeds: tuple[int, ...]
    parameters: int
    multiply_adds: int
    top1_error: Estimate
    top5_error: Estimate
    difference: Estimate | None
    best_top1_error: Estimate
    speed: Estimate | None


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation, and the confidence interval of the mean by Student's t.

    mean ± t(n − 1) deviation / sqrt(n)

    Args:
      values: one of every seed, at least one.

    Example:
      >>> from train.results import estimate
      >>> found = estimate([1.0, 2.0, 3.0])
      >>> found.mean, found.deviation, round(found.high - found.mean, 3)
      (2.0, 1.0, 2.484)
    """
    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Estimate(count, mean)
    deviation = statistics.stdev(values)
    if deviation < ROUNDING:
        return Estimate(count, mean, deviation)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / math.sqrt(count)
    return Estimate(count, mean, deviation, mean - half, mean + half)


def rows(runs: Sequence[Run]) -> list[Row]:
    """The rows of the table, in the order of the runs; those that are unfinished are left out."""
    variants: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        if run.summary is not None:
            variants.setdefault(run.variant, {})[run.seed] = run.summary
    base = variants.get(BASE, {})
    return [_row(variant, found, base) for variant, found in variants.items()]


def _row(
    variant: str, found: Mapping[int, dict[str, Any]], base: Mapping[int, dict[str, Any]]
) -> Row:
    def of(name: str) -> Estimate:
        return estimate([summary[name] for summary in found.values()])

    seeds = [] if variant == BASE else sorted(found.keys() & base.keys())
    alike = [s for s in seeds if found[s].get("devices") == base[s].get("devices")]

    def paired(
        name: str, seeds: Sequence[int], compare: Callable[[float, float], float]
    ) -> Estimate | None:
        return estimate([compare(found[s][name], base[s][name]) for s in seeds]) if seeds else None

    first = next(iter(found.values()))
    return Row(
        variant,
        tuple(sorted(found)),
        first["params"],
        first["macs"],
        of("top1_error"),
        of("top5_error"),
        paired("top1_error", seeds, lambda own, other: own - other),
        of("best_top1_error"),
        paired("images_per_second", alike, lambda own, other: own / other),
    )


def csv_text(table: Sequence[Row]) -> str:
    """The table as CSV: all figures in full, empty where there is none."""
    none = Estimate(0, math.nan)
    lines: list[dict[str, Any]] = []
    for row in table:
        line: dict[str, Any] = {
            "variant": row.variant,
            "seeds": " ".join(map(str, row.seeds)),
            "parameters": row.parameters,
            "multiply_adds": row.multiply_adds,
        }
        for name in ("top1_error", "top5_error", "best_top1_error"):
            found = getattr(row, name)
            line |= {f"{name}_mean": found.mean, f"{name}_deviation": found.deviation}
        difference = row.difference or none
        line |= {
            "top1_difference_seeds": difference.seeds or None,
            "top1_difference_mean": difference.mean,
            "top1_difference_low": difference.low,
            "top1_difference_high": difference.high,
            "images_per_second_vs_none": (row.speed or none).mean,
        }
        lines.append({k: "" if v is None or v != v else v for k, v in line.items()})
    file = io.StringIO()
    writer = csv.DictWriter(file, lines[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def markdown(table: Sequence[Row], caption: str) -> str:
    """The table in Markdown, with what its columns mean.

    Args:
      table: from `rows`.
      caption: what was trained, and how many runs are finished.
    """
    rule = ("---", *["--:"] * (len(HEADER) - 1))
    lines = [f"| {' | '.join(line)} |" for line in (HEADER, rule, *map(cells, table))]
    return "\n".join([caption, "", *lines, "", LEGEND, ""])


def caption(runs: Sequence[Run]) -> str:
    """What was trained, and how much of it is finished; at least one run is."""
    finished = [run for run in runs if run.summary is not None]
    config, summary = finished[0].config, finished[0].summary or {}
    begun = f", {len(runs) - len(finished)} begun" if len(runs) > len(finished) else ""
    return (
        f"{config.model.name} on {config.data.name}: {summary['steps']:,} steps of "
        f"{config.batch_size} images, evaluated on {summary['num_eval_images']:,}; "
        f"runs: {len(finished)} finished{begun}."
    )


LEGEND = (
    "Errors are those of the last evaluation: mean ± standard deviation over the seeds. The "
    f"difference is taken seed by seed, with its {CONFIDENCE:.0%} confidence interval (Student's "
    "t); where the interval holds 0, these runs show no difference. With one seed there is neither "
    "deviation nor interval (–), and no interval where all seeds differ by the same. Images/s are "
    "those of the training steps."
)


def cells(row: Row) -> tuple[str, ...]:
    """The figures of a row as text, as `HEADER` names them."""
    return (
        row.variant,
        str(len(row.seeds)),
        f"{row.parameters:,}",
        f"{row.multiply_adds:,}",
        _spread(row.top1_error),
        _spread(row.top5_error),
        _interval(row.difference, len(row.seeds)),
        _spread(row.best_top1_error),
        "–" if row.speed is None else f"{row.speed.mean:.2f}",
    )


def _spread(found: Estimate) -> str:
    return f"{found.mean:.2f} ± {'–' if found.deviation is None else f'{found.deviation:.2f}'}"


def _interval(found: Estimate | None, seeds: int) -> str:
    if found is None:
        return "–"
    ends = "–"
    if found.low is not None and found.high is not None:
        ends = f"{found.low:+.2f} … {found.high:+.2f}"
    of_all = "" if found.seeds == seeds else f"; {found.seeds} of {seeds} seeds"
    return f"{found.mean:+.2f} ({ends}{of_all})"
