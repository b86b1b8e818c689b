"""Noise, levels and power of a comparison, against their definitions."""

import math

import numpy as np
import pytest
from scipy import stats

from train.compare.significance import Noise, holm_levels, noise_of


def test_noise_of_full_tables_is_the_residual_of_two_ways():
    errors = np.random.default_rng(0).normal(30, 2, (4, 5))
    residual = errors - errors.mean(0) - errors.mean(1, keepdims=True) + errors.mean()
    noise = noise_of([dict(enumerate(row)) for row in errors])
    assert noise.freedom == 3 * 4
    assert noise.deviation == pytest.approx(math.sqrt((residual**2).sum() / 12), abs=1e-9)


def test_noise_of_two_variants_is_that_of_their_differences():
    own, other = np.random.default_rng(1).normal(30, 2, (2, 6))
    noise = noise_of([dict(enumerate(own)), dict(enumerate(other))])
    # What Student's test of pairs says, and SciPy's version of it.
    test = stats.ttest_rel(own, other)
    assert noise.freedom == test.df
    difference = (own - other).mean()
    assert noise.p_value(difference, 6) == pytest.approx(test.pvalue)
    interval = test.confidence_interval(0.98)
    assert noise.interval(difference, 6, 0.02) == pytest.approx((interval.low, interval.high))


def test_seeds_that_are_missing_are_no_noise():
    full = [{0: 1.0, 1: 2.0, 2: 4.0}, {0: 3.0, 1: 6.0, 2: 5.0}]
    assert noise_of([*full, {1: 100.0}]) == noise_of(full)
    # Seeds and attentions of another height change nothing.
    moved = [{0: 1.0, 1: 9.0, 2: 4.0}, {0: -7.0, 1: 3.0, 2: -5.0}]
    assert noise_of(moved).deviation == pytest.approx(noise_of(full).deviation)


@pytest.mark.parametrize(
    "errors",
    [
        [{0: 1.0}, {0: 2.0}],
        [{0: 1.0, 1: 2.0, 2: 3.0}],
        [{0: 1.0, 1: 2.0}, {2: 2.0, 3: 1.0}],
        # 3.06 − 2.79 and 2.79 − 2.52 differ in the last bits.
        [{0: 3.06, 1: 2.79}, {0: 2.79, 1: 2.52}],
    ],
)
def test_no_noise_where_attention_and_seed_explain_every_run(errors):
    assert noise_of(errors) is None


@pytest.mark.parametrize(
    ("p_values", "shares"),
    [
        ([0.001, 0.04, 0.02], [3, 1, 2]),
        # The first is not below its level: it and all others are tested at this one.
        ([0.03, 0.02, 0.9], [3, 3, 3]),
        # 0.03 is above 0.025, and so 0.04 is not found either, though below 0.05.
        ([0.03, 0.01, 0.04], [2, 3, 2]),
        ([0.2], [1]),
        ([], []),
    ],
)
def test_levels_of_holm(p_values, shares):
    assert holm_levels(p_values) == pytest.approx([0.05 / share for share in shares])


def test_intervals_leave_out_zero_where_holm_rejects_and_nowhere_else():
    noise = Noise(1.0, 10)
    differences = np.random.default_rng(2).normal(0, 1.5, (50, 6))
    for row in differences:
        p_values = [noise.p_value(each, 3) for each in row]
        levels = holm_levels(p_values)
        adjusted = np.maximum.accumulate(np.sort(p_values) * np.arange(6, 0, -1))
        rejected = {
            p for p, bound in zip(np.sort(p_values), adjusted, strict=True) if bound <= 0.05
        }
        for difference, p, level in zip(row, p_values, levels, strict=True):
            low, high = noise.interval(difference, 3, level)
            assert (not low <= 0 <= high) == (p in rejected)


def test_differences_of_the_detectable_size_are_found_four_times_in_five():
    generator, noise, seeds, count = np.random.default_rng(3), Noise(2.0, 8), 3, 40_000
    difference = noise.detectable(seeds, 0.01)
    means = generator.normal(difference, 2 * math.sqrt(2 / seeds), count)
    deviations = 2 * np.sqrt(generator.chisquare(8, count) / 8)
    limit = stats.t.isf(0.005, 8) * math.sqrt(2 / seeds)
    # Its standard deviation is 0.002.
    assert np.mean(means / deviations > limit) == pytest.approx(0.8, abs=0.01)
