"""The benchmark of single convolutions."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import convolutions
from benchmarks.convolutions import Case


@pytest.mark.slow
def test_figures_of_every_case_by_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {"grouped": Case(1, 4, 2, 4, 3, groups=2), "strided": Case(1, 4, 2, 3, 1, strides=2)}
    monkeypatch.setattr(convolutions, "CASES", cases)
    monkeypatch.setattr(sys, "argv", ["", "--steps=1", f"--json={tmp_path / 'figures.json'}"])
    convolutions.main()
    figures = json.loads((tmp_path / "figures.json").read_text())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[-2:]] == list(cases)
    for case in cases:
        assert figures[case].keys() == convolutions.FORMS.keys()
        assert all(len(times) == 3 and min(times) >= 0 for times in figures[case].values())
