"""The benchmarks: of single convolutions, and on GPUs."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import convolutions, gpu
from benchmarks.convolutions import Case
from train.core.command_line.values import attentions


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


# What the launcher for GPUs starts, and what it makes of it.

REPOSITORY = Path(__file__).parents[2]


def test_jobs_are_files_that_exist():
    for module, config, names in gpu.JOBS.values():
        assert importlib.util.find_spec(module)
        assert (REPOSITORY / f"configs/{config}.py").exists()
        assert attentions(names) == names.split(",")


def test_figures_of_all_jobs_are_printed_as_one(tmp_path, monkeypatch, capsys):
    started = []

    def run(command, **_):
        started.append(command)
        file = command[-1].removeprefix("--json=")
        Path(file).write_text(json.dumps({"step_ms": 1.0}))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    for jobs in (["imagenet"], ["cifar100"]):
        monkeypatch.setattr(sys, "argv", ["gpu", f"--out={tmp_path}", "--steps=7", *jobs])
        gpu.main()
    expected = {"cifar100": {"step_ms": 1.0}, "imagenet": {"step_ms": 1.0}}
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == expected
    (first, second) = started
    assert first[1:5] == [
        *("-m", "train.benchmark", "--config=configs/imagenet_resnet50.py"),
        f"--attention={gpu.ALL}",
    ]
    assert "--steps=7" in second
