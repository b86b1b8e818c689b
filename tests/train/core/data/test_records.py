"""Records: what is read, what becomes of odd images, and which ones are bad."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers import tfds_writer
from train.core.config.fields import default_config
from train.core.data.sources import registry
from train.core.data.sources.records import BadRecordError, Record, decode

CMYK = Path(__file__).parents[3] / "golden" / "cmyk.jpg"
GRADIENT = np.stack(np.meshgrid(np.arange(0, 240, 5), np.arange(0, 200, 5)), -1)
PICTURE = np.concatenate([GRADIENT, GRADIENT.sum(-1, keepdims=True) // 2], -1).astype(np.uint8)


def record(encoded):
    return Record(encoded, 0, "a.JPEG")


def open_records(directory, images, **options):
    labels = np.arange(len(images)) % 3
    tfds_writer.write(directory, "tiny", images, labels, 3, **options)
    config = default_config().data
    config.update(name="tiny", dir=str(directory), image_size=4)
    return registry.open_split(config, "train").open_records()


def test_records_are_found_by_index_over_all_shards(tmp_path):
    files = [tfds_writer.encode(np.full((4, 4, 3), 10 * i, np.uint8)) for i in range(11)]
    names = [f"{i}.png" for i in range(11)]
    opened = open_records(tmp_path, files, shards=3, file_names=names)
    assert len(opened) == 11
    for i in (10, 0, 3, 4, 7):
        assert opened[i] == (files[i], i % 3, f"{i}.png")


def test_dataset_without_file_names(tmp_path):
    opened = open_records(tmp_path, [PICTURE])
    assert opened[0].file_name == ""


def test_empty_records_are_bad(tmp_path):
    opened = open_records(tmp_path, [None, b""], shards=1, file_names=["a", "b"])
    with pytest.raises(BadRecordError, match="no image or no label") as error:
        opened[0]
    assert error.value.file_name == ""
    with pytest.raises(BadRecordError, match="no whole JPEG or PNG") as error:
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
        registry.Records([b"no example"], "image", "label", 10)[0]


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
    with pytest.raises(BadRecordError, match="no whole JPEG or PNG image in its 13 bytes"):
        decode(record(b"<html></html>"), 3)
