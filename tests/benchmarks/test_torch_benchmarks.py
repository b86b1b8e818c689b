"""The benchmarks against PyTorch compare the same work; skipped without PyTorch."""

import importlib

import jax
import numpy as np
import pytest

from configs import cifar100_mobilenet_v2, cifar100_resnet20, digits_resnet20
from train.core import command_line
from train.core.config.attentions import with_attentions
from train.core.config.fields import replaced
from train.core.errors import ConfigError

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

# These import torch, which the line above has found.
from benchmarks import gpu, module, step_vs_torch  # noqa: E402


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Compiling with PyTorch takes long, and changes no number."""
    monkeypatch.setattr(torch, "compile", lambda model: model)
    with jax.default_device(jax.devices()[0]):
        yield


def digits():
    config = digits_resnet20.get_config()
    config.batch_size = 8
    return config


def test_both_frameworks_train_alike():
    calls = step_vs_torch.pair(digits(), "float32")
    losses = np.array([[float(call()) for call in calls.values()] for _ in range(3)])
    np.testing.assert_allclose(*losses[0], rtol=1e-5)
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-3)
    assert len(np.unique(losses[:, 0])) == 3


def test_figures_of_a_step(monkeypatch):
    monkeypatch.setattr(step_vs_torch, "pair", lambda *_: dict.fromkeys(("nam_jax", "torch"), int))
    found = step_vs_torch.measure(digits(), "float32", steps=2)
    assert set(found) == {"nam_jax", "torch", "speed_vs_torch"}
    assert set(found["torch"]) == {"images_per_second", "step_ms", "step_ms_p95"}


def test_what_has_no_peer_is_refused():
    for config, names, expected in (
        (cifar100_mobilenet_v2, ["nam"], r"config\.model\.name: .*resnet18, resnet50, resnet20"),
        (cifar100_resnet20, ["nam", "se"], r"--attention: got 'se'; allowed: none, nam_channel"),
        (digits_resnet20, ["nam"], r"config\.optimizer\.sparsity: got 0\.0001; allowed: 0\.0, as"),
    ):
        with pytest.raises(ConfigError, match=f"^{expected}"):
            step_vs_torch.check(with_attentions(config.get_config(), names))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("accumulate_steps", 2),
        ("label_smoothing", 0.1),
        ("model.shortcut", "pad_end"),
        ("model.remat", True),
        ("optimizer.name", "lamb"),
        ("optimizer.nesterov", True),
    ],
)
def test_what_pytorch_does_not_do_is_refused(field, value):
    config = cifar100_resnet20.get_config()
    step_vs_torch.check({"none": config})
    with pytest.raises(ConfigError, match=f"^config.{field}: got {value!r}; allowed: "):
        step_vs_torch.check({"none": replaced(config, {field: value})})


def test_configs_of_the_gpu_have_peers():
    for command, config, names in gpu.JOBS.values():
        if command == "benchmarks.step_vs_torch":
            config = importlib.import_module(f"configs.{config}").get_config()
            step_vs_torch.check(with_attentions(config, names.split(",")))


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--shape=32,32", "--shape: got '32,32'; allowed: four numbers N,H,W,C."),
        ("--shape=2,4,4,0", "--shape: got '0'; allowed: 1 to 65,536, a whole number."),
        ("--steps=0", "--steps: got '0'; allowed: 1 to 1,000,000, a whole number."),
    ],
)
def test_one_line_of_what_is_wrong(option, expected, capsys):
    assert command_line.call(module.main, module.parser(), [option]) == command_line.WRONG_USAGE
    assert capsys.readouterr().err == f"error: {expected}\n"


def test_modules_are_compared_with_the_faster_layout(monkeypatch):
    seconds = {"nam_jax": 2.0, "nam_jax, moments": 1.0}
    seconds |= {"eager": 4.0, "eager, channels_last": 8.0}
    seconds |= {"compile": 5.0, "compile, channels_last": 2.5}

    def take_turns(forms, steps):
        return {
            form: module.turns.Times([seconds[form]] * steps, [seconds[form]] * steps)
            for form in forms
        }

    monkeypatch.setattr(module.turns, "take_turns", take_turns)
    found = module.measure("nam_channel", (2, 4, 4, 8), steps=2)
    assert list(found) == list(seconds)
    for form, figures in found.items():
        assert figures["vs_eager"] == seconds[form] / 4
        assert figures["vs_compile"] == seconds[form] / 2.5
    assert "nam_jax, moments" not in module.measure("nam_spatial", (2, 4, 4, 8), steps=1)
