"""Log lines, on a terminal and elsewhere."""

import sys

import pytest

from train.core.monitor.terminal import Display

ROWS = [
    {"split": "train", "step": 5, "epoch": 2.5, "loss": 0.5, "top1_error": 12.5},
    {"split": "eval", "step": 5, "epoch": 2.5, "loss": 0.25, "top1_error": 10.0},
]
LINES = [
    "train  step 5/20  epoch 2.50  loss 0.5000  error 12.50 %  1,234 images/s  0:00:30 left",
    "eval   step 5/20  epoch 2.50  loss 0.2500  error 10.00 %",
]


@pytest.mark.parametrize("columns", [120, 60])
@pytest.mark.parametrize("is_terminal", [False, True])
def test_display_prints_lines_or_on_a_terminal_a_live_one(
    monkeypatch, capsys, is_terminal, columns
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    display = Display(total_steps=20)
    for row in (ROWS[0], ROWS[0], ROWS[1], ROWS[0]):
        display.show(row | {"images_per_second": 1234.0}, wall_seconds=10.0)
    display.close()
    expected = "{0}\n{0}\n{1}\n{0}\n".format(*LINES)
    if is_terminal:
        clear, lines = "\r\x1b[K", [line[: columns - 1] for line in LINES]
        expected = "{2}{0}{2}{0}{2}{1}\n{2}{0}\n".format(*lines, clear)
    assert capsys.readouterr().out == expected
