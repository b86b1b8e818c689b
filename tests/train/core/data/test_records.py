"""Records: what is read, what becomes of odd images, and which ones are bad."""

import dataclasses
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.damage import Child, Damage, assert_says, damaged, damages
from tests.helpers.image_datasets import small, tfds_writer
from tests.helpers.image_datasets.small import (
    COUNT,
    FILES,
    IMAGES,
    LABELS,
    SHAPE,
    SHARD,
    SHARD_BYTES,
    config_of,
)
from train.core.config.fields import default_config
from train.core.data.crop import center
from train.core.data.on_host.batches import BatchMaker
from train.core.data.sources.records import BadRecord, BadRecordError, BadRecords, Record, decode
from train.core.data.sources.registry import source_of
from train.core.data.sources.tf_examples import TfExamples
from train.core.errors import RunError

CMYK = Path(__file__).parents[3] / "golden" / "cmyk.jpg"
GRADIENT = np.stack(np.meshgrid(np.arange(0, 240, 5), np.arange(0, 200, 5)), -1)
PICTURE = np.concatenate([GRADIENT, GRADIENT.sum(-1, keepdims=True) // 2], -1).astype(np.uint8)


def record(encoded):
    return Record(encoded, 0, "a.JPEG")


def open_records(directory, images, **options):
    labels = np.arange(len(images)) % 3
    tfds_writer.write(directory, "tiny", images, labels, 3, **options)
    data = {"name": "tiny", "dir": str(directory), "image_size": 4}
    config = dataclasses.replace(default_config().data, **data)
    return source_of(config).open_split("train").open_records()


def test_records_are_found_by_index_over_all_shards(tmp_path):
    files = [tfds_writer.encode(np.full((4, 4, 3), 10 * i, np.uint8)) for i in range(11)]
    names = [f"{i}.png" for i in range(11)]
    opened = open_records(tmp_path, files, shards=3, file_names=names)
    assert len(opened) == 11
    for i in (10, 0, 3, 4, 7):
        assert opened[i] == Record(files[i], i % 3, f"{i}.png", upright=False)


def test_dataset_without_file_names(tmp_path):
    opened = open_records(tmp_path, [PICTURE])
    assert opened[0].file_name == ""


def test_empty_records_are_bad(tmp_path):
    opened = open_records(tmp_path, [None, b""], shards=1, file_names=["a", "b"])
    with pytest.raises(BadRecordError, match="no image or no label") as error:
        opened[0]
    assert error.value.file_name == ""
    with pytest.raises(BadRecordError, match="no whole image") as error:
        decode(opened[1], 3)
    assert error.value.file_name == "b"


def test_damaged_bytes_make_one_record_bad(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (8, 30, 30, 3), np.uint8)
    opened = open_records(tmp_path, list(noise), shards=1)
    (shard,) = tmp_path.rglob("*array_record*")
    content = bytearray(shard.read_bytes())
    content[8000] ^= 255  # of about 2700 bytes an image
    shard.write_bytes(content)
    bad = []
    for i in range(8):
        try:
            np.testing.assert_array_equal(decode(opened[i], 3), noise[i])
        except BadRecordError as error:
            bad.append(str(error))
    assert len(bad) == 1
    assert "hash mismatch" in bad[0]
    assert "\n" not in bad[0]


def test_bytes_that_are_no_example_are_bad():
    with pytest.raises(BadRecordError):
        TfExamples([b"no example"], "image", "label", 10)[0]


@pytest.mark.parametrize("extension", [".png", ".jpg"])
def test_decoded_images_are_rgb(extension):
    image = decode(record(tfds_writer.encode(PICTURE, extension)), 3)
    assert (image.dtype, image.shape) == (np.uint8, PICTURE.shape)
    assert np.abs(image.astype(int) - PICTURE).mean() < (0.1 if extension == ".png" else 3)


@pytest.mark.parametrize("extension", [".png", ".jpg"])
def test_grey_images_become_rgb_and_colours_grey(extension):
    grey = PICTURE[..., :1]
    image = decode(record(tfds_writer.encode(grey, extension)), 3)
    assert image.shape == PICTURE.shape
    assert np.abs(image.astype(int) - grey).max() <= 3
    assert decode(record(tfds_writer.encode(PICTURE, extension)), 1).shape == grey.shape


def test_cmyk_becomes_rgb():
    """Four patches: cyan, magenta, yellow and black ink, the values inverted as Adobe does."""
    image = decode(record(CMYK.read_bytes()), 3).astype(int)
    patches = image[[8, 8, 24, 24], [8, 24, 8, 24]]
    wanted = [(0, 255, 255), (255, 0, 255), (255, 255, 0), (0, 0, 0)]
    assert np.abs(patches - wanted).max() <= 4


def test_sixteen_bits_and_transparency_are_dropped():
    deep = PICTURE.astype(np.uint16) * 257
    np.testing.assert_array_equal(decode(record(tfds_writer.encode(deep)), 3), PICTURE)
    opaque = cv2.cvtColor(PICTURE, cv2.COLOR_RGB2BGRA)
    encoded = cv2.imencode(".png", opaque)[1].tobytes()
    np.testing.assert_array_equal(decode(record(encoded), 3), PICTURE)


@pytest.mark.parametrize("extension", [".png", ".jpg"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.95, -2])
def test_truncated_images_are_bad(extension, kept):
    encoded = tfds_writer.encode(PICTURE, extension)
    end = kept if kept < 0 else int(len(encoded) * kept)
    with pytest.raises(BadRecordError) as error:
        decode(record(encoded[:end]), 3)
    assert error.value.file_name == "a.JPEG"


def test_progressive_images_are_decoded_and_truncated_ones_bad():
    encoded = tfds_writer.encode(PICTURE, ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    assert decode(record(encoded), 3).shape == PICTURE.shape
    with pytest.raises(BadRecordError):
        decode(record(encoded[: len(encoded) // 2]), 3)


def test_text_is_no_image():
    with pytest.raises(BadRecordError, match="no whole image of a known format in its 13 bytes"):
        decode(record(b"<html></html>"), 3)


# What is damaged is named in one line, or the right images are read.


@contextmanager
def overwritten(path: Path, content: bytes) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a dataset's version."""
    return small.write(tmp_path_factory.mktemp("sound"))


def encoded_as(extension: str) -> bytes:
    return tfds_writer.encode(IMAGES[0], extension)


@pytest.mark.faults
def test_what_is_sound_is_read(child: Child, sound: Path) -> None:
    # The control of the tests below.
    assert (sound / SHARD).stat().st_size == SHARD_BYTES
    np.testing.assert_array_equal(child.run(small.read_all, sound.parents[1]), IMAGES)
    for extension in (".png", ".jpg"):
        found = child.run(small.transformed, encoded_as(extension))
        assert [image.shape for image in found] == [SHAPE, SHAPE]


# Files.


@pytest.mark.faults
@given(length=st.integers(0, SHARD_BYTES - 1))
def test_file_cut_short_is_named(child: Child, sound: Path, length: int) -> None:
    data = (sound / SHARD).read_bytes()
    with overwritten(sound / SHARD, data[:length]), pytest.raises(RunError) as error:
        child.run(small.read_all, sound.parents[1])
    assert_says(error.value, sound / SHARD)


@pytest.mark.faults
@given(damage=damages(SHARD_BYTES))
def test_damaged_file_is_named_or_its_sound_records_are_read(
    child: Child, sound: Path, damage: Damage
) -> None:
    with overwritten(sound / SHARD, damaged((sound / SHARD).read_bytes(), damage)):
        try:
            found = child.run(small.read_all, sound.parents[1])
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


@pytest.mark.faults
@pytest.mark.parametrize("extension", [".png", ".jpg"])
@given(data=st.data())
def test_image_cut_short_is_bad(child: Child, extension: str, data: st.DataObject) -> None:
    whole = encoded_as(extension)
    length = data.draw(st.integers(0, len(whole) - 1))
    found = child.run(small.transformed, whole[:length])
    assert found == [f"no whole image of a known format in its {length} bytes"] * 2


@pytest.mark.faults
@pytest.mark.parametrize("extension", [".png", ".jpg"])
@given(data=st.data())
def test_damaged_image_is_bad_or_an_image(
    child: Child, extension: str, data: st.DataObject
) -> None:
    whole = encoded_as(extension)
    # The header is what the crops are computed from.
    damage = data.draw(damages(len(whole)) | damages(700))
    for image in child.run(small.transformed, damaged(whole, damage)):
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
    small.write(directory, files, labels)


@pytest.mark.faults
@given(bad=bad_records, order=st.permutations(range(COUNT)))
def test_streaming_puts_the_next_record_in_the_place_of_a_bad_one(
    scratch: Path, bad: dict[int, str], order: list[int]
) -> None:
    write_with(scratch, bad)
    config = config_of(scratch, **{"data.loader": "streaming"})
    split = source_of(config.data).open_split("train")
    with BatchMaker(split, config, np.arange(COUNT)) as maker:
        batch, evaluated = maker.train_batch(0, np.array(order)), maker.eval_batch(0)

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


@pytest.mark.faults
@given(bad=bad_records)
def test_resident_names_the_first_bad_record(scratch: Path, bad: dict[int, str]) -> None:
    write_with(scratch, bad)
    config = config_of(scratch)
    with pytest.raises(RunError) as error:
        source_of(config.data).open_split("train").load()
    assert_says(error.value, f"train record {min(bad)}: ")


batches = st.lists(
    st.tuples(st.integers(0, 50), st.lists(st.integers(0, 30), max_size=15)), max_size=8
)


@pytest.mark.faults
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


@pytest.mark.faults
@pytest.mark.parametrize(("height", "width"), [(1, 3000), (3000, 1)])
def test_a_long_image_takes_little_memory(height: int, width: int) -> None:
    ramp = np.linspace(0, 255, 3000).astype(np.uint8).reshape(height, width, 1)
    tracemalloc.start()
    image = center(ramp, (64, 64, 1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Scaled as a whole it takes 12 MB.
    assert peak < 1e6
    assert image.shape == (64, 64, 1)
    # The crop is one pixel of the original, right in the middle.
    assert np.abs(image - 127.5).max() <= 1
