"""The commands of the pages are understood; those of the README that need no download run."""

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from nam_jax import models
from nam_jax.models.resnet import BasicBlock, ResNet
from tests.docs.markdown import PAGES, README, REPOSITORY, commands, name
from tests.helpers.commands import BEGINS, call, no_work
from tests.helpers.image_datasets import folders

# What a reader puts in the place of these.
PLACEHOLDERS = {
    "--config FILE": "--config configs/digits_resnet20.py",
    "configs/NAME.py": "configs/imagenet_resnet50.py",
    "attention=NAME": "attention=nam",
    "HOST:PORT": "localhost:1234",
    "--num_processes N": "--num_processes 2",
    "--process_id I": "--process_id 0",
    "$JOB_COMPLETION_INDEX": "0",
}
ALL = sorted({command for page in PAGES for command in commands(page)})


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory like a checkout."""
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", ALL)
def test_command_is_understood(command: str, directory: Path) -> None:
    if command.startswith("report"):
        run = directory / command.split()[-1]
        run.mkdir(parents=True)
        (run / "config.json").write_text("{}")
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
        assert path in PLACEHOLDERS or (REPOSITORY / path).exists()
    for module in re.findall(r"python -m (\w+(?:\.\w+)+)", text):
        assert module == "train.NAME" or importlib.util.find_spec(module)
    targets = re.findall(r"^([\w./-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"(?:`|^    )make (?:\w+=\S+ )?([\w./-]+)", text, re.MULTILINE):
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
SHORT = ["--config.steps=2", "--config.batch_size=8", "--config.data.image_size=16"]
SMALL = {
    "main": [*SHORT, "--num_processes=1"],
    "evaluate": SHORT,
    "compare": [*SHORT, "--attention=none,nam", "--seeds=0"],
    "benchmark": ["--steps=10"],
}
DOWNLOADED = (
    "compile",
    "main --config configs/cifar100",
    "main --config configs/imagenet",
    "compare --config configs/cifar100",
    "compare --config configs/folder",
)


def small(kind: str, *, num_classes: int, attention: str = "none", **fields: object) -> ResNet:
    shared = {key: fields[key] for key in ("dtype", "axis_name") if key in fields}
    return ResNet(BasicBlock, (1,), num_classes, attention, stem="cifar", width=8, **shared)


@pytest.mark.slow
def test_readme_commands_run(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders.write_splits(directory / "DIR")
    monkeypatch.setattr(models, "create", small)
    for command in commands(README):
        if command.startswith(DOWNLOADED):
            continue
        first = command.split()[0]
        result = call(*shlex.split(command), *SMALL.get(first, []))
        assert result.code == 0, (command, result.err)
    run = directory / "runs/digits_resnet20"
    assert {"summary.json", "gates.json", "report.html", "visualize.png"} <= {
        p.name for p in run.iterdir()
    }
    assert (directory / "digits.onnx").exists()
    assert (directory / "runs/comparison/results.md").exists()
