"""Every command that works for long shows it, and counts to the end of what it counts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import tiny
from tests.helpers.commands import call
from tests.helpers.image_datasets import folders, imagenet
from train.core.data.sources.folder import Folder
from train.core.devices import busy
from train.core.devices.busy import Work
from train.prepare.check import check_dataset
from train.prepare.shrink_folder import shrink_folder
from train.prepare.shrink_tfds import shrink_tfds

CONFIG = ("--config", "configs/digits_resnet20.py", "--config.optimizer.sparsity=0")
SHORT = ("--config.steps=2", "--config.batch_size=64")
SPLITS = ("train", "validation")


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Work]]:
    """All works, in the order in which they began."""
    begun: list[Work] = []
    begin = Work.__init__

    def noted(work: Work, *arguments: object) -> None:
        begun.append(work)
        begin(work, *arguments)

    monkeypatch.setattr(Work, "__init__", noted)
    yield begun
    assert busy._all == []


def told(works: list[Work]) -> set[str]:
    """What was going on; of what is counted the end has come."""
    assert all(work._done == work._total for work in works if work._total)
    return {work._what for work in works}


COMPILING = "compiling, which takes minutes for a large network"


@pytest.mark.slow
def test_a_run_and_what_is_done_with_it(
    works: list[Work], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.use(monkeypatch)
    workdir = ("--workdir", str(tmp_path / "run"))
    assert call("main", *CONFIG, *SHORT, *workdir, "--num_processes=1").code == 0
    assert told(works) >= {
        "starting the devices",
        "checking the checkpoints",
        "setting up the network",
        COMPILING,
        "training",
        "evaluating test",
        "waiting until the checkpoint is written",
    }
    works.clear()
    assert call("evaluate", *CONFIG, *SHORT, *workdir).code == 0
    assert told(works) >= {"reading the checkpoint", "evaluating test"}
    works.clear()
    out = tmp_path / "digits.stablehlo"
    monkeypatch.setattr("train.export.write", lambda *_, **__: out.touch())
    assert call("export", *workdir, "--out", str(out)).code == 0
    assert told(works) >= {"reading the checkpoint", f"writing {out}, which takes up to a minute"}
    works.clear()
    assert call("report", *workdir).code == 0
    assert told(works) >= {"writing the report"}
    works.clear()
    assert call("visualize", *workdir, "--split=test", "--count=2").code == 0
    assert told(works) >= {"looking at the images", "drawing the picture"}
    works.clear()
    assert call("benchmark", *CONFIG, "--steps=2", "--config.batch_size=64").code == 0
    assert told(works) >= {"compiling", "timing", "timing with the loader"}
    works.clear()
    assert call("summary", *CONFIG, "--attention=none,nam").code == 0
    assert told(works) == {"tracing"}


def test_datasets_are_checked_and_copied(works: list[Work], tmp_path: Path) -> None:
    for split in ("train", "validation"):
        imagenet.write(tmp_path, imagenet.jpegs(70), split)
    data = imagenet.config(tmp_path).data
    check_dataset(data)
    assert told(works) == {f"{do} {on}" for do in ("opening", "checking") for on in SPLITS}
    works.clear()
    shrink_tfds(data, tmp_path / "small")
    assert "copying" in told(works)


def test_folders_are_listed_checked_copied_and_read(works: list[Work], tmp_path: Path) -> None:
    images = folders.write_splits(tmp_path / "images")
    data = folders.config(images).data
    check_dataset(data)
    assert told(works) == {f"listing {images}", "checking train", "checking val"}
    works.clear()
    shrink_folder(data, tmp_path / "small")
    assert "copying" in told(works)
    works.clear()
    Folder(data).open_split("val").load()
    assert told(works) == {f"listing {images}", "reading val"}
