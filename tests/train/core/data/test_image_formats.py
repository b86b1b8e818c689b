"""Images as people see them: turned as their metadata say, and still where they are animated."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from tests.helpers.image_datasets import folders, tfds_writer
from train.core.data.animated_png import SIGNATURE, default_image
from train.core.data.on_host import partial_jpeg
from train.core.data.on_host.transform import train_transform
from train.core.data.sources.records import BadRecordError, Record, decode
from train.visualize.images import of_files

# Smooth, so that JPEG hardly changes it.
PIXELS = cv2.resize(folders.image(size=(3, 4)), (64, 48))
JPEG = tfds_writer.encode(PIXELS, ".jpg")
# Metadata of another kind, which begin with the same marker.
XMP = b"\xff\xe1" + struct.pack(">H", 40) + b"http://ns.adobe.com/xap/1.0/\0".ljust(38)


def upright(encoded, channels=3):
    return decode(Record(encoded, 0, "", upright=True), channels)


def chunk(name, content):
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def png_with(png, *chunks):
    """A PNG file with chunks after its first."""
    end = len(SIGNATURE) + 25
    return png[:end] + b"".join(chunks) + png[end:]


@pytest.mark.parametrize("orientation", folders.TURNS)
@pytest.mark.parametrize("order", ["<", ">"])
def test_jpeg_is_turned_in_a_folder_and_as_it_is_stored_elsewhere(orientation, order):
    encoded = folders.with_exif(JPEG, folders.exif(orientation, order, entries_before=2), XMP)
    stored = decode(Record(JPEG, 0, ""), 3)
    np.testing.assert_array_equal(decode(Record(encoded, 0, ""), 3), stored)
    np.testing.assert_array_equal(upright(encoded), folders.TURNS[orientation](stored))
    np.testing.assert_array_equal(
        upright(encoded, 1), folders.TURNS[orientation](decode(Record(JPEG, 0, ""), 1))
    )


@pytest.mark.parametrize("orientation", folders.TURNS)
def test_png_webp_and_tiff_are_turned(orientation):
    png = png_with(tfds_writer.encode(PIXELS), chunk(b"eXIf", folders.exif(orientation)))
    np.testing.assert_array_equal(upright(png), folders.TURNS[orientation](PIXELS))
    # OpenCV knows no way to leave a TIFF file as it is stored.
    for pixels in (upright(tiff(orientation)), decode(Record(tiff(orientation), 0, ""), 3)):
        np.testing.assert_array_equal(pixels, folders.TURNS[orientation](PIXELS))
    np.testing.assert_array_equal(upright(webp(orientation)), folders.TURNS[orientation](PIXELS))


def tiff(orientation):
    height, width, _ = PIXELS.shape
    # Tag, type (2 and 4 bytes) and value of every entry; the pixels follow the directory.
    entries = [(256, 3, width), (257, 3, height), (258, 3, 8), (259, 3, 1), (262, 3, 2)]
    entries += [(273, 4, 0), (274, 3, orientation), (277, 3, 3), (278, 3, height)]
    entries += [(279, 4, PIXELS.size)]
    place = 8 + 2 + 12 * len(entries) + 4
    directory = struct.pack("<H", len(entries))
    for tag, kind, value in entries:
        directory += struct.pack("<HHII", tag, kind, 1, place if tag == 273 else value)
    return b"II" + struct.pack("<HI", 42, 8) + directory + bytes(4) + PIXELS.tobytes()


def webp(orientation):
    lossless = tfds_writer.encode(PIXELS, ".webp", cv2.IMWRITE_WEBP_QUALITY, 101)
    height, width, _ = PIXELS.shape
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    metadata = folders.exif(orientation)
    extended = b"VP8X" + struct.pack("<I", 10) + bytes([8, 0, 0, 0]) + size
    extended += lossless[12:] + b"EXIF" + struct.pack("<I", len(metadata)) + metadata
    return b"RIFF" + struct.pack("<I", 4 + len(extended)) + b"WEBP" + extended


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_crops_of_training_are_drawn_in_what_people_see(tmp_path, orientation):
    encoded = folders.with_exif(JPEG, folders.exif(orientation))
    seen = tfds_writer.encode(upright(encoded))
    config = folders.config(tmp_path, **{"data.crop": "resized", "data.loader": "streaming"})
    for step in range(5):
        transform = train_transform(config, (8, 8, 3), step)
        for row in range(4):
            cropped, expected = (
                transform.apply(Record(file, 0, "", upright=True), row) for file in (encoded, seen)
            )
            np.testing.assert_array_equal(cropped, expected)


def test_what_is_not_turned_is_still_decoded_in_part():
    for orientation, is_turned in ((1, False), (6, True), (9, True)):
        header = partial_jpeg.header(folders.with_exif(JPEG, folders.exif(orientation), XMP))
        assert header.is_turned is is_turned
    assert not partial_jpeg.header(JPEG).is_turned


@pytest.mark.parametrize("length", range(34))
def test_metadata_that_are_cut_short_turn_nothing(length):
    encoded = folders.with_exif(JPEG, folders.exif(6)[:length])
    stored = decode(Record(JPEG, 0, ""), 3)
    is_turned = partial_jpeg.header(encoded).is_turned
    # What OpenCV turns must never be taken for what it does not.
    assert upright(encoded).shape == stored.shape or is_turned


def test_files_to_look_at_are_upright(tmp_path):
    file = tmp_path / "phone.jpg"
    file.write_bytes(folders.with_exif(JPEG, folders.exif(6)))
    config = folders.config(tmp_path, **{"data.crop": "pad"})
    [image] = of_files([str(file)], config.data, (64, 48, 3))
    np.testing.assert_array_equal(image.pixels, upright(file.read_bytes()))


def animated(default, frame, count=1):
    """An animated PNG whose two frames are not its default image, said so many times."""
    height, width, _ = default.shape
    frames, png = b"", tfds_writer.encode(default)
    data = b"".join(
        content for name, content in chunks(tfds_writer.encode(frame)) if name == b"IDAT"
    )
    for place in (0, 2):
        control = struct.pack(">IIIIIHHBB", place, width, height, 0, 0, 1, 10, 0, 0)
        frames += chunk(b"fcTL", control) + chunk(b"fdAT", struct.pack(">I", place + 1) + data)
    animation = chunk(b"tEXt", b"acTL\0IDAT"), chunk(b"acTL", struct.pack(">II", 2, 0))
    return png_with(png[:-12] + frames + png[-12:], *animation * count)


def chunks(png):
    place = len(SIGNATURE)
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        yield png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        place += 12 + length


@pytest.mark.parametrize("is_upright", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_animated_png_gives_its_default_image(is_upright, count):
    default, frame = folders.image(0), folders.image(1)
    encoded = animated(default, frame, count)
    # The files here are animations: without more ado the frame comes.
    as_frame = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(as_frame, frame)
    record = Record(encoded, 0, "", is_upright)
    np.testing.assert_array_equal(decode(record, 3), default)


def test_other_files_stay_as_they_are():
    for file in (JPEG, tfds_writer.encode(PIXELS), SIGNATURE, SIGNATURE + b"\xff" * 40, b""):
        assert default_image(file) == file


def test_an_animation_that_is_cut_short_is_bad_or_its_default_image():
    default, frame = folders.image(0), folders.image(1)
    encoded = animated(default, frame)
    for length in range(len(encoded)):
        try:
            image = decode(Record(encoded[:length], 0, ""), 3)
        except BadRecordError:
            continue
        np.testing.assert_array_equal(image, default)
