"""What came out of a comparison: means over seeds, their deviations and intervals."""

import dataclasses
import math
import operator
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from scipy import stats

from train.compare.runs import ComparedRun

CONFIDENCE = 0.95
# Percentages that are equal but for rounding are this near.
ROUNDING = 1e-9
BASE = "none"

# By seed.
Summaries = Mapping[int, Mapping[str, Any]]
Comparison = Callable[[float, float], float]


class Estimate(NamedTuple):
    """A mean over seeds.

    Attributes:
      seeds: Number of the values.
      mean: Mean of the values.
      deviation: Standard deviation of a value; None of one alone.
      low: Lower end of the confidence interval of the mean; None of one alone, and where all are
        equal, which says nothing of how far another would be.
      high: Upper end of the interval.
    """

    seeds: int
    mean: float
    deviation: float | None = None
    low: float | None = None
    high: float | None = None


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation, and the confidence interval of the mean by Student's t.

    mean ± t(n − 1) deviation / sqrt(n)

    Args:
      values: One value of every seed, at least one.

    Example:
      >>> from train.compare.estimates import estimate
      >>> errors = estimate([1.0, 2.0, 3.0])
      >>> errors.mean, errors.deviation, round(errors.high - errors.mean, 3)
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


@dataclasses.dataclass(frozen=True)
class Variant:
    """The finished runs with one attention and penalty.

    Attributes:
      name: The attention, with the strength of its penalty.
      summaries: Summary of each run, by its seed; at least one.
      base: Summaries of the runs without attention, by seed; empty for those runs themselves.
    """

    name: str
    summaries: Summaries
    base: Summaries

    def first(self, field: str) -> Any:
        """A figure that all seeds have in common."""
        return next(iter(self.summaries.values()))[field]

    def mean(self, field: str) -> Estimate:
        """The mean of a figure over all seeds."""
        return estimate([summary[field] for summary in self.summaries.values()])

    def paired(self, field: str, compare: Comparison, same: str | None = None) -> Estimate | None:
        """A figure beside that without attention, seed by seed.

        Args:
          field: Name of the figure.
          compare: Gives the difference or the ratio of a figure and that without attention.
          same: Name of a field that both summaries have to have in common.

        Returns:
          The mean over the seeds that have both; None where none has.
        """
        seeds = sorted(self.summaries.keys() & self.base.keys())
        pairs = [(self.summaries[seed], self.base[seed]) for seed in seeds]
        if same is not None:
            pairs = [(own, other) for own, other in pairs if own.get(same) == other.get(same)]
        values = [compare(own[field], other[field]) for own, other in pairs]
        return estimate(values) if values else None

    @property
    def seeds(self) -> list[int]:
        """The seeds of its runs."""
        return sorted(self.summaries)

    @property
    def top1_difference(self) -> Estimate | None:
        """The difference of the top-1 error to that without attention, in percentage points."""
        return self.paired("top1_error", operator.sub)

    @property
    def speed(self) -> Estimate | None:
        """Images per second relative to no attention, on as many devices of the same kind."""
        return self.paired("images_per_second", operator.truediv, same="devices")


def variants_of(runs: Sequence[ComparedRun]) -> list[Variant]:
    """The variants in the order of the runs; runs that are unfinished are left out."""
    summaries: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        if run.summary is not None:
            summaries.setdefault(run.variant, {})[run.seed] = run.summary
    base = summaries.get(BASE, {})
    return [Variant(name, own, {} if name == BASE else base) for name, own in summaries.items()]
