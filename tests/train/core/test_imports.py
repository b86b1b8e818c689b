"""Commands import nothing heavy that they do not use."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
NEVER = {"tensorflow", "torch", "matplotlib"}
DATA = {"grain", "tensorflow_datasets", "array_record", "sklearn"}


@pytest.mark.parametrize(
    ("command", "unused"),
    [
        ("main", NEVER | DATA),
        ("evaluate", NEVER | DATA),
        ("compile", NEVER | DATA),
        ("report", NEVER | DATA),
        ("summary", NEVER | DATA | {"orbax", "tensorboardX"}),
        ("config", NEVER | DATA | {"orbax", "tensorboardX"}),
    ],
)
def test_heavy_imports(command: str, unused: set[str]) -> None:
    imported = "{name.split('.')[0] for name in sys.modules}"
    code = f"import sys, train.{command}; print(*{unused} & {imported})"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == []
