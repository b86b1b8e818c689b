"""Where the time before the first step goes."""

import time

import pytest

from train.core.monitor.timing import Laps


def test_laps_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([11.5, 12.0, 15.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    laps = Laps(10.0)
    for name in ("imports", "data", "compilation"):
        laps.end(name)
    assert str(laps) == "5.0 s: imports 1.5, data 0.5, compilation 3.0"
