"""Writes small image classification datasets as TFDS would, without TensorFlow.

Layout: `<directory>/<name>/1.0.0/` with `dataset_info.json`, `features.json` and the shards
`<name>-<split>.array_record-<i>-of-<shards>`, whose records are serialised `tf.train.Example`s.
"""

import json
from pathlib import Path

import cv2
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

VERSION = "1.0.0"
FEATURES = "tensorflow_datasets.core.features"
TEXT = {"pythonClassName": f"{FEATURES}.text_feature.Text", "text": {}}
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def write(directory, name, images, labels, num_classes, split="train", shards=2, file_names=None):
    """Writes a split, beside those that the dataset has already.

    Args:
      directory: What `config.data.dir` will be.
      name: Name of the dataset.
      images: Arrays (H, W, 1 or 3), uint8 or uint16; where sizes differ, the metadata name none.
        Or bytes of image files in RGB, of any sizes; None makes a record of no bytes at all.
      labels: Labels, one integer an image.
      num_classes: Number of classes.
      split: Name of the split.
      shards: Number of files, each with about as many records.
      file_names: Names of the images' files, one an image; None: the dataset has no such feature.

    Returns:
      The directory of the dataset's version.
    """
    target = Path(directory) / name / VERSION
    target.mkdir(parents=True, exist_ok=True)
    names = file_names or [None] * len(images)
    records = [_record(*fields) for fields in zip(images, labels, names, strict=True)]
    bounds = [len(records) * i // shards for i in range(shards + 1)]
    for i in range(shards):
        file = target / f"{name}-{split}.array_record-{i:05}-of-{shards:05}"
        _write_shard(file, records[bounds[i] : bounds[i + 1]])
    lengths = [str(bounds[i + 1] - bounds[i]) for i in range(shards)]
    entry = {
        "filepathTemplate": TEMPLATE,
        "name": split,
        "numBytes": str(sum(map(len, records))),
        "shardLengths": lengths,
    }
    _write_json(target / "dataset_info.json", _info(target / "dataset_info.json", name, entry))
    features = _features(images, num_classes)
    if file_names:
        features["featuresDict"]["features"]["file_name"] = TEXT
    _write_json(target / "features.json", features)
    return target


def edit_info(target, **changes):
    """Replaces entries of dataset_info.json; None removes one."""
    path = target / "dataset_info.json"
    info = json.loads(path.read_text()) | changes
    _write_json(path, {key: value for key, value in info.items() if value is not None})


def encode(image, extension=".png", *options):
    """The bytes of an image file of an array (H, W, 1 or 3); options are OpenCV's."""
    # OpenCV orders channels blue, green, red.
    _, encoded = cv2.imencode(extension, np.ascontiguousarray(image[..., ::-1]), options)
    return encoded.tobytes()


def _record(image, label, file_name):
    if image is None:
        return b""
    features = {"image": image if isinstance(image, bytes) else encode(image)}
    if file_name is not None:
        features["file_name"] = file_name.encode()
    example = tf_example_pb2.Example()
    for key, value in features.items():
        example.features.feature[key].bytes_list.value.append(value)
    example.features.feature["label"].int64_list.value.append(int(label))
    return example.SerializeToString()


def _write_shard(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def _write_json(path, value):
    path.write_text(json.dumps(value, indent=2))


def _info(path, name, entry):
    earlier = json.loads(path.read_text())["splits"] if path.exists() else []
    return {
        "fileFormat": "array_record",
        "name": name,
        "splits": [split for split in earlier if split["name"] != entry["name"]] + [entry],
        "supervisedKeys": {
            "tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]},
        },
        "version": VERSION,
    }


def _features(images, num_classes):
    return {
        "pythonClassName": f"{FEATURES}.features_dict.FeaturesDict",
        "featuresDict": {
            "features": {
                "image": {
                    "pythonClassName": f"{FEATURES}.image_feature.Image",
                    "image": {
                        "dtype": str(getattr(images[0], "dtype", "uint8")),
                        "encodingFormat": "png",
                        "shape": {"dimensions": _dimensions(images)},
                    },
                },
                "label": {
                    "pythonClassName": f"{FEATURES}.class_label_feature.ClassLabel",
                    "classLabel": {"numClasses": str(num_classes)},
                },
            }
        },
    }


def _dimensions(images):
    """Of all images; -1 where they differ, or are not known."""
    if any(not hasattr(image, "shape") for image in images):
        return ["-1", "-1", "3"]
    axes = zip(*(image.shape for image in images), strict=True)
    return [str(sizes[0] if len(set(sizes)) == 1 else -1) for sizes in axes]
