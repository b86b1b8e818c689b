"""What the launcher for GPUs starts, and what it makes of it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from benchmarks import gpu
from train.core.command_line.values import attentions

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
