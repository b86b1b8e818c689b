"""Data that tests find only where NAM_JAX_TEST_DATA names its directory."""

import os
from pathlib import Path

import pytest


def real(part: str) -> Path:
    """A file or folder of that directory; skips the test where it is not there."""
    directory = os.environ.get("NAM_JAX_TEST_DATA")
    path = Path(directory or "", part)
    if not directory or not path.exists():
        pytest.skip(f"NAM_JAX_TEST_DATA has no {part}")
    return path
