"""Four virtual CPU devices for every test; float64, and what can be broken, on request."""

import gc
import importlib.util
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jax
import pytest

from tests.helpers.damage import Child
from train.core.devices import busy, topologies

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
# Compiling takes most of the time, here and in the commands that tests start: a worker keeps what
# it has compiled, not in the user's directory, and compiles quickly what is slower to run then.
CACHE = tempfile.TemporaryDirectory()
for name, value in {
    "JAX_COMPILATION_CACHE_DIR": CACHE.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0.05,
    "JAX_DISABLE_MOST_OPTIMIZATIONS": True,
}.items():
    jax.config.update(name.lower(), value)
    os.environ[name] = str(value)
# Later versions have one way alone to make the code of a CPU, and end at the name of another.
if jax.__version_info__ < (0, 11):
    quick = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ.setdefault("XLA_FLAGS", quick)
# What a command tells in a test does not depend on how fast the machine is.
busy.PATIENCE = math.inf


# How hard property tests try: a few examples by default, many in `make faults`.
hypothesis.settings.register_profile(
    "few", max_examples=25, deadline=None, derandomize=True, database=None
)
hypothesis.settings.register_profile("many", max_examples=1000, deadline=None, database=None)
hypothesis.settings.load_profile("few")


def pytest_collection_finish() -> None:
    """What is there by now stays: Python need not look through it, nor through the rest often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


@pytest.fixture
def x64() -> Iterator[None]:
    """Float64 for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def optimized() -> Iterator[None]:
    """Optimised programs, for tests that run longer than they compile, or look at them."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for files that examples overwrite."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    """A process for what may end it."""
    process = Child()
    yield process
    process.pool.shutdown()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser, for the tests of pages."""
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright:
        # Its sandbox does not start for root, nor in many containers.
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), chromium_sandbox=False
        )
        yield browser
        browser.close()


@pytest.fixture
def libtpu_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes back what is set for libtpu."""
    for name, value in topologies.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def libtpu(libtpu_environment: None, optimized: None) -> None:
    """Skips where libtpu is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")


@pytest.fixture
def cuda(optimized: None) -> None:
    """Skips where the compiler for GPUs is not installed."""
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        pytest.skip("jax-cuda12-plugin and jax-cuda12-pjrt are not installed")
