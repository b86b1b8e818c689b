"""Which differences between attentions are more than noise, where many are looked at."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

# Probability that a comparison finds no difference that is not there. That all intervals at Holm's
# levels hold their differences is less probable, where some differ: they say whether, not where.
CONFIDENCE = 0.95
# Probability with which a difference that is there is to be found.
POWER = 0.8
# Percentages that are equal but for rounding are this near.
ROUNDING = 1e-9

# Errors of a variant, by seed.
Errors = Mapping[int, float]


class Noise(NamedTuple):
    """What makes runs differ beside their attention and seed.

    Attributes:
      deviation: Standard deviation of the error of one run, in percentage points.
      freedom: Degrees of freedom of this estimate, from 1 on.
    """

    deviation: float
    freedom: int

    def of_difference(self, seeds: int) -> float:
        """Standard deviation of a mean difference over a number of seeds."""
        return self.deviation * math.sqrt(2 / seeds)

    def p_value(self, difference: float, seeds: int) -> float:
        """Probability of a mean difference so far from 0, or farther, where there is none."""
        return float(2 * stats.t.sf(abs(difference) / self.of_difference(seeds), self.freedom))

    def interval(self, difference: float, seeds: int, level: float) -> tuple[float, float]:
        """Where the difference lies, by Student's t, with a probability of 1 − `level`."""
        half = float(stats.t.isf(level / 2, self.freedom)) * self.of_difference(seeds)
        return difference - half, difference + half

    def detectable(self, seeds: int, level: float) -> float:
        """The difference that is found at `level` with a probability of `POWER`."""
        limit = float(stats.t.isf(level / 2, self.freedom))

        def missed(shift: float) -> float:
            return POWER - float(stats.nct.sf(limit, self.freedom, shift))

        return float(optimize.brentq(missed, 0, 4 * limit + 10)) * self.of_difference(seeds)


def noise_of(variants: Sequence[Errors]) -> Noise | None:
    """The noise that all runs of a comparison have in common, by least squares.

    error = attention + seed + noise

    Its deviation is taken to be the same with every attention: three seeds of one alone say
    little about it.

    Args:
      variants: Errors of each variant in percent, by seed.

    Returns:
      The noise; None where every run is explained, as with a single seed.

    Example:
      >>> from train.compare.significance import noise_of
      >>> noise_of([{0: 1.0, 1: 2.0}, {0: 3.0, 1: 6.0}])
      Noise(deviation=1.0, freedom=1)
    """
    seeds = sorted({seed for errors in variants for seed in errors})
    rows = [(place, seeds.index(seed)) for place, errors in enumerate(variants) for seed in errors]
    values = np.array([error for errors in variants for error in errors.values()])
    design = np.zeros((len(rows), len(variants) + len(seeds)))
    for row, (place, seed) in enumerate(rows):
        design[row, place] = design[row, len(variants) + seed] = 1
    solution, _, rank, _ = np.linalg.lstsq(design, values)
    freedom = len(rows) - int(rank)
    if freedom == 0:
        return None
    deviation = float(np.linalg.norm(values - design @ solution)) / math.sqrt(freedom)
    return Noise(round(deviation, 12), freedom) if deviation > ROUNDING else None


def holm_levels(p_values: Sequence[float]) -> list[float]:
    """The level at which Holm's procedure tests each of several hypotheses.

    The smallest of m probabilities is tested at α / m, the next at α / (m − 1), and so on, with
    α = 0.05 for all together; from the first that is not below its level on, the level stays.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, 1979,
    https://www.jstor.org/stable/4615733.

    Args:
      p_values: Probability of each, in any order.

    Example:
      >>> from train.compare.significance import holm_levels
      >>> [round(level, 3) for level in holm_levels([0.04, 0.001])]
      [0.05, 0.025]
    """
    levels = [0.0] * len(p_values)
    level, rejecting = 0.0, True
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if rejecting:
            level = (1 - CONFIDENCE) / (len(p_values) - rank)
        levels[place] = level
        rejecting = rejecting and p_values[place] <= level
    return levels
