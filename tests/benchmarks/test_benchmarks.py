"""The benchmarks: what they refuse, calls that are timed, single convolutions, and GPUs."""

import importlib
import importlib.util
import json
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import convolutions, gpu
from benchmarks.calls import Call
from benchmarks.convolutions import Case
from train.core import command_line
from train.core.command_line.values import attentions


@pytest.mark.parametrize(
    ("name", "option", "expected"),
    [
        ("convolutions", "--steps=0", "--steps: got '0'; allowed: 1 to 1,000,000, a whole number."),
        ("gpu", "cifar10", f"JOB: got 'cifar10'; allowed: {', '.join(gpu.JOBS)}."),
        (
            "loader.jpegs",
            "--count=3",
            "--count: got '3'; allowed: 4 to 10,000,000, a whole number.",
        ),
        ("loader.memory", "--count=100", "--count: got '100'; allowed: 2,500 to 100,000,000, "),
        ("serving", "--networks=resnet20,resnet18", "--networks: got 'resnet18'; allowed: resnet"),
        ("serving", "--attention=nam+gate_scale=2", "--attention: got 'nam+gate_scale=2'; "),
        ("serving", "--batches=1,0", "--batches: got '0'; allowed: 1 to 4,096, a whole number."),
    ],
)
def test_one_line_of_what_is_wrong(
    name: str, option: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    assert command_line.call(module.main, module.parser(), [option]) == command_line.WRONG_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {expected}")


@pytest.mark.parametrize(
    ("backend", "expected"),
    [("cpu", ["call", "wait", "call", "wait"]), ("gpu", ["call", "call", "wait"])],
)
def test_calls_are_waited_for_one_by_one_on_a_cpu(
    backend: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    happened = []

    class Array:
        def __init__(self) -> None:
            happened.append("call")

        def block_until_ready(self) -> None:
            happened.append("wait")

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    call = Call(Array)
    call.start(2)
    if backend == "gpu":
        call.wait()
    assert happened == expected


@pytest.mark.slow
def test_figures_of_every_case_by_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {"grouped": Case(1, 4, 2, 4, 3, groups=2), "strided": Case(1, 4, 2, 3, 1, strides=2)}
    monkeypatch.setattr(convolutions, "CASES", cases)
    arguments = ["--steps=1", f"--json={tmp_path / 'figures.json'}"]
    assert command_line.call(convolutions.main, convolutions.parser(), arguments) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[-2:]] == list(cases)
    for case in cases:
        assert figures[case].keys() == convolutions.FORMS.keys()
        assert all(len(times) == 3 for times in figures[case].values())


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2])
def test_both_forms_compute_the_same_gradients(groups: int) -> None:
    case = Case(1, 4, 2, 4, 3, groups=groups)
    found = []
    for calls in convolutions.calls(case):
        for call in calls.values():
            call.start(1)
        found.append([call._arrays for call in calls.values()])
    forward, of_input, of_kernel = found
    assert forward[0].shape == (1, 4, 4, 4)
    assert of_input[0].shape == (1, 4, 4, 2)
    assert of_kernel[0].shape == (3, 3, 2 // groups, 4)
    for xla, own in found:
        np.testing.assert_allclose(own, xla, rtol=1e-4, atol=1e-5)


# What the launcher for GPUs starts, and what it makes of it.

REPOSITORY = Path(__file__).parents[2]


def test_jobs_are_files_that_exist():
    for module, config, names in gpu.JOBS.values():
        assert importlib.util.find_spec(module)
        assert (REPOSITORY / f"configs/{config}.py").exists()
        assert attentions(names) == names.split(",")


def run_gpu(directory, *jobs):
    arguments = [f"--out={directory}", "--steps=7", *jobs]
    return command_line.call(gpu.main, gpu.parser(), arguments)


def test_figures_of_all_jobs_are_printed_as_one(tmp_path, monkeypatch, capsys):
    started = []

    def run(command, **_):
        started.append(command)
        file = command[-1].removeprefix("--json=")
        Path(file).write_text(json.dumps({"step_ms": 1.0}))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    assert run_gpu(tmp_path, "imagenet") == command_line.DONE
    assert run_gpu(tmp_path, "cifar100") == command_line.DONE
    expected = {"cifar100": {"step_ms": 1.0}, "imagenet": {"step_ms": 1.0}}
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == expected
    (first, second) = started
    assert first[1:5] == [
        *("-m", "train.benchmark", "--config=configs/imagenet_resnet50.py"),
        f"--attention={gpu.ALL}",
    ]
    assert "--steps=7" in second


def test_a_job_that_fails_leaves_no_figures_of_an_earlier_run(tmp_path, monkeypatch, capsys):
    for name in ("cifar100", "imagenet"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"step_ms": 1.0}))
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess([], 1))
    assert run_gpu(tmp_path, "imagenet") == command_line.FAILED
    out, err = capsys.readouterr()
    assert json.loads(out) == {"cifar100": {"step_ms": 1.0}}
    assert err.splitlines()[-1] == f"error: failed: imagenet; {tmp_path}/NAME.log says why."
