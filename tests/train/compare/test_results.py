"""Tables of a comparison, from summaries with known means, deviations and differences."""

import csv
import io
import math

import pytest

from train.compare import estimates
from train.compare.runs import Run
from train.core.config.fields import Config


def run(attention: str, seed: int, top1: float | None, speed: float = 100.0, p: float = 0.0) -> Run:
    config = Config(
        {
            "seed": seed,
            "batch_size": 128,
            "model": {"name": "resnet20", "attention": attention},
            "data": {"name": "cifar100"},
            "optimizer": {"sparsity": p},
        }
    )
    if top1 is None:
        return Run(config)
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
    return Run(config, summary)


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
    none, nam, se = estimates.rows(RUNS)
    assert none.top1_error[:3] == (3, 32.0, 2.0)
    assert none.difference is none.speed is None
    assert nam.variant == "nam-p0.0001"
    assert nam.difference.mean == -2.0
    # Differences −1, −2, −3: deviation 1; the quantile of Student's t for 2 degrees of freedom.
    assert nam.difference.high == pytest.approx(-2 + 4.302652729749464 / math.sqrt(3))
    assert nam.difference.low == pytest.approx(-2 - 4.302652729749464 / math.sqrt(3))
    assert nam.speed.mean == pytest.approx((0.5 + 0.9 + 0.7) / 3)
    assert se.difference == (1, 1.0, None, None, None)
    assert se.speed.mean == 0.75


def test_only_seeds_that_both_have_are_paired():
    (_, nam) = estimates.rows([run("none", 3, 20.0), run("nam", 0, 50.0), run("nam", 3, 21.0)])
    assert nam.top1_error.mean == 35.5
    assert nam.difference == (1, 1.0, None, None, None)
    assert estimates.cells(nam)[6] == "+1.00 (–; 1 of 2 seeds)"
    (alone,) = estimates.rows([run("nam", 0, 50.0)])
    assert alone.difference is alone.speed is None


def test_differences_that_are_all_the_same_have_no_interval():
    # 3.06 − 2.79 and 2.79 − 2.52 differ in the last bits.
    runs = [run("none", 0, 3.06), run("none", 1, 2.79), run("nam", 0, 2.79), run("nam", 1, 2.52)]
    (_, nam) = estimates.rows(runs)
    assert nam.difference.low is nam.difference.high is None
    assert estimates.cells(nam)[6] == "-0.27 (–)"


def test_speeds_of_other_devices_are_not_compared():
    runs = [run("none", 0, 30.0), run("nam", 0, 30.0, 50), run("none", 1, 30.0), run("nam", 1, 30)]
    for each, devices in zip(runs, ["4 × cpu", "4 × cpu", "4 × cpu", "8 × cpu"], strict=True):
        each.summary["devices"] = devices
    (_, nam) = estimates.rows(runs)
    assert (nam.speed.seeds, nam.speed.mean) == (1, 0.5)
    assert nam.difference.seeds == 2
    (_, nam) = estimates.rows(runs[2:])
    assert nam.speed is None


def test_csv_has_every_figure_in_full():
    none, nam, se = csv.DictReader(io.StringIO(estimates.csv_text(estimates.rows(RUNS))))
    assert none["top1_error_mean"] == "32.0"
    assert none["top1_difference_mean"] == none["images_per_second_vs_none"] == ""
    assert float(nam["top1_difference_high"]) == pytest.approx(0.484, abs=1e-3)
    assert nam["seeds"] == "0 1 2"
    assert [line["top1_difference_seeds"] for line in (none, nam, se)] == ["", "3", "1"]
    assert nam["best_top1_error_mean"] == "29.0"
    assert se["top1_error_deviation"] == se["top1_difference_low"] == ""
    assert se["parameters"] == "1234"


def test_markdown():
    text = estimates.markdown(estimates.rows(RUNS), estimates.caption(RUNS))
    lines = text.splitlines()
    assert lines[0] == (
        "resnet20 on cifar100: 9,000 steps of 128 images, evaluated on 10,000; "
        "runs: 7 finished, 1 begun."
    )
    table = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    assert len({len(cells) for cells in table}) == 1
    rows = {cells[0]: cells[1:] for cells in table}
    assert rows["none"] == [
        "3", "1,234", "5,678", "32.00 ± 2.00", "16.00 ± 1.00", "–", "31.00 ± 2.00", "–",
    ]  # fmt: skip
    assert rows["nam-p0.0001"][5] == "-2.00 (-4.48 … +0.48)"
    assert rows["se"][3:] == ["33.00 ± –", "16.50 ± –", "+1.00 (–)", "32.00 ± –", "0.75"]
    assert "95% confidence interval" in text
