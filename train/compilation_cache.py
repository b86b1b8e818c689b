"""Compiled steps that outlive the process."""

import os
import platform
from pathlib import Path

import jax


def enable() -> None:
    """Keeps compiled steps in a directory of the user, unless JAX was told another one.

    JAX's own settings hold: JAX_COMPILATION_CACHE_DIR for another directory, and
    JAX_ENABLE_COMPILATION_CACHE=false for none.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    # Code for one machine's CPU may not run on another's that shares the home directory.
    jax.config.update("jax_compilation_cache_dir", str(home / "nam_jax" / platform.node()))
