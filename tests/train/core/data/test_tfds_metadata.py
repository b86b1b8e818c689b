"""Wrong and damaged descriptions of a dataset: one line that names the field or the file."""

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.commands import REPOSITORY, call
from tests.helpers.damage import assert_says, json_values, places, put
from tests.helpers.image_datasets import small
from tests.helpers.image_datasets.small import COUNT, SHARD, config_of
from train.core.data.on_host import batches
from train.core.data.on_host.batches import BatchMaker
from train.core.data.sources.registry import source_of
from train.core.data.sources.split import Split
from train.core.engine.experiment import build_experiment
from train.core.errors import ConfigError, RunError

INFO, FEATURES = "dataset_info.json", "features.json"
# Places in them.
TRAIN = ("splits", 1)
KEYS = ("supervisedKeys", "tuple", "items")
IMAGE = ("featuresDict", "features", "image", "image")
LABEL = ("featuresDict", "features", "label", "classLabel")

slow = functools.partial(pytest.param, marks=pytest.mark.slow)
UNREADABLE = "config.data.dir: 'tiny' in "
NO_IMAGES = "config.data.name: tiny is no image classification dataset"
LIMIT_SECONDS = 120


def load(directory: Path) -> tuple[Split, np.ndarray, np.ndarray]:
    """What a run reads, after all that it checks before."""
    split = build_experiment(config_of(directory, batch_size=8)).train_split
    return split, *split.load()


def refuse(directory: Path, message: str) -> None:
    """Checks for an error: of the config where it begins with a field of it, else of the run."""
    with pytest.raises(ConfigError if message.startswith("config.") else RunError) as error:
        load(directory)
    assert_says(error.value, message)


def labels_unless_refused(directory: Path) -> np.ndarray | None:
    """Reads a dataset; None where it is refused, which takes one line."""
    try:
        split, images, labels = load(directory)
    except (ConfigError, RunError) as error:
        assert_says(error, "")
        return None
    assert images.shape == (split.num_examples, *split.image_shape)
    return labels


def rewrite(path: Path, place: tuple[Any, ...], value: Any) -> None:
    """Puts another value at a place of a JSON file."""
    content = json.loads(path.read_text())
    put(content, place, value)
    path.write_text(json.dumps(content))


@pytest.mark.faults
def test_what_is_sound_is_read(tmp_path: Path) -> None:
    # The control of the tests below.
    small.write(tmp_path)
    _, images, labels = load(tmp_path)
    np.testing.assert_array_equal(images, small.IMAGES)
    np.testing.assert_array_equal(labels, small.LABELS)


# Files.


@pytest.mark.faults
@pytest.mark.parametrize("name", [INFO, FEATURES])
@pytest.mark.parametrize(
    "content",
    [b"", b"spam", bytes(range(256)), b"[]", b"{}", b"3", b"null", b'{"spam": 1}', b"[" * 100_000],
    ids=["empty", "text", "binary", "list", "dict", "number", "null", "other", "nested"],
)
def test_metadata_of_something_else_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (small.write(tmp_path) / name).write_bytes(content)
    refuse(tmp_path, UNREADABLE)


def to_file(path: Path) -> None:
    shutil.rmtree(path)
    path.touch()


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.faults
@pytest.mark.parametrize(
    ("spoil", "name", "message"),
    [
        (to_file, "..", UNREADABLE),
        (to_file, "../..", UNREADABLE),
        (shutil.rmtree, ".", "config.data.name: no dataset 'tiny' in "),
        (Path.unlink, INFO, UNREADABLE),
        (Path.unlink, FEATURES, "config.data.name: no dataset 'tiny' in "),
        (to_folder, INFO, UNREADABLE),
        (to_folder, FEATURES, UNREADABLE),
        (Path.unlink, SHARD, f"{SHARD} cannot be read as ArrayRecord: "),
        (to_folder, SHARD, f"{SHARD} cannot be read as ArrayRecord: "),
    ],
)
def test_missing_file_is_named(
    tmp_path: Path, spoil: Callable[[Path], None], name: str, message: str
) -> None:
    directory = tmp_path / "data"
    spoil((small.write(directory) / name).resolve())
    refuse(directory, message)


# What they say.


@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        (INFO, (*KEYS, 0, "featureKey"), "picture", NO_IMAGES),
        (INFO, (*KEYS, 1, "featureKey"), "image", NO_IMAGES),
        (INFO, (*KEYS, 1), {"tuple": {"items": [{"featureKey": "label"}]}}, NO_IMAGES),
        (FEATURES, (*IMAGE, "shape", "dimensions"), ["6", "5", "4"], NO_IMAGES),
        (FEATURES, (*IMAGE, "shape", "dimensions"), ["6", "0", "3"], NO_IMAGES),
        (FEATURES, (*IMAGE, "shape", "dimensions"), ["6", "5"], UNREADABLE),
        (FEATURES, (*IMAGE, "dtype"), "uint16", NO_IMAGES),
        (FEATURES, (*LABEL, "numClasses"), "0", NO_IMAGES),
        (FEATURES, (*LABEL, "numClasses"), "-7", NO_IMAGES),
        (FEATURES, (*LABEL, "numClasses"), "3", "train record 3: label 3 of 3 classes"),
        (INFO, ("splits",), [], "config.data.train_split: tiny has no split 'train'; it has none"),
        (INFO, (*TRAIN, "name"), "spam", "config.data.train_split: tiny has no split 'train'; "),
        (
            INFO,
            (*TRAIN, "shardLengths"),
            ["0"],
            "config.data.train_split: 'train' of tiny is empty",
        ),
        (INFO, (*TRAIN, "shardLengths"), [], "config.data.train_split: 'train' of tiny is empty"),
        (INFO, (*TRAIN, "shardLengths", 1), str(10**12), "config.data.resident_limit_gb: "),
        (INFO, (*TRAIN, "shardLengths", 1), "13", f"{SHARD} holds 12 records, and {INFO} says 13"),
        (INFO, (*TRAIN, "shardLengths", 1), "11", f"{SHARD} holds 12 records, and {INFO} says 11"),
        (INFO, (*TRAIN, "shardLengths", 0), "0", f"-of-00002 holds 12 records, and {INFO} says 0"),
        (INFO, (*TRAIN, "filepathTemplate"), "{SPAM}", f"{INFO}: "),
    ],
)
def test_wrong_description_is_refused(
    tmp_path: Path, name: str, place: tuple[Any, ...], value: Any, message: str
) -> None:
    rewrite(small.write(tmp_path) / name, place, value)
    refuse(tmp_path, message)


@pytest.mark.faults
def test_number_of_records_is_not_believed(tmp_path: Path) -> None:
    # An order of so many takes terabytes.
    rewrite(small.write(tmp_path) / INFO, (*TRAIN, "shardLengths", 1), str(10**12))
    config = config_of(tmp_path, **{"data.loader": "streaming", "steps": 1})
    split = build_experiment(config).train_split
    with pytest.raises(RunError, match=f"{SHARD} holds 12 records"):
        BatchMaker(split, config, np.arange(COUNT))


@pytest.mark.faults
def test_records_of_other_features_are_all_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = small.write(tmp_path)
    features = json.loads((target / FEATURES).read_text())["featuresDict"]["features"]
    rewrite(target / FEATURES, ("featuresDict", "features", "picture"), features["image"])
    rewrite(target / INFO, (*KEYS, 0, "featureKey"), "picture")
    config = config_of(tmp_path)
    split = source_of(config.data).open_split("train")
    bad = r"train record \d: no image or no label in it"
    with pytest.raises(RunError, match=bad):
        split.load()
    monkeypatch.setattr(batches, "LONGEST_SEARCH", 5)
    maker = BatchMaker(split, config, np.arange(1))
    with maker, pytest.raises(RunError, match=bad):
        maker.train_batch(0, np.zeros(COUNT, int))


@pytest.mark.faults
@pytest.mark.parametrize("name", [INFO, FEATURES])
@given(data=st.data())
def test_any_description_is_refused_or_describes_what_is_read(
    scratch: Path, name: str, data: st.DataObject
) -> None:
    target = small.write(scratch)
    for _ in range(data.draw(st.integers(1, 3))):
        found = sorted(places(json.loads((target / name).read_text())), key=str)
        if found:
            rewrite(target / name, data.draw(st.sampled_from(found)), data.draw(json_values))
    labels = labels_unless_refused(scratch)
    if labels is not None:
        np.testing.assert_array_equal(labels, small.LABELS)


@pytest.mark.faults
@given(content=st.binary(max_size=20), place=st.integers(0, 10_000))
@pytest.mark.parametrize("name", [INFO, FEATURES])
def test_any_bytes_in_a_description_are_refused_or_read(
    scratch: Path, name: str, content: bytes, place: int
) -> None:
    path = small.write(scratch) / name
    before = path.read_bytes()
    place %= len(before)
    path.write_bytes(before[:place] + content + before[place + len(content) :])
    labels_unless_refused(scratch)


# As a user starts it.

IS_ROOT = os.geteuid() == 0
# Root may read everything, but for these two rights.
AS_USER = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if IS_ROOT else []


def options(directory: Path, workdir: Path) -> list[str]:
    config = ["--config=configs/digits_resnet20.py", "--config.batch_size=8"]
    data = {"name": "tiny", "dir": directory, "image_size": 8}
    more = [f"--config.data.{name}={value}" for name, value in data.items()]
    return [f"--workdir={workdir}", *config, *more]


def run(directory: Path, workdir: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AS_USER, sys.executable, "-m", "train.main", *options(directory, workdir)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.skipif(IS_ROOT and shutil.which("setpriv") is None, reason="root reads everything")
@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("../..", 2, "config.data.dir: 'tiny' in {} cannot be read: Permission denied."),
        slow("..", 2, "config.data.dir: 'tiny' in {} cannot be read: Permission denied."),
        slow(".", 2, "config.data.dir: 'tiny' in {} cannot be read: Permission denied."),
        slow(SHARD, 1, "{}/tiny/1.0.0/" + SHARD + " cannot be read as ArrayRecord: "),
    ],
)
def test_run_without_permission_ends_in_one_line(
    tmp_path: Path, name: str, code: int, message: str
) -> None:
    directory = tmp_path / "data"
    path = (small.write(directory) / name).resolve()
    mode = path.stat().st_mode
    path.chmod(0)
    done = run(directory, tmp_path / "run")
    path.chmod(mode)
    assert done.returncode == code
    assert done.stderr.startswith(f"error: {message.format(directory)}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.faults
def test_run_on_damaged_metadata_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    path = small.write(tmp_path) / FEATURES
    path.write_bytes(path.read_bytes()[:300])
    done = call("main", *options(tmp_path, tmp_path / "run"), "--num_processes=1")
    assert done.code == 2
    assert done.err.startswith(f"error: {UNREADABLE}")
    assert len(done.err.splitlines()) == 1
