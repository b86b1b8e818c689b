"""What came out of a comparison: means over seeds, their deviations and intervals."""

import dataclasses
import operator
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from train.compare.runs import ComparedRun
from train.compare.significance import Noise, holm_levels, noise_of

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
      low: Lower end of a difference's confidence interval; None where there is no noise to tell
        it from.
      high: Upper end of the interval.
    """

    seeds: int
    mean: float
    deviation: float | None = None
    low: float | None = None
    high: float | None = None


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard deviation.

    Args:
      values: One value of every seed, at least one.

    Example:
      >>> from train.compare.estimates import estimate
      >>> estimate([1.0, 2.0, 3.0])[:3]
      (3, 2.0, 1.0)
    """
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Estimate(len(values), statistics.fmean(values), deviation)


@dataclasses.dataclass(frozen=True)
class Variant:
    """The finished runs with one attention and penalty.

    Attributes:
      name: The attention, with the strength of its penalty.
      summaries: Summary of each run, by its seed; at least one.
      base: Summaries of the runs without attention, by seed; empty for those runs themselves.
      noise: Noise of all runs that it is compared with; None where it is not known.
      level: Level of Holm's procedure at which its difference is tested; its interval has the
        confidence 1 − level.
    """

    name: str
    summaries: Summaries
    base: Summaries
    noise: Noise | None = None
    level: float = 1.0

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
        difference = self.paired("top1_error", operator.sub)
        if difference is None or self.noise is None:
            return difference
        low, high = self.noise.interval(difference.mean, difference.seeds, self.level)
        return difference._replace(low=low, high=high)

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
    variants = [Variant(name, own, {} if name == BASE else base) for name, own in summaries.items()]
    return _with_levels(variants)


def _with_levels(variants: list[Variant]) -> list[Variant]:
    errors = [
        {seed: own["top1_error"] for seed, own in each.summaries.items()} for each in variants
    ]
    noise = noise_of(errors)
    differences = {each.name: each.top1_difference for each in variants}
    compared = {name: each for name, each in differences.items() if each is not None}
    if noise is None or not compared:
        return variants
    p_values = [noise.p_value(each.mean, each.seeds) for each in compared.values()]
    levels = dict(zip(compared, holm_levels(p_values), strict=True))
    return [
        dataclasses.replace(each, noise=noise, level=levels[each.name])
        if each.name in levels
        else each
        for each in variants
    ]
