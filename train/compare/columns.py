"""The table of a comparison: one list of columns, and the forms that are made of it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from train.compare.estimates import Estimate, Variant
from train.compare.runs import ComparedRun
from train.compare.significance import CONFIDENCE, POWER
from train.core.tables import Table


def _text(value: Any, seeds: int) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _spread(errors: Estimate, seeds: int) -> str:
    deviation = "–" if errors.deviation is None else f"{errors.deviation:.2f}"
    return f"{errors.mean:.2f} ± {deviation}"


def _interval(difference: Estimate | None, seeds: int) -> str:
    if difference is None:
        return "–"
    ends = "–"
    if difference.low is not None and difference.high is not None:
        ends = f"{difference.low:+.2f} … {difference.high:+.2f}"
    of_all = "" if difference.seeds == seeds else f"; {difference.seeds} of {seeds} seeds"
    return f"{difference.mean:+.2f} ({ends}{of_all})"


def _ratio(ratio: float | None, seeds: int) -> str:
    return "–" if ratio is None else f"{ratio:.2f}"


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the table of variants.

    Attributes:
      name: Name of the column in the CSV.
      title: Title of the column elsewhere.
      value: Function that gives its value for a variant.
      cell: Function that writes a value as text; it is told the number of seeds as well.
      parts: Attributes of the value that are columns of their own in the CSV; default: the value
        is one.
      is_paired: Whether it compares with no attention; in the CSV these come last.
      meaning: What the legend says of it.
      needs: Figure that all runs have to have for it to be shown.
    """

    name: str
    title: str
    value: Callable[[Variant], Any]
    cell: Callable[[Any, int], str] = _text
    parts: tuple[str, ...] = ()
    is_paired: bool = False
    meaning: str = ""
    needs: str = "top1_error"

    def names(self) -> list[str]:
        """Its names in the CSV."""
        return [f"{self.name}_{part}" for part in self.parts] or [self.name]

    def figures(self, variant: Variant) -> list[Any]:
        """What the CSV holds of a variant; None where there is nothing."""
        value = self.value(variant)
        return [getattr(value, part, None) for part in self.parts] or [value]


def _mean(field: str, title: str, meaning: str = "", needs: str = "top1_error") -> Column:
    return Column(
        field,
        title,
        lambda variant: variant.mean(field),
        _spread,
        ("mean", "deviation"),
        meaning=meaning,
        needs=needs,
    )


COLUMNS = (
    Column("variant", "attention", lambda variant: variant.name),
    Column(
        "seeds",
        "seeds",
        lambda variant: " ".join(map(str, variant.seeds)),
        lambda _, seeds: str(seeds),
    ),
    Column("parameters", "parameters", lambda variant: variant.first("params")),
    Column("multiply_adds", "multiply-adds", lambda variant: variant.first("macs")),
    _mean(
        "top1_error",
        "top-1 error, %",
        "Errors are those of the last evaluation: mean ± standard deviation over the seeds.",
    ),
    _mean("top5_error", "top-5 error, %"),
    Column(
        "top1_difference",
        "top-1 vs none, points",
        lambda variant: variant.top1_difference,
        _interval,
        ("seeds", "mean", "low", "high"),
        is_paired=True,
        meaning="The difference is taken seed by seed, with its confidence interval (Student's t, "
        "at Holm's level): where it holds 0, these runs show no difference. At most "
        f"{1 - CONFIDENCE:.0%} of comparisons find one that is not there. One seed has no "
        "deviation (–), and there is no interval where attention and seed explain every run.",
    ),
    _mean("best_top1_error", "best top-1 error, % (chosen on the test set)"),
    _mean(
        "ema_top1_error",
        "top-1 error of averaged weights, %",
        "The averaged weights are evaluated at the same step.",
        needs="ema_top1_error",
    ),
    Column(
        "images_per_second_vs_none",
        "images/s vs none",
        lambda variant: variant.speed and variant.speed.mean,
        _ratio,
        is_paired=True,
        meaning="Images/s are those of the training steps.",
    ),
)


def shown(variants: Sequence[Variant]) -> list[Column]:
    """The columns for which all runs of the variants have figures."""
    summaries = [summary for variant in variants for summary in variant.summaries.values()]
    return [column for column in COLUMNS if all(column.needs in each for each in summaries)]


def legend(variants: Sequence[Variant]) -> str:
    """What the columns mean, and what the comparison could have found."""
    meanings = [column.meaning for column in shown(variants) if column.meaning]
    return " ".join([*meanings, *_power(variants)])


def _power(variants: Sequence[Variant]) -> list[str]:
    noises = [each.noise for each in variants if each.noise is not None]
    if not noises:
        return []
    noise, level = noises[0], (1 - CONFIDENCE) / len(noises)
    seeds = sorted({each.top1_difference.seeds for each in variants if each.top1_difference})
    found = ", ".join(
        f"{noise.detectable(n, level):.2f} points ({n} seed{'s' * (n > 1)})" for n in seeds
    )
    return [
        f"Beside attention and seed, runs differ by a standard deviation of {noise.deviation:.2f} "
        f"points ({noise.freedom} degrees of freedom, the same for all attentions). A difference "
        f"is found with a probability of {POWER:.0%} where it is {found}."
    ]


def table(variants: Sequence[Variant]) -> Table:
    """The table of the variants, for people."""
    columns = shown(variants)
    rows = [
        [column.cell(column.value(variant), len(variant.summaries)) for column in columns]
        for variant in variants
    ]
    return Table([column.title for column in columns], rows)


def csv_text(variants: Sequence[Variant]) -> str:
    """The table as CSV: all figures in full, empty where there is none."""
    columns = sorted(shown(variants), key=lambda column: column.is_paired)
    rows = [[part for each in columns for part in each.figures(row)] for row in variants]
    return Table([name for each in columns for name in each.names()], rows).csv()


def markdown(variants: Sequence[Variant], caption: str) -> str:
    """The table in Markdown, with what its columns mean.

    Args:
      variants: Variants of a comparison, at least one.
      caption: What was trained, and how many runs are finished.
    """
    return "\n".join([caption, "", table(variants).markdown(), "", legend(variants), ""])


def caption(runs: Sequence[ComparedRun]) -> str:
    """What was trained, and how much of it is finished; at least one run is."""
    finished = [run for run in runs if run.summary is not None]
    config, summary = finished[0].config, finished[0].summary or {}
    begun = f", {len(runs) - len(finished)} begun" if len(runs) > len(finished) else ""
    return (
        f"{config.model.name} on {config.data.name}: {summary['steps']:,} steps of "
        f"{config.batch_size} images, evaluated on {summary['num_eval_images']:,}; "
        f"runs: {len(finished)} finished{begun}."
    )
