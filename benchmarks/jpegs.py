"""Writes a dataset of JPEGs in every form that is compared: synthetic ones, or photographs.

python -m benchmarks.jpegs --dir DIR [--count 2000] [--photographs FOLDER]

Synthetic images have the size (500×375 or 375×500), the bytes (110 kB on average) and the spectrum
(amplitude ~ 1 / frequency) of ImageNet's, and edges; photographs are the files `*.jpg` below
FOLDER, over and over. The dataset is called imagenet2012, so that configs/imagenet_resnet50.py
reads it; both of its splits hold the same images. DIR/folder/train/<class> holds the same files.
If TensorFlow is installed, TFRecord files with the same records lie beside the ArrayRecord files.
"""

import argparse
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

SHARDS = 4
QUALITY = 94
CLASSES = 1000
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
    image = np.clip(channels + generator.integers(90, 160), 0, 255).astype(np.uint8)
    for _ in range(generator.integers(2, 6)):
        layer = image.copy()
        middle = int(generator.integers(width)), int(generator.integers(height))
        axes = tuple(int(n) for n in generator.integers(10, 120, 2))
        fill = generator.integers(0, 256, 3).tolist()
        cv2.ellipse(layer, middle, axes, generator.uniform(0, 180), 0, 360, fill, -1, cv2.LINE_AA)
        image = cv2.addWeighted(layer, 0.5, image, 0.5, 0)
    return image


def synthetic(index: int) -> bytes:
    """The file of a synthetic image."""
    image = picture(np.random.default_rng(index))
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def example(encoded: bytes, index: int) -> bytes:
    """The serialised example of an image file, as imagenet2012 has it."""
    record = tf_example_pb2.Example()
    features = record.features.feature
    features["image"].bytes_list.value.append(encoded)
    features["file_name"].bytes_list.value.append(f"{index}.jpg".encode())
    features["label"].int64_list.value.append(index % CLASSES)
    return record.SerializeToString()


def write_file(directory: Path, encoded: bytes, index: int) -> None:
    """Writes an image file into the folder of its class."""
    path = directory / f"folder/train/{index % CLASSES:04}/{index}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded)


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

        with tf.io.TFRecordWriter(str(path).replace("array_record", "tfrecord")) as twin:
            for content in records:
                twin.write(content)


def main() -> None:
    """Writes the dataset."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--photographs", type=Path)
    options = parser.parse_args()
    files = sorted(options.photographs.rglob("*.jpg")) if options.photographs else []
    directory = options.dir / "imagenet2012" / "1.0.0"
    directory.mkdir(parents=True, exist_ok=True)
    bounds = [options.count * i // SHARDS for i in range(SHARDS + 1)]
    for i in range(SHARDS):
        name = f"imagenet2012-train.array_record-{i:05}-of-{SHARDS:05}"
        numbers = range(bounds[i], bounds[i + 1])
        images = [files[n % len(files)].read_bytes() if files else synthetic(n) for n in numbers]
        write_shard(
            directory / name, [example(*image) for image in zip(images, numbers, strict=True)]
        )
        for image, number in zip(images, numbers, strict=True):
            write_file(options.dir, image, number)
        validation = directory / name.replace("train", "validation")
        validation.unlink(missing_ok=True)
        validation.symlink_to(name)
    write_metadata(directory, np.diff(bounds).tolist())


if __name__ == "__main__":
    main()
