"""Compilation for TPU slices that are not there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from configs import cifar100_resnet20
from tests.helpers.commands import OPTIMIZED, PLAIN, REPOSITORY
from tests.helpers.tiny import digits
from train import compile as command
from train.compile import as_text, compiler_refusal, experiment_for
from train.core import command_line
from train.core.config.fields import Config, replaced
from train.core.devices import chips, topologies
from train.core.engine.experiment import build_experiment
from train.core.engine.feeds import train_example, train_feed
from train.core.engine.state import abstract_state, initial_state
from train.core.errors import ConfigError, RunError

pytestmark = pytest.mark.usefixtures("libtpu_environment")

# Slices by name, with what JAX calls their devices and how many there are.
SLICES = [
    ("v2:2x2", "TPU v2", 8),
    ("v3:2x2", "TPU v3", 8),
    ("v4:2x2x1", "TPU v4", 4),
    ("v4:1x1x1", "TPU v4", 1),
    ("v5e:16x16", "TPU v5 lite", 256),
    ("v5p:2x2x1", "TPU v5", 4),
    ("v6e:2x4", "TPU v6 lite", 8),
    ("tpu7x:2x2x1", "TPU7x", 8),
]
# Of the digits' network without attention.
PARAMETERS = 269434
FIGURES = {
    "devices": 4,
    "device_kind": "TPU v5 lite",
    "batch_size": 512,
    "flops": 3.1626e12,
    "bytes_accessed": 5.617e10,
    "argument_bytes": 226604032,
    "output_bytes": 207341568,
    "temp_bytes": 4615698432,
    "peak_bytes": 4842302464,
    "available_bytes": 16911433728,
    "collectives": {"all-reduce": {"count": 2, "bytes": 102800000}},
    "compile_seconds": 385.5,
}


def smallest(**changes: Any) -> Config:
    small = {"batch_size": 8, "model.attention": "none", "optimizer.sparsity": 0.0}
    return digits(**{**small, **changes})


@pytest.mark.parametrize(
    "name", ["", "v5e", "v5e:", "v5e:4", "v5e:2X2", "v5e:2x", "v5e:-1x2", "v5e:2x2x2x2", ":2x2"]
)
def test_malformed_topology_is_refused_with_examples(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^--topology: got .*such as v4:2x2x1, v5e:2x2"):
        topologies.devices(name)


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize("name", ["v9e:2x2", "v5e:3x3", "v5e:0x2"])
def test_topology_that_does_not_exist_is_refused_with_examples(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^--topology: libtpu has no '{name}'.*v5e:2x2"
    ) as error:
        topologies.devices(name)
    assert len(str(error.value).splitlines()) == 1


def test_without_libtpu_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("JAX TPU support not installed")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", missing)
    with pytest.raises(RunError, match=r"with make \.venv/libtpu, and give the command"):
        topologies.devices("v5e:2x2")


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize(("name", "kind", "count"), SLICES)
def test_slices_and_the_memory_of_their_devices(name: str, kind: str, count: int) -> None:
    devices = topologies.devices(name)
    assert (devices[0].device_kind, len(devices)) == (kind, count)
    matrix = jax.ShapeDtypeStruct(
        (2**19, 2**18), jnp.float32, sharding=SingleDeviceSharding(devices[0])
    )
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        jax.jit(lambda x: x.T @ x).lower(matrix).compile()
    assert f"available HBM ({chips.MEMORY_GIB[kind]}G)" in str(error.value)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (18.77G) exceeds available HBM (15.75G).",
            "the step does not fit: it needs 18.77 GiB of the 15.75 GiB that a device has",
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 24.53G of 15.75G hbm. "
            "Exceeded hbm capacity by 8.78G.\n\nTotal hbm usage >= 25G:\n    reserved 258M",
            "the step does not fit: it needs 24.53 GiB of the 15.75 GiB that a device has",
        ),
        ("INTERNAL: a bug\nand more", "the step does not compile: INTERNAL: a bug"),
        ("RESOURCE_EXHAUSTED: vmem", "the step does not compile: RESOURCE_EXHAUSTED: vmem"),
    ],
)
def test_refusals_are_one_line(message: str, line: str) -> None:
    assert compiler_refusal(message).startswith(line)
    assert len(compiler_refusal(message).splitlines()) == 1


def test_report() -> None:
    assert as_text(FIGURES).splitlines() == [
        "one of 4 × TPU v5 lite:",
        "  images         128",
        "  arguments      0.211 GiB",
        "  output         0.193 GiB",
        "  temporaries    4.299 GiB",
        "  peak memory    4.510 GiB of 15.750 GiB (29 %)",
        "  operations     3.163e+12 flops",
        "  bytes accessed 5.617e+10",
        "  all-reduce     2, of 102,800,000 bytes",
        "compiled in 385.5 s",
    ]


def test_report_of_a_device_whose_memory_is_not_known() -> None:
    lines = as_text({**FIGURES, "available_bytes": None}).splitlines()
    assert "  peak memory    4.510 GiB" in lines


@pytest.mark.slow
def test_shapes_are_those_of_the_trainer() -> None:
    experiment = build_experiment(smallest())
    state = initial_state(experiment)
    arguments = train_feed(experiment).example
    expected = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), (state, arguments))
    abstract = abstract_state(experiment), train_example(experiment)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), abstract) == expected


def test_resident_split_must_be_on_disk(tmp_path: Path) -> None:
    config = replaced(cifar100_resnet20.get_config(), {"data.dir": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"^config\.data\.loader: .*loader=streaming\.$"):
        experiment_for(config, jax.devices())


def test_streamed_dataset_need_not_be_on_disk(tmp_path: Path) -> None:
    changes = {"data.dir": str(tmp_path), "data.loader": "streaming"}
    config = replaced(cifar100_resnet20.get_config(), changes)
    experiment = experiment_for(config, jax.devices())
    (batch,) = train_example(experiment)
    assert batch.images.shape == (config.batch_size, 32, 32, 3)
    assert experiment.model.num_classes == 100


def test_part_of_an_epoch_is_some_steps_of_a_dataset_that_is_not_there(tmp_path: Path) -> None:
    changes = {"data.dir": str(tmp_path), "data.loader": "streaming", "epochs": 1}
    changes |= {"optimizer.warmup_epochs": 0.6}
    experiment_for(replaced(cifar100_resnet20.get_config(), changes), jax.devices())


@pytest.mark.usefixtures("libtpu")
def test_batch_that_does_not_divide() -> None:
    with pytest.raises(ConfigError, match=r"10 images do not divide over 4 .*: 8 or 12\."):
        experiment_for(smallest(batch_size=10), topologies.devices("v5e:2x2"))


@pytest.mark.usefixtures("libtpu")
def test_command_compiles_for_a_slice(tmp_path: Path) -> None:
    result = call("--topology=v5e:2x2", f"--json={tmp_path}/figures.json", *PLAIN)
    assert result.returncode == 0, result.stderr
    # It takes long, and says so, and nothing else.
    assert all(line.startswith("compiling, ") for line in result.stderr.splitlines())
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert result.stdout.startswith("one of 4 × TPU v5 lite:\n  images         16\n")
    assert figures["devices"] == 4
    assert figures["peak_bytes"] < figures["available_bytes"]
    assert min(figures["flops"], figures["bytes_accessed"], figures["peak_bytes"]) > 1e6
    # Parameters and momentum, 1438 images of 64 pixels; TPU layouts pad some arrays.
    assert figures["argument_bytes"] > 2 * 4 * PARAMETERS + 64 * 1438
    (collective,) = figures["collectives"].items()
    assert collective[0] == "all-reduce"
    # All gradients in float32, and the running statistics; less than a tenth on top of them.
    assert 4 * PARAMETERS < collective[1]["bytes"] < 1.1 * 4 * PARAMETERS


@pytest.mark.usefixtures("libtpu")
def test_command_says_what_does_not_fit(tmp_path: Path) -> None:
    large = ("--config.data.image_size=1024", "--config.data.resident_limit_gb=100")
    result = call("--topology=v5e:1x1", *PLAIN, *large)
    assert result.returncode == 1
    assert re.fullmatch(
        r"(compiling, .*\n)*error: the step does not fit: it needs .* of the 15.75 GiB .*\n",
        result.stderr,
    )


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "train.compile", "--config=configs/digits_resnet20.py", *arguments],
        cwd=REPOSITORY,
        env={name: v for name, v in os.environ.items() if name not in topologies.ENVIRONMENT}
        | OPTIMIZED,
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_needs_a_topology(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config=configs/digits_resnet20.py"]
    assert command_line.call(command.main, command.parser(), arguments) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: --topology is missing; examples: ")
    assert len(error.splitlines()) == 1
