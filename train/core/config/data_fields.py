"""The fields of a config that are about the images."""

import dataclasses
import re
from typing import Literal, get_args

from train.core.config.spec import (
    Mark,
    above_zero,
    at_least_zero,
    between,
    choice,
    count,
    declared,
    fraction,
    numbers,
    switch,
    text,
)

LoaderName = Literal["resident", "streaming"]
Crop = Literal["pad", "resized"]
Interpolation = Literal["bilinear", "bicubic", "area", "antialias"]
Augmentation = Literal["none", "randaugment", "randaugment_increasing", "trivialaugment"]

# More threads than this the system may not start.
MOST_WORKERS = 1000
# The strengths of RandAugment's operations are 0 … LEVELS, as in its paper.
LEVELS = 30
# A name as TFDS has it: name, name/config or name:1.0.0.
DATASET_NAME = re.compile(r"[a-zA-Z]\w*(/\w[\w.+-]*)*(:\d+(\.\d+){2})?", re.ASCII)


@dataclasses.dataclass(slots=True)
class DataConfig:
    """The images, and what is made of them."""

    name: str = declared(
        "cifar100",
        "`digits`, `folder` (of image files), or a TFDS image classification dataset",
        "a name such as cifar100, name/config or name:1.0.0",
        lambda v: DATASET_NAME.fullmatch(v) is not None,
    )
    dir: str = text(
        "~/tensorflow_datasets",
        "where TFDS datasets lie; of `folder` the one with DIR/<split>/<class>/<image>, or "
        "DIR/<class>/<image>",
        marks=Mark.FREE | Mark.LOCAL,
    )
    classes: str = declared(
        "",
        "file with a class a line, in the order of their numbers; empty: the folders' names, "
        "sorted; with `folder`",
        "a printable file's name, or an empty text",
        str.isprintable,
        marks=Mark.FREE | Mark.LOCAL | Mark.LATER,
    )
    eval_fraction: float = between(
        0.2,
        0.001,
        0.999,
        "share of the images that is held out as eval_split; with a `folder` without splits",
        marks=Mark.LATER,
    )
    train_split: str = text("train", "split to train on")
    eval_split: str = text("test", "split to evaluate on", marks=Mark.EVALUATION)
    loader: LoaderName = choice(
        "resident",
        get_args(LoaderName),
        "resident: the images lie on each device; streaming: threads read them from disk",
        marks=Mark.FREE,
    )
    resident_limit_gb: float = above_zero(
        4.0, "gigabytes that a split may take on a device", 1_000_000, marks=Mark.FREE
    )
    workers: int = count(
        0,
        0,
        "threads that read images; 0: as many as CPU cores",
        MOST_WORKERS,
        marks=Mark.FREE | Mark.LOCAL,
    )
    max_bad_fraction: float = fraction(
        0.001, "share of unreadable records that ends a run, from 10 of them on", marks=Mark.FREE
    )
    image_size: int = count(0, 0, "height and width in pixels; 0: the dataset's own", 4096)
    eval_image_size: int = count(
        0,
        0,
        "height and width in pixels of images that are evaluated; 0: those of training",
        4096,
        marks=Mark.EVALUATION | Mark.LATER,
    )
    crop: Crop = choice(
        "pad",
        get_args(Crop),
        "pad: whole images, padded and cut at random; resized: a random part of 8 to 100 % of the "
        "area (streaming only)",
    )
    eval_crop_ratio: float = between(
        0.875,
        0.1,
        1,
        "size of the evaluation's centre crop, of the short side; with the crop `resized`",
        marks=Mark.EVALUATION,
    )
    interpolation: Interpolation = choice(
        "bilinear",
        get_args(Interpolation),
        "interpolation of pixels, antialias: Pillow's and torchvision's bilinear; with the crop "
        "`resized`",
        marks=Mark.EVALUATION,
    )
    mean: tuple[float, ...] = numbers(
        (0.5,), "mean of each channel, of pixels in 0…1", "each from 0 to 1", lambda x: 0 <= x <= 1
    )
    std: tuple[float, ...] = numbers(
        (0.25,),
        "deviation of each channel, of pixels in 0…1",
        "each at least 0.001",
        lambda x: x >= 0.001,
    )
    crop_padding: int = count(
        4, 0, "zero pixels on each side, with the crop `pad`; at most the images' size", 4096
    )
    flip: bool = switch(True, "mirror images at random")
    augmentation: Augmentation = choice(
        "none",
        get_args(Augmentation),
        "random operations on every image (streaming only); randaugment_increasing: timm's `inc1`, "
        "of which every operation is left out with probability 1/2",
    )
    randaugment_operations: int = count(
        2, 1, "operations that RandAugment applies to an image", 100
    )
    randaugment_level: int = count(9, 0, "strength of RandAugment's operations", LEVELS)
    randaugment_std: float = at_least_zero(
        0.0, "standard deviation of that strength, which stays within 0 to 30", Mark.LATER
    )
    augment_repeats: int = count(
        1, 1, "rows of a batch that are made of the same image", 100, marks=Mark.LATER
    )
    random_erasing: float = between(
        0.0, 0, 1, "probability that a random box of an image is erased"
    )
    mixup: float = at_least_zero(0.0, "parameter of mixup's Beta distribution; 0: none")
    cutmix: float = at_least_zero(0.0, "parameter of CutMix's Beta distribution; 0: none")


def at_eval_size(data: DataConfig) -> DataConfig:
    """A copy of the `data` part of a config, with images of the size that is evaluated."""
    return dataclasses.replace(data, image_size=data.eval_image_size or data.image_size)
