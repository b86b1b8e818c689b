"""The commands of the pages are understood; those of the README that need no download run."""

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from nam_jax import models
from nam_jax.models.resnet import BasicBlock, ResNet
from tests.docs.markdown import PAGES, README, REPOSITORY, commands, name
from tests.helpers.commands import BEGINS, call, no_work
from tests.helpers.image_datasets import folders

pytestmark = pytest.mark.usefixtures("quick_compilation")

# What a reader puts in the place of these.
PLACEHOLDERS = {
    "--config FILE": "--config configs/digits_resnet20.py",
    "HOST:PORT": "localhost:1234",
    "--num_processes N": "--num_processes 2",
    "--process_id I": "--process_id 0",
    "$JOB_COMPLETION_INDEX": "0",
}
ALL = sorted({command for page in PAGES for command in commands(page)})


@pytest.mark.parametrize("command", ALL)
def test_command_is_understood(command: str) -> None:
    for placeholder, value in PLACEHOLDERS.items():
        command = command.replace(placeholder, value)
    with no_work():
        result = call(*shlex.split(command))
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("seed = 0" if command == "config" else BEGINS)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_commands_name_is_there(page: Path) -> None:
    text = page.read_text()
    for path in re.findall(r"\b(?:configs|examples|tests/\w+)/\w+\.py", text):
        assert (REPOSITORY / path).exists()
    for module in re.findall(r"python -m (\w+\.\w+)", text):
        assert module == "train.NAME" or importlib.util.find_spec(module)
    targets = re.findall(r"^([\w./-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"(?:`|^    )make ([\w./-]+)", text, re.MULTILINE):
        assert target in targets
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for names in re.findall(r"'\.\[([\w,]+)\]'", text):
        assert set(names.split(",")) <= extras["optional-dependencies"].keys()


def test_readme_begins_with_what_make_quickstart_does() -> None:
    recipe = re.search(
        r"^quickstart:.*\n\t.*-m train\.(.*)$", (REPOSITORY / "Makefile").read_text(), re.M
    )
    assert commands(README)[0] == recipe[1]


# The README's commands in their order, with a network of few layers, for a few steps. Those on
# datasets that have to be downloaded, and the one that needs libtpu, are run above, as far as
# they go without.
SMALL = {
    "main": ["--config.steps=2", "--config.batch_size=8", "--config.data.image_size=16"],
    "compare": ["--config.steps=2", "--workdir=runs/comparison"],
    "benchmark": ["--steps=2"],
}
DOWNLOADED = ("compile", "main --config configs/cifar100", "main --config configs/imagenet")


def small(kind: str, *, num_classes: int, attention: str = "none", **fields: object) -> ResNet:
    shared = {key: fields[key] for key in ("dtype", "axis_name") if key in fields}
    return ResNet(BasicBlock, (1,), num_classes, attention, stem="cifar", width=8, **shared)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with the configs and a folder of images, `DIR`, where networks are small."""
    folders.write_splits(tmp_path / "DIR")
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "create", small)
    return tmp_path


@pytest.mark.slow
def test_readme_commands_run(directory: Path) -> None:
    for command in commands(README):
        if command.startswith(DOWNLOADED):
            continue
        first = command.split()[0]
        result = call(*shlex.split(command), *SMALL.get(first, []))
        assert (result.code, result.err) == (0, ""), command
    run = directory / "runs/digits_resnet20"
    assert {"summary.json", "gates.json", "report.html", "visualize.png"} <= {
        p.name for p in run.iterdir()
    }
    assert (directory / "digits.onnx").exists()
    assert (directory / "runs/comparison/results.md").exists()
