"""Timings in turns, with a clock that is no clock."""

import pytest

from train.benchmark import turns
from train.benchmark.turns import Times


class Clock:
    """Stands still but for the steps."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Recorded:
    """Notes its steps, which are done, one second each, when they are waited for."""

    def __init__(self, name, log, clock, seconds=1.0):
        self.name, self.log, self.clock, self.seconds = name, log, clock, seconds
        self.started = 0

    def start(self, count):
        self.started += count

    def wait(self):
        self.log.append((self.name, self.started))
        self.clock.now += self.started * self.seconds
        self.started = 0


@pytest.fixture
def pair():
    log, clock = [], Clock()
    return log, clock, {"a": Recorded("a", log, clock), "b": Recorded("b", log, clock, 3.0)}


def test_variants_take_turns_after_a_warm_up(pair):
    log, clock, variants = pair
    turns.take_turns(variants, steps=12, clock=clock)

    def round_of(name, count):
        return [(name, 1)] * count + [(name, count)]

    warm_up = [("a", turns.WARM_UP), ("b", turns.WARM_UP)]
    first, second = (round_of("a", n) + round_of("b", n) for n in (10, 2))
    assert log == warm_up + first + second


def test_times_are_those_of_each_variant_without_its_warm_up(pair):
    _, clock, variants = pair
    assert turns.take_turns(variants, steps=12, clock=clock) == {
        "a": Times([1.0] * 12, [1.0] * 2),
        "b": Times([3.0] * 12, [3.0] * 2),
    }


def test_ratio_is_taken_round_by_round():
    # The machine is ten times as slow in the second round, and something else runs in the third.
    base = Times([], [1.0, 10.0, 1.0, 1.0, 1.0])
    assert turns.ratio(Times([], [1.5, 15.0, 9.0, 1.4, 1.6]), base) == 1.5
    assert turns.ratio(base, base) == 1.0
