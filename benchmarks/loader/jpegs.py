"""Writes a dataset of JPEGs in every form that is compared: synthetic ones, or photographs.

Synthetic images have the size (500×375 or 375×500), the bytes (110 kB on
average) and the spectrum (amplitude ~ 1 / frequency) of ImageNet's, and edges;
photographs are the JPEG files below a folder, over and over. The dataset is
called imagenet2012, so that configs/imagenet_resnet50.py reads it; both of its
splits hold the same images. DIR/folder/train/<class> holds the same files. If
TensorFlow is installed, TFRecord files with the same records lie beside the
ArrayRecord files.

Example:
  python -m benchmarks.loader.jpegs --dir DIR --photographs FOLDER --count 3000

Exit codes: 0 done, 1 failed, 2 the command line is wrong.
"""

import importlib.util
import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from train.core import command_line
from train.core.command_line.values import not_empty, whole_number
from train.core.devices.busy import busy
from train.core.errors import ConfigError

SHARDS = 4
QUALITY = 94
CLASSES = 1000
ENDINGS = (".jpg", ".jpeg")
FEATURES = "tensorflow_datasets.core.features"


def noise(generator: np.random.Generator, height: int, width: int, exponent: float) -> np.ndarray:
    """Noise whose amplitude falls with the frequency, of standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1
    spectrum = generator.normal(size=(2, *frequency.shape)) / frequency**exponent
    field = np.fft.irfft2(spectrum[0] + 1j * spectrum[1], (height, width))
    return (field - field.mean()) / field.std()


def picture(generator: np.random.Generator) -> np.ndarray:
    """A random image with the spectrum of a photograph, and some ellipses for edges."""
    height, width = (375, 500) if generator.random() < 0.7 else (500, 375)
    light = 45 * noise(generator, height, width, generator.uniform(1.0, 1.3))
    warm, cold = (9 * noise(generator, height, width, 1.6) for _ in range(2))
    channels = np.stack([light + 2 * warm, light - warm + cold, light - 2 * cold], -1)
    image: np.ndarray = np.clip(channels + generator.integers(90, 160), 0, 255).astype(np.uint8)
    for _ in range(generator.integers(2, 6)):
        layer = image.copy()
        middle = int(generator.integers(width)), int(generator.integers(height))
        axes = tuple(int(n) for n in generator.integers(10, 120, 2))
        fill = generator.integers(0, 256, 3).tolist()
        cv2.ellipse(layer, middle, axes, generator.uniform(0, 180), 0, 360, fill, -1, cv2.LINE_AA)
        image = cv2.addWeighted(layer, 0.5, image, 0.5, 0)
    return image


def encoded(image: np.ndarray) -> bytes:
    """The JPEG file of an image."""
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def synthetic(index: int) -> bytes:
    """The file of a synthetic image."""
    return encoded(picture(np.random.default_rng(index)))


def example(file: bytes, index: int) -> bytes:
    """The serialised example of an image file, as imagenet2012 has it."""
    record = tf_example_pb2.Example()
    features = record.features.feature
    features["image"].bytes_list.value.append(file)
    features["file_name"].bytes_list.value.append(f"{index}.jpg".encode())
    features["label"].int64_list.value.append(index % CLASSES)
    return record.SerializeToString()


def write_file(directory: Path, file: bytes, index: int) -> None:
    """Writes an image file into the folder of its class."""
    path = directory / f"folder/train/{index % CLASSES:04}/{index}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file)


def write_metadata(directory: Path, lengths: Sequence[int]) -> None:
    """Writes what TFDS wants to know of a dataset."""
    splits = [
        {
            "name": name,
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            "numBytes": "0",
            "shardLengths": [str(length) for length in lengths],
        }
        for name in ("train", "validation")
    ]
    keys = [{"featureKey": key} for key in ("image", "label")]
    info = {
        "name": "imagenet2012",
        "version": "1.0.0",
        "fileFormat": "array_record",
        "splits": splits,
        "supervisedKeys": {"tuple": {"items": keys}},
    }
    image = {"dtype": "uint8", "encodingFormat": "jpeg", "shape": {"dimensions": ["-1", "-1", "3"]}}
    features = {
        "image": {"pythonClassName": f"{FEATURES}.image_feature.Image", "image": image},
        "label": {
            "pythonClassName": f"{FEATURES}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(CLASSES)},
        },
        "file_name": {"pythonClassName": f"{FEATURES}.text_feature.Text", "text": {}},
    }
    whole = {
        "pythonClassName": f"{FEATURES}.features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }
    (directory / "dataset_info.json").write_text(json.dumps(info))
    (directory / "features.json").write_text(json.dumps(whole))


def write_shard(path: Path, records: Sequence[bytes]) -> None:
    """Writes an ArrayRecord file, and its twin for TensorFlow."""
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for content in records:
        writer.write(content)
    writer.close()
    if importlib.util.find_spec("tensorflow"):
        import tensorflow as tf

        twin_path = path.with_name(path.name.replace("array_record", "tfrecord"))
        with tf.io.TFRecordWriter(str(twin_path)) as twin:
            for content in records:
                twin.write(content)


def photographs_in(folder: str) -> list[Path]:
    """The JPEG files below a folder.

    Raises:
      ConfigError: there are none.
    """
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in ENDINGS)
    if not paths:
        raise ConfigError(
            f"--photographs: got {folder!r}, which holds no file {' or '.join(ENDINGS)}; name a "
            "folder with some, or leave it out for synthetic images."
        )
    return paths


def write(directory: Path, count: int, photographs: Sequence[Path]) -> None:
    """Writes the dataset.

    Args:
      directory: An empty or new directory.
      count: Number of images.
      photographs: Files that are taken over and over; without any the images are synthetic.
    """
    target = directory / "imagenet2012" / "1.0.0"
    target.mkdir(parents=True)
    bounds = [count * i // SHARDS for i in range(SHARDS + 1)]
    with busy("writing", count, "images") as work:
        for i in range(SHARDS):
            name = f"imagenet2012-train.array_record-{i:05}-of-{SHARDS:05}"
            records = []
            for number in range(bounds[i], bounds[i + 1]):
                source = photographs[number % len(photographs)] if photographs else None
                file = source.read_bytes() if source else synthetic(number)
                records.append(example(file, number))
                write_file(directory, file, number)
                work.advance()
            write_shard(target / name, records)
            (target / name.replace("train", "validation")).symlink_to(name)
    write_metadata(target, np.diff(bounds).tolist())


def parser() -> command_line.Parser:
    """The command line."""
    parser = command_line.Parser(
        __doc__, "python -m benchmarks.loader.jpegs --dir DIR [OPTION ...]"
    )
    add = parser.add_argument
    add("--dir", metavar="DIR", type=not_empty, required=True, help="a new directory for all of it")
    add(
        "--count",
        metavar="N",
        type=whole_number(SHARDS, 10_000_000),
        default=2000,
        help="images; default: 2000",
    )
    add(
        "--photographs",
        metavar="FOLDER",
        type=not_empty,
        help=f"files {', '.join(ENDINGS)} in place of synthetic images",
    )
    return parser


def main(options: Namespace) -> None:
    """Writes the dataset.

    Raises:
      ConfigError: the directory holds something, or there are no photographs.
    """
    directory = Path(options.dir)
    # Files of an earlier and larger dataset would stay among the new ones.
    if directory.is_dir() and any(directory.iterdir()):
        raise ConfigError(f"--dir: got {options.dir!r}, which holds files; name a new directory.")
    photographs = photographs_in(options.photographs) if options.photographs else []
    write(directory, options.count, photographs)


if __name__ == "__main__":
    command_line.run(main, parser())
