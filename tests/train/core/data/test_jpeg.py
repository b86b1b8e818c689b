"""JPEG files that end early: the same bits above, and no file that could not be ended."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers import tfds_writer
from train.core.data.on_host import partial_jpeg
from train.core.data.sources.records import Record, decode

CMYK = (Path(__file__).parents[3] / "golden" / "cmyk.jpg").read_bytes()
NOISE = np.random.default_rng(0).integers(0, 256, (101, 67, 3), np.uint8)
PICTURE = cv2.GaussianBlur(NOISE, (5, 5), 0)


def encode(*options, image=PICTURE):
    return tfds_writer.encode(image, ".jpg", *options)


def pixels(encoded, channels=3):
    return decode(Record(encoded, 0, ""), channels)


KINDS = {
    **{
        name: encode(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, getattr(cv2, f"IMWRITE_JPEG_{name}"))
        for name in (f"SAMPLING_FACTOR_{n}" for n in (411, 420, 422, 440, 444))
    },
    "optimised tables": encode(cv2.IMWRITE_JPEG_OPTIMIZE, 1),
    "low quality": encode(cv2.IMWRITE_JPEG_QUALITY, 20),
    "grey": encode(image=PICTURE[..., :1]),
    "cmyk": CMYK,
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("encoded", KINDS.values(), ids=KINDS)
def test_rows_above_keep_their_bits(encoded, channels, capfd):
    whole, header = pixels(encoded, channels), partial_jpeg.header(encoded)
    assert (header.height, header.width) == whole.shape[:2]
    for bottom in range(1, header.height + 1, 3):
        ended = partial_jpeg.end_below(encoded, header, bottom)
        image = pixels(ended, channels)
        assert bottom <= len(image) <= bottom + 2 * header.block_rows
        np.testing.assert_array_equal(image[:bottom], whole[:bottom])
    assert capfd.readouterr().err == ""


def test_all_rows_are_the_file_itself():
    encoded = encode()
    assert partial_jpeg.end_below(encoded, partial_jpeg.header(encoded), len(PICTURE)) is encoded


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\xff\xd8\xff\xd9",
        tfds_writer.encode(PICTURE),
        encode(cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        encode(cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
        encode()[:-2],
        encode()[: len(encode()) // 2],
        encode()[:150] + b"\xff\xd9",
        encode() + b"trailing bytes",
        encode().replace(b"\xff\xc0", b"\xff\xfe", 1),
        encode().replace(b"\x01\x22\x00", b"\x01\x20\x00", 1),
    ],
    ids=[
        *("empty", "nothing inside", "PNG", "progressive", "restart markers", "no end", "half"),
        *("header", "more", "no frame", "no sampling"),
    ],
)
def test_other_files_are_not_ended(encoded):
    assert partial_jpeg.header(encoded) is None


def test_scan_of_one_channel_of_three_is_not_ended():
    encoded = bytearray(encode())
    encoded[encoded.index(b"\xff\xda") + 4] = 1
    assert partial_jpeg.header(bytes(encoded)) is None
