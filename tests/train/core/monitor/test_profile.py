"""Traces of steps, and compiled steps that outlive the process."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from train.core.devices import compilation_cache
from train.core.errors import ConfigError
from train.core.monitor.profiler import Profiler, parse


@pytest.mark.parametrize("text", ["", "3", "0:2", "3:2", "a:b", "1:2:3", "-1:2"])
def test_wrong_spans_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--profile: got .* allowed: START:STOP"):
        parse(text, epath.Path())


def test_trace_needs_a_local_disk() -> None:
    with pytest.raises(
        ConfigError, match=r"^--profile: .* local --workdir; got gs://bucket/run\.$"
    ):
        parse("2:3", epath.Path("gs://bucket/run"))


def test_a_span_is_traced(tmp_path: Path) -> None:
    with Profiler(tmp_path / "profile", parse("2:3", epath.Path())) as profiler:
        for step in range(1, 5):
            profiler.before(range(step, step + 1))
            assert (tmp_path / "profile").exists() == (step > 3)
            profiler.after(range(step, step + 1), jnp.zeros(2) + 1)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_steps_that_are_dispatched_together_are_traced_together(tmp_path: Path) -> None:
    with Profiler(tmp_path / "profile", parse("6:7", epath.Path())) as profiler:
        for steps in (range(1, 6), range(6, 11), range(11, 16)):
            profiler.before(steps)
            profiler.after(steps, jnp.zeros(2) + 1)
            assert (tmp_path / "profile").exists() == (steps[0] >= 6)


def test_no_span_writes_nothing(tmp_path: Path) -> None:
    with Profiler(tmp_path / "profile", None) as profiler:
        profiler.before(range(1, 2))
        profiler.after(range(1, 2), jnp.zeros(2))
    assert not (tmp_path / "profile").exists()


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What is set of JAX's config in this test; nothing comes of it."""
    found: dict[str, Any] = {}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(jax.config, "update", found.__setitem__)
    return found


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
