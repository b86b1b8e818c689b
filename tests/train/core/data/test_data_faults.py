"""Damaged files and records of a dataset: named in one line, or the right images."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import datasets, tfds_writer
from tests.helpers.damage import Child, Damage, assert_says, damaged, damages
from tests.helpers.datasets import (
    COUNT,
    FILES,
    IMAGES,
    LABELS,
    SHAPE,
    SHARD,
    SHARD_BYTES,
    config_of,
)
from train.core.data import streaming
from train.core.data.on_host import crop
from train.core.data.sources import registry
from train.core.data.sources.records import BadRecord, BadRecords
from train.core.errors import RunError


@contextmanager
def replaced(path: Path, content: bytes) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    process = Child()
    yield process
    process.pool.shutdown()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a dataset's version."""
    return datasets.write(tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def encoded(extension: str) -> bytes:
    return tfds_writer.encode(IMAGES[0], extension)


def test_what_is_sound_is_read(child: Child, sound: Path) -> None:
    # The control of the tests below.
    assert (sound / SHARD).stat().st_size == SHARD_BYTES
    np.testing.assert_array_equal(child.run(datasets.read_all, sound.parents[1]), IMAGES)
    for extension in (".png", ".jpg"):
        found = child.run(datasets.transformed, encoded(extension))
        assert [image.shape for image in found] == [SHAPE, SHAPE]


# Files.


@given(length=st.integers(0, SHARD_BYTES - 1))
def test_file_cut_short_is_named(child: Child, sound: Path, length: int) -> None:
    data = (sound / SHARD).read_bytes()
    with replaced(sound / SHARD, data[:length]), pytest.raises(RunError) as error:
        child.run(datasets.read_all, sound.parents[1])
    assert_says(error.value, sound / SHARD)


@given(damage=damages(SHARD_BYTES))
def test_damaged_file_is_named_or_its_sound_records_are_read(
    child: Child, sound: Path, damage: Damage
) -> None:
    with replaced(sound / SHARD, damaged((sound / SHARD).read_bytes(), damage)):
        try:
            found = child.run(datasets.read_all, sound.parents[1])
        except RunError as error:
            assert_says(error, sound / SHARD)
            return
    for index, image in enumerate(found):
        if isinstance(image, str):
            assert index >= COUNT // 2
            assert image.isprintable()
        else:
            np.testing.assert_array_equal(image, IMAGES[index])


# Records.


@pytest.mark.parametrize("extension", [".png", ".jpg"])
@given(data=st.data())
def test_image_cut_short_is_bad(child: Child, extension: str, data: st.DataObject) -> None:
    whole = encoded(extension)
    length = data.draw(st.integers(0, len(whole) - 1))
    found = child.run(datasets.transformed, whole[:length])
    assert found == [f"no whole JPEG or PNG image in its {length} bytes"] * 2


@pytest.mark.parametrize("extension", [".png", ".jpg"])
@given(data=st.data())
def test_damaged_image_is_bad_or_an_image(
    child: Child, extension: str, data: st.DataObject
) -> None:
    whole = encoded(extension)
    # The header is what the crops are computed from.
    damage = data.draw(damages(len(whole)) | damages(700))
    for image in child.run(datasets.transformed, damaged(whole, damage)):
        assert isinstance(image, str) or image.shape == SHAPE


# What a record has instead of its own file and label.
BAD = {
    "cut short": (FILES[0][:-20], 0),
    "text": (b"<html></html>", 0),
    "empty image": (b"", 0),
    "empty record": (None, 0),
    "label too large": (FILES[0], 7),
    "negative label": (FILES[0], -1),
    "label of more than 32 bits": (FILES[0], 2**32),
}
bad_records = st.dictionaries(
    st.integers(0, COUNT - 1), st.sampled_from(list(BAD)), min_size=1, max_size=COUNT - 1
)


def write_with(directory: Path, bad: dict[int, str]) -> None:
    files, labels = list(FILES), LABELS.tolist()
    for index, kind in bad.items():
        files[index], labels[index] = BAD[kind]
    datasets.write(directory, files, labels)


@given(bad=bad_records, order=st.permutations(range(COUNT)))
def test_streaming_puts_the_next_record_in_the_place_of_a_bad_one(
    scratch: Path, bad: dict[int, str], order: list[int]
) -> None:
    write_with(scratch, bad)
    config = config_of(scratch, **{"data.loader": "streaming"})
    split = registry.open_split(config.data, "train")
    with streaming.Loader(split, config, np.arange(COUNT)) as loader:
        batch, evaluated = loader.train_batch(0, np.array(order)), loader.eval_batch(0)

    def next_good(index: int) -> int:
        return next(i % COUNT for i in range(index, index + COUNT) if i % COUNT not in bad)

    used = [next_good(index) for index in order]
    np.testing.assert_array_equal(batch.images, IMAGES[used])
    np.testing.assert_array_equal(batch.labels, LABELS[used])
    assert {record.index for record in batch.bad} == bad.keys()
    assert batch.seen == COUNT + batch.bad_records.sum() == COUNT + len(batch.bad)
    good = np.setdiff1d(np.arange(COUNT), list(bad))
    np.testing.assert_array_equal(np.flatnonzero(evaluated.mask), good)
    np.testing.assert_array_equal(evaluated.images[good], IMAGES[good])
    assert [record.index for record in evaluated.bad] == sorted(bad)


@given(bad=bad_records)
def test_resident_names_the_first_bad_record(scratch: Path, bad: dict[int, str]) -> None:
    write_with(scratch, bad)
    config = config_of(scratch)
    with pytest.raises(RunError) as error:
        registry.open_split(config.data, "train").load()
    assert_says(error.value, f"train record {min(bad)}: ")


batches = st.lists(
    st.tuples(st.integers(0, 50), st.lists(st.integers(0, 30), max_size=15)), max_size=8
)


@given(fraction=st.sampled_from([0.0, 0.001, 0.1, 0.3, 0.9]), batches=batches)
def test_a_run_ends_at_ten_bad_records_and_a_larger_share_than_allowed(
    fraction: float, batches: list[tuple[int, list[int]]]
) -> None:
    counted, seen, bad = BadRecords(fraction), 0, []
    for good, indices in batches:
        seen, bad = seen + good + len(indices), bad + indices
        met = [BadRecord("train", index, "", "empty") for index in indices]
        if len(set(bad)) >= 10 and len(bad) > fraction * seen:
            with pytest.raises(RunError) as error:
                counted.add(good + len(indices), met)
            assert_says(error.value, f"config.data.max_bad_fraction = {fraction:g}")
            return
        counted.add(good + len(indices), met)


@pytest.mark.parametrize(("height", "width"), [(1, 3000), (3000, 1)])
def test_a_long_image_takes_little_memory(height: int, width: int) -> None:
    ramp = np.linspace(0, 255, 3000).astype(np.uint8).reshape(height, width, 1)
    tracemalloc.start()
    image = crop.center(ramp, (64, 64, 1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Scaled as a whole it takes 12 MB.
    assert peak < 1e6
    assert image.shape == (64, 64, 1)
    # The crop is one pixel of the original, right in the middle.
    assert np.abs(image - 127.5).max() <= 1
