"""A small imagenet2012, in the layout in which TFDS stores the real one."""

import cv2
import numpy as np

from configs import imagenet_resnet50
from tests.helpers.image_datasets import tfds_writer
from train.core.config.fields import replaced

SIZES = [(40, 56), (56, 40), (48, 48), (30, 80), (20, 24)]


def pictures(count, seed=0):
    """Smooth images of several sizes, all different, in RGB."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, 5, 5, 3), np.uint8)
    sizes = (SIZES[i % len(SIZES)] for i in range(count))
    return [cv2.resize(c, size[::-1]) for c, size in zip(coarse, sizes, strict=True)]


def jpegs(count, seed=0):
    """The files of `pictures`."""
    return [tfds_writer.encode(image, ".jpg") for image in pictures(count, seed)]


def write(directory, files, split="train", shards=3):
    """Writes image files as a split, the label of each its place modulo 1000."""
    names = [f"n{i:08}_{i}.JPEG" for i in range(len(files))]
    labels = np.arange(len(files)) % 1000
    return tfds_writer.write(
        directory, "imagenet2012", files, labels, 1000, split, shards, file_names=names
    )


def config(directory, **changes):
    """The config of the ImageNet run, for images of 16 × 16 pixels in batches of 8."""
    config = imagenet_resnet50.get_config()
    config.batch_size = 8
    config.data.dir = str(directory)
    config.data.image_size = 16
    config.data.workers = 2
    return replaced(config, changes)
