"""Commands import nothing heavy that they do not use; folders stay narrow."""

import subprocess
import sys

import pytest

from tests.helpers.commands import NAMES, REPOSITORY, module_name
from tests.helpers.values import with_slow

NEVER = {"tensorflow", "torch", "matplotlib"}
DATA = {"grain", "tensorflow_datasets", "array_record", "sklearn"}
RUN = {"orbax", "tensorboardX"}
UNUSED = {
    **dict.fromkeys(NAMES, NEVER | DATA),
    **dict.fromkeys(("compile", "config", "summary"), NEVER | DATA | RUN),
    # It writes records.
    "prepare": NEVER | RUN,
}


@with_slow("command", NAMES, set(NAMES) - {"main"})
def test_heavy_imports(command: str) -> None:
    imported = "{name.split('.')[0] for name in sys.modules}"
    code = f"import sys, {module_name(command)}; print(*{UNUSED[command]} & {imported})"
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
