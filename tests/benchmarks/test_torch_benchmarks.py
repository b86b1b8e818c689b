"""The benchmarks against PyTorch compare the same work; skipped without PyTorch."""

import jax
import numpy as np
import pytest

from configs import cifar100_mobilenet_v2, digits_resnet20
from train.core.errors import ConfigError

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

# These import torch, which the line above has found.
from benchmarks import module, step_vs_torch  # noqa: E402


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
    with pytest.raises(ConfigError, match=r"^config\.model\.name: .*resnet18, resnet50, resnet20"):
        step_vs_torch.check(cifar100_mobilenet_v2.get_config(), ["nam"])
    with pytest.raises(ConfigError, match=r"^--attention: got 'se'; allowed: none, nam_channel"):
        step_vs_torch.check(digits(), ["nam", "se"])


def test_modules_are_compared_with_the_faster_layout():
    found = module.measure("nam_channel", (2, 4, 4, 8), steps=2)
    kinds = "eager", "eager, channels_last", "compile", "compile, channels_last"
    assert list(found) == ["nam_jax", "nam_jax, moments", *kinds]
    assert 1 in (found["eager"]["vs_eager"], found["eager, channels_last"]["vs_eager"])
    assert "nam_jax, moments" not in module.measure("nam_spatial", (2, 4, 4, 8), steps=1)
