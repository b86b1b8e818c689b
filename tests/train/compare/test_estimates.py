"""Tables and the chart of a comparison, from known means, deviations and differences."""

import csv
import dataclasses
import io
import math
from typing import NamedTuple

import numpy as np
import pytest
from matplotlib.figure import Figure

from train.compare import chart
from train.compare.columns import COLUMNS, Column, caption, csv_text, markdown, table
from train.compare.estimates import Estimate, variants_of
from train.compare.runs import ComparedRun
from train.core.config.fields import Config


def run(attention, seed, top1, speed=100.0, p=0.0):
    config = Config(seed=seed, batch_size=128)
    config.model.name, config.model.attention = "resnet20", attention
    config.data.name, config.optimizer.sparsity = "cifar100", p
    if top1 is None:
        return ComparedRun(config)
    summary = {
        "params": 1234,
        "macs": 5678,
        "steps": 9000,
        "num_eval_images": 10000,
        "top1_error": top1,
        "top5_error": top1 / 2,
        "best_top1_error": top1 - 1,
        "images_per_second": speed,
    }
    return ComparedRun(config, summary)


RUNS = [
    run("none", 0, 30.0, 100),
    run("none", 1, 32.0, 200),
    run("none", 2, 34.0, 100),
    run("nam", 0, 29.0, 50, 1e-4),
    run("nam", 1, 30.0, 180, 1e-4),
    run("nam", 2, 31.0, 70, 1e-4),
    run("se", 1, 33.0, 150),
    run("cbam", 0, None),
]


def test_mean_deviation_and_interval():
    none, nam, se = variants_of(RUNS)
    assert none.mean("top1_error")[:3] == (3, 32.0, 2.0)
    assert none.top1_difference is none.speed is None
    assert nam.name == "nam-p0.0001"
    assert nam.top1_difference.mean == -2.0
    # Differences −1, −2, −3: deviation 1. The quantile of Student's t for 2 degrees of freedom at
    # half of 0.05, for there are two differences, which neither is below.
    assert nam.top1_difference.high == pytest.approx(-2 + 6.205346816570965 / math.sqrt(3))
    assert nam.top1_difference.low == pytest.approx(-2 - 6.205346816570965 / math.sqrt(3))
    assert nam.speed.mean == pytest.approx((0.5 + 0.9 + 0.7) / 3)
    # The noise is that of all runs: one seed has an interval too.
    assert se.top1_difference[:3] == (1, 1.0, None)
    assert se.top1_difference.high == pytest.approx(1 + 6.205346816570965)
    assert se.speed.mean == 0.75


def test_only_seeds_that_both_have_are_paired():
    (_, nam) = variants_of([run("none", 3, 20.0), run("nam", 0, 50.0), run("nam", 3, 21.0)])
    assert nam.mean("top1_error").mean == 35.5
    assert nam.top1_difference == (1, 1.0, None, None, None)
    assert table([nam]).rows[0][6] == "+1.00 (–; 1 of 2 seeds)"
    (alone,) = variants_of([run("nam", 0, 50.0)])
    assert alone.top1_difference is alone.speed is None


def test_differences_that_are_all_the_same_have_no_interval():
    # 3.06 − 2.79 and 2.79 − 2.52 differ in the last bits.
    runs = [run("none", 0, 3.06), run("none", 1, 2.79), run("nam", 0, 2.79), run("nam", 1, 2.52)]
    (_, nam) = variants_of(runs)
    assert nam.top1_difference.low is nam.top1_difference.high is None
    assert table([nam]).rows[0][6] == "-0.27 (–)"


def test_speeds_of_other_devices_are_not_compared():
    runs = [run("none", 0, 30.0), run("nam", 0, 30.0, 50), run("none", 1, 30.0), run("nam", 1, 30)]
    for each, devices in zip(runs, ["4 × cpu", "4 × cpu", "4 × cpu", "8 × cpu"], strict=True):
        each.summary["devices"] = devices
    (_, nam) = variants_of(runs)
    assert (nam.speed.seeds, nam.speed.mean) == (1, 0.5)
    assert nam.top1_difference.seeds == 2
    (_, nam) = variants_of(runs[2:])
    assert nam.speed is None


def test_csv_has_every_figure_in_full():
    none, nam, se = csv.DictReader(io.StringIO(csv_text(variants_of(RUNS))))
    assert none["top1_error_mean"] == "32.0"
    assert none["top1_difference_mean"] == none["images_per_second_vs_none"] == ""
    assert float(nam["top1_difference_high"]) == pytest.approx(1.583, abs=1e-3)
    assert nam["seeds"] == "0 1 2"
    assert [line["top1_difference_seeds"] for line in (none, nam, se)] == ["", "3", "1"]
    assert nam["best_top1_error_mean"] == "29.0"
    assert se["top1_error_deviation"] == none["top1_difference_low"] == ""
    assert se["parameters"] == "1234"


def test_markdown():
    text = markdown(variants_of(RUNS), caption(RUNS))
    lines = text.splitlines()
    assert lines[0] == (
        "resnet20 on cifar100: 9,000 steps of 128 images, evaluated on 10,000; "
        "runs: 7 finished, 1 begun."
    )
    lines = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    assert len({len(cells) for cells in lines}) == 1
    rows = {cells[0]: cells[1:] for cells in lines}
    assert rows["none"] == [
        "3", "1,234", "5,678", "32.00 ± 2.00", "16.00 ± 1.00", "–", "31.00 ± 2.00", "–",
    ]  # fmt: skip
    assert rows["nam-p0.0001"][5] == "-2.00 (-5.58 … +1.58)"
    assert rows["se"][3:] == [
        "33.00 ± –",
        "16.50 ± –",
        "+1.00 (-5.21 … +7.21)",
        "32.00 ± –",
        "0.75",
    ]
    assert "At most 5% of comparisons find one that is not there." in text
    assert "standard deviation of 0.71 points (2 degrees of freedom" in text
    assert "probability of 80% where it is 8.01 points (1 seed), 4.62 points (3 seeds)." in text
    assert "degrees of freedom" not in markdown(variants_of(RUNS[:2]), "")


def test_averaged_weights_have_a_column_where_all_runs_have_them():
    assert "averaged weights" not in markdown(variants_of(RUNS), "")
    averaged = [
        dataclasses.replace(run, summary=run.summary and {**run.summary, "ema_top1_error": 31.0})
        for run in RUNS
    ]
    variants = variants_of(averaged)
    none, *_ = csv.DictReader(io.StringIO(csv_text(variants)))
    assert none["ema_top1_error_mean"] == "31.0"
    assert "top-1 error of averaged weights, %" in table(variants).header
    assert "at the same step" in markdown(variants, "")
    assert "averaged weights" not in markdown(variants_of([*averaged, RUNS[0]]), "")


def test_a_column_is_one_entry(monkeypatch):
    steps = Column("steps", "steps", lambda variant: variant.first("steps"), meaning="Steps.")
    monkeypatch.setattr("train.compare.columns.COLUMNS", (*COLUMNS, steps))
    variants = variants_of(RUNS)
    header, none, *_ = csv.reader(io.StringIO(csv_text(variants)))
    assert dict(zip(header, none, strict=True))["steps"] == "9000"
    assert (table(variants).header[-1], table(variants).rows[0][-1]) == ("steps", "9,000")


def whiskers(axes):
    """The ends of the horizontal lines, by their height."""
    ends = [line.get_segments()[0] for line in axes.collections]
    return {end[0][1]: (end[0][0], end[1][0]) for end in ends}


class Known(NamedTuple):
    """A variant whose estimates are given."""

    name: str
    error: Estimate
    top1_difference: Estimate | None

    def mean(self, field):
        return {"top1_error": self.error}[field]


def test_chart_of_errors_with_deviations_and_differences_with_intervals():
    variants = [
        Known("none", Estimate(3, 30.0, 2.0, 25.0, 35.0), None),
        Known("nam", Estimate(3, 28.0, 1.0, 25.5, 30.5), Estimate(3, -2.0, 0.5, -3.25, -0.75)),
        Known("se", Estimate(1, 29.0), Estimate(1, -1.0)),
        Known("tam", Estimate(2, 27.0, 0.0), Estimate(2, -3.0, 0.0)),
    ]
    figure = Figure()
    chart.comparison(variants)[0](figure)
    errors, differences = figure.axes
    assert [label.get_text() for label in errors.get_yticklabels()] == ["none", "nam", "se", "tam"]
    shown = [line.get_xydata()[0] for line in errors.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(shown, [[30, 0], [28, 1], [29, 2], [27, 3]])
    assert whiskers(errors) == {0: (28, 32), 1: (27, 29), 3: (27, 27)}
    shown = [line.get_xydata()[0] for line in differences.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(shown, [[-2, 1], [-1, 2], [-3, 3]])
    assert whiskers(differences) == {1: (-3.25, -0.75)}
