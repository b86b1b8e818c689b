"""Compiled steps that outlive the process."""

import os
import platform
from pathlib import Path

import jax


def enable() -> None:
    """Keeps compiled steps in a directory of the user, unless JAX was told another one.

    JAX's own settings hold: JAX_COMPILATION_CACHE_DIR for another directory,
    JAX_ENABLE_COMPILATION_CACHE=false for none, and JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS
    for what is worth keeping (here: from 0.1 s on). Several processes need one that all of them
    share, since JAX has the first of them alone write it: they have none by default.
    """
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # Evaluation steps of small networks take less than JAX's second.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.process_count() > 1:
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    # Code for one machine's CPU may not run on another's that shares the home directory.
    jax.config.update("jax_compilation_cache_dir", str(home / "nam_jax" / platform.node()))
