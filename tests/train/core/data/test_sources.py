"""Where images come from: the digits, TFDS datasets read without TensorFlow; and their formats."""

import struct
import sys
import zlib

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.helpers.image_datasets import folders, tfds_writer
from tests.helpers.real_data import real
from train.core.config.fields import default_config
from train.core.data.animated_png import SIGNATURE, default_image
from train.core.data.on_host import partial_jpeg
from train.core.data.on_host.transform import train_transform
from train.core.data.sources import records
from train.core.data.sources.records import BadRecordError, Record, decode
from train.core.data.sources.registry import source_of
from train.core.errors import ConfigError, RunError, UnknownSplitError
from train.visualize.images import of_files


def data_config(name, directory="unused", image_size=0):
    config = default_config().data
    config.name, config.dir, config.image_size = name, str(directory), image_size
    return config


def described(config):
    """What is known of a dataset that need not be on disk."""
    source = source_of(config)
    return source.num_classes, source.image_shape


def load(config, split):
    opened = source_of(config).open_split(split)
    images, labels = opened.load()
    assert images.shape == (opened.num_examples, *opened.image_shape)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    return images, labels


def random_images(sizes, channels=3, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (*size, channels), np.uint8) for size in sizes]


def write_tiny(directory, **options):
    """Ten images of 6 × 5 pixels in seven classes, written as the dataset `tiny`."""
    images, labels = random_images([(6, 5)] * 10), np.arange(10) % 7
    return tfds_writer.write(directory, "tiny", images, labels, 7, **options), images, labels


@pytest.mark.parametrize(("split", "size"), [("train", 1438), ("test", 359)])
def test_digits_have_their_sizes(split, size):
    opened = source_of(data_config("digits")).open_split(split)
    assert (opened.name, opened.num_examples, opened.num_classes) == (split, size, 10)
    assert opened.image_shape == (8, 8, 1)
    images, labels = load(data_config("digits"), split)
    assert (images.min(), images.max()) == (0, 255)
    assert set(labels) == set(range(10))


def test_every_fifth_digit_is_a_test_image_and_all_others_train():
    digits = load_digits()
    is_test = np.arange(1797) % 5 == 4
    for split, chosen in (("train", ~is_test), ("test", is_test)):
        images, labels = load(data_config("digits"), split)
        # The 17 grey levels of the original come back from the bytes.
        np.testing.assert_array_equal(np.rint(images[..., 0] / 255 * 16), digits.images[chosen])
        np.testing.assert_array_equal(labels, digits.target[chosen])


def test_digits_shrink_to_the_means_of_their_blocks():
    images, labels = load(data_config("digits"), "test")
    small, small_labels = load(data_config("digits", image_size=4), "test")
    means = images.reshape(-1, 4, 2, 4, 2, 1).mean((2, 4))
    assert np.abs(small - means).max() <= 0.5  # half a level is rounded away
    np.testing.assert_array_equal(small_labels, labels)


@pytest.mark.parametrize("split", ["validation", "train[:50%]", ""])
def test_unknown_split_of_the_digits_names_those_that_exist(split):
    with pytest.raises(UnknownSplitError, match=r"splits train and test; got '") as error:
        source_of(data_config("digits")).open_split(split)
    assert repr(split) in str(error.value)


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_tfds_images_and_labels_come_in_their_order(tmp_path, channels, shards):
    images, labels = random_images([(6, 5)] * 7, channels), np.arange(7) % 4
    tfds_writer.write(tmp_path, "tiny", images, labels, 4, shards=shards)
    got_images, got_labels = load(data_config("tiny", tmp_path), "train")
    np.testing.assert_array_equal(got_images, images)
    np.testing.assert_array_equal(got_labels, labels)
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("workers", [1, 4])
def test_threads_read_every_image_into_its_place(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(records, "RECORDS_OF_A_TASK", 2)
    _, images, labels = write_tiny(tmp_path)
    config = data_config("tiny", tmp_path)
    config.workers = workers
    got_images, got_labels = load(config, "train")
    np.testing.assert_array_equal(got_images, images)
    np.testing.assert_array_equal(got_labels, labels)


def test_the_first_of_several_bad_records_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RECORDS_OF_A_TASK", 2)
    encoded = [tfds_writer.encode(image) for image in random_images([(6, 5)] * 10)]
    encoded[5] = encoded[8] = b"no image"
    labels = np.zeros(10, int)
    tfds_writer.write(tmp_path, "tiny", encoded, labels, 7)
    config = data_config("tiny", tmp_path, image_size=4)
    config.workers = 4
    with pytest.raises(RunError, match=r"train record 5: no whole image.*loader=streaming"):
        source_of(config).open_split("train").load()


def test_tfds_metadata_are_known_before_anything_is_read(tmp_path):
    target, *_ = write_tiny(tmp_path, shards=1)
    next(target.glob("*.array_record*")).unlink()
    split = source_of(data_config("tiny", tmp_path)).open_split("train")
    assert (split.name, split.num_examples, split.num_classes) == ("train", 10, 7)
    assert split.image_shape == (6, 5, 3)


@pytest.mark.parametrize(
    ("split", "chosen"),
    [("train[:50%]", slice(5)), ("train[50%:]", slice(5, 10)), ("train[2:9]", slice(2, 9))],
)
def test_part_of_a_split(tmp_path, split, chosen):
    _, images, labels = write_tiny(tmp_path, shards=3)
    got_images, got_labels = load(data_config("tiny", tmp_path), split)
    np.testing.assert_array_equal(got_images, images[chosen])
    np.testing.assert_array_equal(got_labels, labels[chosen])


def test_splits_are_kept_apart(tmp_path):
    write_tiny(tmp_path)
    images = random_images([(6, 5)] * 3, seed=1)
    tfds_writer.write(tmp_path, "tiny", images, [3, 2, 1], 7, split="test")
    got_images, got_labels = load(data_config("tiny", tmp_path), "test")
    np.testing.assert_array_equal(got_images, images)
    np.testing.assert_array_equal(got_labels, [3, 2, 1])
    assert len(load(data_config("tiny", tmp_path), "train")[0]) == 10


def test_images_without_a_common_size_need_one(tmp_path):
    tfds_writer.write(tmp_path, "mixed", random_images([(4, 8), (6, 6)]), [0, 1], 2)
    with pytest.raises(ConfigError, match=r"config\.data\.image_size: .* no common size"):
        source_of(data_config("mixed", tmp_path)).open_split("train")


def test_images_are_scaled_to_cover_the_size_and_cut_at_the_centre(tmp_path):
    pattern = np.arange(32, dtype=np.uint8).reshape(4, 8)
    wide = np.stack([pattern, pattern + 100, pattern + 200], -1)
    doubled = wide.repeat(2, 0).repeat(2, 1)
    images = [wide, doubled, doubled.transpose(1, 0, 2)]
    tfds_writer.write(tmp_path, "mixed", images, [0, 1, 2], 3)
    got, labels = load(data_config("mixed", tmp_path, image_size=4), "train")
    centre = wide[:, 2:6]
    np.testing.assert_array_equal(got, [centre, centre, centre.transpose(1, 0, 2)])
    np.testing.assert_array_equal(labels, [0, 1, 2])


def test_small_images_grow(tmp_path):
    grey = np.full((3, 5, 1), 77, np.uint8)
    tfds_writer.write(tmp_path, "small", [grey, grey[:, :3]], [0, 0], 2)
    images, _ = load(data_config("small", tmp_path, image_size=8), "train")
    np.testing.assert_array_equal(images, np.full((2, 8, 8, 1), 77))


@pytest.mark.parametrize("split", ["validation", "train[:5", "validation[:50%]"])
def test_unknown_split_names_those_that_exist(tmp_path, split):
    write_tiny(tmp_path)
    write_tiny(tmp_path, split="test")
    with pytest.raises(UnknownSplitError, match="it has train, test") as error:
        source_of(data_config("tiny", tmp_path)).open_split(split)
    assert f"tiny has no split {split!r}" in str(error.value)


def test_missing_dataset_says_where_it_looked_and_how_to_prepare_it(tmp_path):
    with pytest.raises(ConfigError) as error:
        source_of(data_config("tiny", tmp_path)).open_split("train")
    message = str(error.value)
    assert f"no dataset 'tiny' in {tmp_path}" in message
    assert f"tfds build tiny --file_format=array_record --data_dir={tmp_path}" in message


def test_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_tiny(tmp_path / "datasets")
    assert len(load(data_config("tiny", "~/datasets"), "train")[0]) == 10


def test_dataset_stored_as_tfrecord_says_how_to_convert_it(tmp_path):
    target, *_ = write_tiny(tmp_path)
    tfds_writer.edit_info(target, fileFormat="tfrecord")
    with pytest.raises(ConfigError, match="stored as tfrecord") as error:
        source_of(data_config("tiny", tmp_path)).open_split("train")
    command = f"tfds convert_format --dataset_dir={target.parent} --out_file_format=array_record"
    assert command in str(error.value)


def test_dataset_converted_in_place_is_read(tmp_path):
    target, images, _ = write_tiny(tmp_path)
    formats = {"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]}
    tfds_writer.edit_info(target, **formats)
    loaded, _ = source_of(data_config("tiny", tmp_path)).open_split("train").load()
    np.testing.assert_array_equal(loaded, images)


@pytest.mark.parametrize(
    "keys",
    [None, ("image", "label", "label"), ("label", "image"), ("label", "label")],
    ids=["no keys", "three keys", "no label", "no image"],
)
def test_dataset_without_images_and_labels_is_refused(tmp_path, keys):
    target, *_ = write_tiny(tmp_path)
    items = {"tuple": {"items": [{"featureKey": key} for key in keys or ()]}}
    tfds_writer.edit_info(target, supervisedKeys=items if keys else None)
    with pytest.raises(ConfigError, match=r"data\.name: tiny is no image classification") as error:
        source_of(data_config("tiny", tmp_path)).open_split("train")
    features = str(error.value).rstrip(".").partition("its features are ")[2]
    assert set(features.split(", ")) == {"image", "label"}


def test_images_of_more_than_eight_bits_are_refused(tmp_path):
    # Their values would be taken modulo 256.
    deep = np.full((2, 4, 4, 1), 300, np.uint16)
    tfds_writer.write(tmp_path, "deep", deep, [0, 1], 2)
    with pytest.raises(ConfigError, match=r"^config\.data\.name: deep"):
        source_of(data_config("deep", tmp_path)).open_split("train").load()


@pytest.mark.parametrize(("image_size", "size"), [(0, 8), (5, 5)])
def test_digits_are_described_as_they_are_opened(image_size, size):
    config = data_config("digits", image_size=image_size)
    opened = source_of(config).open_split("train")
    assert described(config) == (10, (size, size, 1))
    assert described(config) == (opened.num_classes, opened.image_shape)


def test_classes_have_their_names_where_there_are_any(tmp_path):
    assert source_of(data_config("digits")).class_names is None
    target, *_ = write_tiny(tmp_path)
    (target / "label.labels.txt").write_text("\n".join("abcdefg"))
    assert source_of(data_config("tiny", tmp_path)).class_names == list("abcdefg")


@pytest.mark.parametrize("name", ["tiny", "cifar100"])
@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_description_is_that_of_the_files_where_there_are_any(tmp_path, name, file_format):
    images = random_images([(6, 5)] * 3)
    target = tfds_writer.write(tmp_path, name, images, [0, 1, 2], 7)
    tfds_writer.edit_info(target, fileFormat=file_format)
    assert described(data_config(name, tmp_path)) == (7, (6, 5, 3))


@pytest.mark.parametrize(
    ("name", "image_size", "expected"),
    [
        ("cifar100", 0, (100, (32, 32, 3))),
        ("mnist", 20, (10, (20, 20, 1))),
        ("imagenet2012", 224, (1000, (224, 224, 3))),
        ("imagenet_resized/16x16", 0, (1000, (16, 16, 3))),
    ],
)
def test_datasets_that_are_not_on_disk_are_described(tmp_path, name, image_size, expected):
    assert described(data_config(name, tmp_path, image_size)) == expected
    assert list(tmp_path.iterdir()) == []
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("name", ["tiny", "coco", "cifar100:9.9.9", "cifar10_corrupted/none"])
def test_what_cannot_be_described_is_refused_in_one_line(tmp_path, name, capsys):
    with pytest.raises(ConfigError, match=r"^config\.data\.name: no dataset") as error:
        described(data_config(name, tmp_path))
    assert f"{name!r} in {tmp_path}" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert capsys.readouterr().out == ""


def test_description_needs_images_of_one_size_each_with_a_class(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.data\.image_size: .* no common size"):
        described(data_config("imagenet2012", tmp_path))
    with pytest.raises(ConfigError, match="imdb_reviews is no image classification dataset"):
        described(data_config("imdb_reviews", tmp_path))


@pytest.mark.parametrize(
    ("split", "of_each_class"), [pytest.param("train", 500, marks=pytest.mark.long), ("test", 100)]
)
def test_real_cifar100(split, of_each_class):
    images, labels = load(data_config("cifar100", real("cifar100").parent), split)
    assert images.shape == (100 * of_each_class, 32, 32, 3)
    assert (images.min(), images.max()) == (0, 255)
    np.testing.assert_array_equal(np.bincount(labels), [of_each_class] * 100)


# Images as people see them: turned as their metadata say, and still where they are animated.

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
