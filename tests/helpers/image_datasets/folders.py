"""Folders of small image files, and what turns them in their metadata."""

import struct
from pathlib import Path

import numpy as np

from tests.helpers.image_datasets import tfds_writer
from train.core.config.fields import Config, default_config, replaced

CLASSES = ("cat", "dog", "owl")


def image(seed=0, size=(12, 16)):
    """Random pixels in RGB."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def write(directory, paths, content=None):
    """Writes a file at every path; PNG images, all different, where no content is given."""
    for seed, path in enumerate(paths):
        file = Path(directory) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(tfds_writer.encode(image(seed)) if content is None else content)
    return Path(directory)


def write_splits(directory, counts=(("train", 6), ("val", 3)), classes=CLASSES):
    """Writes splits with so many images of every class."""
    for split, count in counts:
        paths = [f"{split}/{name}/{i}.png" for name in classes for i in range(count)]
        write(directory, paths)
    return Path(directory)


def config(directory, **changes) -> Config:
    """A config of a folder, for images of 8 × 8 pixels in batches of 4."""
    data = {"name": "folder", "dir": str(directory), "eval_split": "val", "image_size": 8}
    fields = {f"data.{name}": value for name, value in {**data, "workers": 2}.items()}
    return replaced(default_config(), {"batch_size": 4, **fields, **changes})


def exif(orientation, order="<", entries_before=0):
    """The metadata of an image with an orientation, as TIFF files keep it."""
    kind = {"<": b"II", ">": b"MM"}[order]
    entries = [struct.pack(f"{order}HHIHH", 0x100 + i, 3, 1, 7, 0) for i in range(entries_before)]
    entries.append(struct.pack(f"{order}HHIHH", 0x112, 3, 1, orientation, 0))
    count = struct.pack(f"{order}H", len(entries))
    return kind + struct.pack(f"{order}HI", 42, 8) + count + b"".join(entries) + bytes(4)


def with_exif(jpeg, metadata, before=b""):
    """A JPEG file with metadata, and with bytes of other segments before them."""
    content = b"Exif\0\0" + metadata
    segment = b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content
    return jpeg[:2] + before + segment + jpeg[2:]


# By orientation: the image as people see it, of the one that is stored.
TURNS = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image[::-1].swapaxes(0, 1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: image[:, ::-1].swapaxes(0, 1),
}
