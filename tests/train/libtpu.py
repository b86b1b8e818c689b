"""What tests that compile for TPUs have in common."""

import importlib.util

import pytest

from train import topology

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes back what is set for libtpu."""
    for name, value in topology.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
