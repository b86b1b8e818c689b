"""Timings of several things that take turns: a machine that drifts does so for all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

WARM_UP = 2
STEPS_OF_A_ROUND = 10


class Timed(Protocol):
    """What is timed."""

    def start(self, count: int) -> Any:
        """Starts so many steps."""

    def wait(self) -> Any:
        """Returns when every step that was started is done."""


class Times(NamedTuple):
    """Seconds of a variant.

    Attributes:
      steps: Seconds of every step that was waited for by itself.
      rounds: Seconds of a step, in the mean of those that a round started together.
    """

    steps: list[float]
    rounds: list[float]


def take_turns(
    variants: Mapping[str, Timed],
    steps: int,
    clock: Callable[[], float] = time.perf_counter,
    told: Callable[[int], None] = lambda count: None,
) -> dict[str, Times]:
    """Times all variants, round by round: A B A B.

    In a round each one does some steps that are waited for one by one, then as many that are
    waited for together.

    Args:
      variants: Variants by name.
      steps: Number of steps of each kind, for each variant, over all rounds.
      clock: Gives seconds from any point on.
      told: Called with the number of steps that were done since the last call.

    Returns:
      The times by name.
    """
    for variant in variants.values():
        _seconds(variant, WARM_UP, clock)
    times = {name: Times([], []) for name in variants}
    for done in range(0, steps, STEPS_OF_A_ROUND):
        count = min(STEPS_OF_A_ROUND, steps - done)
        for name, variant in variants.items():
            times[name].steps.extend(_seconds(variant, 1, clock) for _ in range(count))
            times[name].rounds.append(_seconds(variant, count, clock) / count)
            told(2 * count)
    return times


def _seconds(variant: Timed, count: int, clock: Callable[[], float]) -> float:
    begin = clock()
    variant.start(count)
    variant.wait()
    return clock() - begin


def ratio(times: Times, base: Times) -> float:
    """How many times as long as the base something takes: the median over the rounds."""
    pairs = zip(times.rounds, base.rounds, strict=True)
    return statistics.median(own / other for own, other in pairs)
