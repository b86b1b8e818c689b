"""Where compiled steps are kept."""

from pathlib import Path
from typing import Any

import jax
import pytest

from train.core.devices import compilation_cache


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What is set of JAX's config in this test; nothing comes of it."""
    values: dict[str, Any] = {}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    monkeypatch.setattr(jax.config, "update", values.__setitem__)
    return values


def test_compilations_are_kept_for_the_user(settings: dict[str, Any], tmp_path: Path) -> None:
    compilation_cache.enable()
    directory = Path(settings["jax_compilation_cache_dir"])
    assert directory.is_relative_to(tmp_path / "nam_jax")
    assert 0 < settings["jax_persistent_cache_min_compile_time_secs"] < 1


def test_settings_of_the_compilation_cache_in_the_environment_hold(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    compilation_cache.enable()
    assert settings == {}
