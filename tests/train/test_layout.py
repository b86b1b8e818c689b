"""Commands import nothing heavy that they do not use; folders stay narrow."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
NEVER = {"tensorflow", "torch", "matplotlib"}
DATA = {"grain", "tensorflow_datasets", "array_record", "sklearn"}


@pytest.mark.parametrize(
    ("command", "unused"),
    [
        ("main", NEVER | DATA),
        pytest.param("evaluate", NEVER | DATA, marks=pytest.mark.slow),
        pytest.param("compile", NEVER | DATA, marks=pytest.mark.slow),
        pytest.param("report.__main__", NEVER | DATA, marks=pytest.mark.slow),
        pytest.param("visualize.__main__", NEVER, marks=pytest.mark.slow),
        pytest.param("summary", NEVER | DATA | {"orbax", "tensorboardX"}, marks=pytest.mark.slow),
        pytest.param("config", NEVER | DATA | {"orbax", "tensorboardX"}, marks=pytest.mark.slow),
    ],
)
def test_heavy_imports(command: str, unused: set[str]) -> None:
    imported = "{name.split('.')[0] for name in sys.modules}"
    code = f"import sys, train.{command}; print(*{unused} & {imported})"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == []


@pytest.mark.parametrize("package", ["train", "nam_jax"])
def test_no_folder_has_more_than_ten_entries(package: str) -> None:
    root = REPOSITORY / package
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        if "__pycache__" in folder.parts:
            continue
        entries = [path.name for path in folder.iterdir() if not path.name.startswith("__")]
        assert len(entries) <= (12 if folder == root else 10), (folder, entries)
