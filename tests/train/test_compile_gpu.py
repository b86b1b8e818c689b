"""Compilation for GPUs that are not there."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax._src import xla_bridge
from jax._src.lib import _jax
from jax.sharding import SingleDeviceSharding

from tests.helpers import tiny
from tests.helpers.commands import Result, call
from train.core.devices import chips, scheduled_program, topologies
from train.core.errors import ConfigError, RunError

CARDS = {
    "h100": ("NVIDIA H100 80GB HBM3", 80),
    "h200": ("NVIDIA H200", 141),
    "a100": ("NVIDIA A100-SXM4-80GB", 80),
}


@pytest.mark.parametrize("name", ["h100:", "h100:0", "h100:2x2", "h100:100", "b9000", "H100"])
def test_malformed_card_is_refused_with_examples(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^--topology: got .*such as .*h100:8"):
        topologies.devices(name)


def test_without_the_wheels_one_line_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", missing)
    with pytest.raises(RunError, match=r"with make \.venv/cuda, and give the command") as error:
        topologies.devices("h100")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("name", CARDS)
def test_cards_their_memory_and_their_peak(name: str) -> None:
    kind, gigabytes = CARDS[name]
    for text, count in ((name, 1), (f"{name}:8", 8)):
        devices = topologies.devices(text)
        assert (devices[0].device_kind, len(devices)) == (kind, count)
    assert chips.peak_flops(kind) is not None
    assert 0.95 < chips.memory_bytes(kind) / (gigabytes * 1e9) < 1.1


@pytest.mark.usefixtures("cuda")
def test_counts_are_those_of_xla() -> None:
    def function(x, w):
        y = jnp.tanh(x.astype(jnp.float32) * w)
        return (y.astype(x.dtype) @ x.T).astype(jnp.float32).sum(), y.mean(0)

    sharding = SingleDeviceSharding(topologies.devices("h100")[0])
    x = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=sharding)
    w = jax.ShapeDtypeStruct((4096,), jnp.float32, sharding=sharding)
    program = jax.jit(jax.grad(lambda x, w: function(x, w)[0])).lower(x, w).compile()
    (module,) = program.runtime_executable().hlo_modules()
    expected = _jax.hlo_module_cost_analysis(xla_bridge.get_backend("cpu"), module)
    found = scheduled_program.figures(program.as_text())
    assert found["transcendentals"] == expected["transcendentals"]
    assert abs(found["bytes_accessed"] / expected["bytes accessed"] - 1) < 0.01
    assert abs(found["flops"] / expected["flops"] - 1) < 0.01


def compiled(*arguments: str) -> Result:
    return call("compile", "--config=configs/digits_resnet20.py", *arguments)


@pytest.mark.usefixtures("cuda")
def test_command_compiles_for_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.use(monkeypatch)
    arguments = ("--topology=h100:2", "--config.optimizer.sparsity=0")
    result = compiled(*arguments, f"--json={tmp_path}/figures.json")
    assert result.code == 0, result.err
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert result.out.startswith("one of 2 × NVIDIA H100 80GB HBM3:\n  images         32\n")
    assert f"kernels        {figures['kernels']}, with convolutions that are not" in result.out
    assert figures["peak_bytes"] < figures["available_bytes"]
    assert min(figures["flops"], figures["bytes_accessed"], figures["kernels"]) > 1
    assert figures["collectives"].keys() == {"all-reduce"}


@pytest.mark.usefixtures("cuda")
def test_command_says_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.use(monkeypatch)
    monkeypatch.setattr("train.compile.memory_bytes", lambda kind: 2**10)
    result = compiled("--topology=a100", "--config.optimizer.sparsity=0")
    assert result.code == 1
    assert result.err.startswith("error: the step does not fit: it needs ")
    assert len(result.err.splitlines()) == 1
