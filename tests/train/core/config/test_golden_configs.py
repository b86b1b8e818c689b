"""Every config is compared with a stored copy, so that a changed value shows up in review.

A copy holds what differs from the defaults; `defaults` holds those. After a wanted change,
`python -m tests.train.core.config.test_golden_configs` rewrites the copies.
"""

import importlib
import json
from pathlib import Path

import pytest

from train.core.config.checks import validate
from train.core.config.fields import default_config, flatten

ROOT = Path(__file__).parents[4]
GOLDEN = ROOT / "tests" / "golden" / "configs"
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")
REGENERATE = "if it should be so, run: python -m tests.train.core.config.test_golden_configs"


def load(name):
    return importlib.import_module(f"configs.{name}")


def serialized(name):
    config = default_config() if name == "defaults" else load(name).get_config()
    validate(config)
    values, defaults = dict(flatten(config)), dict(flatten(default_config()))
    if name != "defaults":
        values = {field: value for field, value in values.items() if value != defaults[field]}
    return json.dumps(values, sort_keys=True, indent=2) + "\n"


def golden(name):
    path = GOLDEN / f"{name}.json"
    return path.read_text() if path.exists() else ""


def test_there_are_configs():
    assert NAMES


@pytest.mark.parametrize("name", ["defaults", *NAMES])
def test_config_is_as_stored(name):
    assert serialized(name) == golden(name), f"configs/{name}.py has changed; {REGENERATE}"


@pytest.mark.parametrize("name", NAMES)
def test_docstring_holds_the_command(name):
    assert f"python -m train.main --config configs/{name}.py" in load(name).__doc__


def test_every_stored_config_has_its_file():
    stored = {path.stem for path in GOLDEN.iterdir()}
    assert stored == {"defaults", *NAMES}, f"tests/golden/configs is not configs/; {REGENERATE}"


def main():
    """Writes the stored copies anew, and removes those of configs that are gone."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for path in GOLDEN.iterdir():
        path.unlink()
    for name in ("defaults", *NAMES):
        (GOLDEN / f"{name}.json").write_text(serialized(name))


if __name__ == "__main__":
    main()
