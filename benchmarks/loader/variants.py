"""What each step of the streaming loader costs, and what else was tried.

DIR is what `python -m benchmarks.loader.jpegs --dir DIR` wrote. The costs are CPU time
of one thread, the best of five rounds over the same 200 records; the pipelines
use a thread for each core.

Example:
  python -m benchmarks.loader.variants --dir DIR

Exit codes: 0 done, 1 failed, 2 the command line is wrong.
"""

import contextlib
import time
from argparse import Namespace
from collections.abc import Callable, Iterator

import cv2
import grain
import numpy as np
import tensorflow_datasets as tfds

from configs import imagenet_resnet50
from train.core import command_line
from train.core.command_line.values import not_empty, number
from train.core.config.data_fields import Interpolation
from train.core.config.fields import Config
from train.core.data import crop
from train.core.data.feed import cpu_cores, epoch_orders
from train.core.data.on_host import partial_jpeg
from train.core.data.on_host.batches import BatchMaker
from train.core.data.on_host.transform import train_transform
from train.core.data.sources.records import decode
from train.core.data.sources.registry import source_of
from train.core.data.sources.tfds import Tfds
from train.core.engine.experiment import streams
from train.core.errors import ConfigError

COUNT, BATCH_SIZE = 200, 256


def cost(name: str, function: Callable[[int], object]) -> None:
    """Prints the microseconds of CPU time that a call takes."""
    best = float("inf")
    for _ in range(5):
        start = time.thread_time()
        for index in range(COUNT):
            function(index)
        best = min(best, (time.thread_time() - start) / COUNT)
    print(f"{name:45} {1e6 * best:7.0f} µs", flush=True)


def speed(name: str, batches: Iterator[object], seconds: float) -> None:
    """Prints the images per second, and per second of CPU time, of a pipeline."""
    for _ in range(3):
        next(batches)
    start, cpu_start, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        count += BATCH_SIZE
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    print(f"{name:45} {count / wall:6.0f} /s  {count / cpu:6.0f} per CPU second", flush=True)


def costs(config: Config) -> None:
    """Prints what the steps and their alternatives cost."""
    cv2.setNumThreads(0)
    split = source_of(config.data).open_split("train")
    opened = split.open_records()
    builder = Tfds(config.data).builder
    skip = {"image": tfds.decode.SkipDecoding()}
    parsed_by_tfds = builder.as_data_source("train", decoders=skip)
    cost("read and parse", lambda i: opened[i])
    cost("read and parse by tfds.data_source", lambda i: parsed_by_tfds[i])
    found = [opened[i] for i in range(COUNT)]
    buffers = [np.frombuffer(record.encoded, np.uint8) for record in found]
    cost("decode", lambda i: decode(found[i], 3))
    cost("decode at half size", lambda i: cv2.imdecode(buffers[i], cv2.IMREAD_REDUCED_COLOR_2))
    cost("decode at quarter size", lambda i: cv2.imdecode(buffers[i], cv2.IMREAD_REDUCED_COLOR_4))
    images = [decode(record, 3) for record in found]
    draws = crop.draw(np.random.default_rng(0), COUNT)
    sizes = [(len(image), len(image[0])) for image in images]
    boxes = [crop.random_box(*sizes[i], draws, i) for i in range(COUNT)]
    cost("header of the JPEG file", lambda i: partial_jpeg.header(found[i].encoded))
    transform = train_transform(config, split.image_shape, 0)
    cost("decode, ended below the crop", lambda i: transform.decode(found[i], i))
    cost("place of the crop", lambda i: crop.random_box(*sizes[i], draws, i))
    for name in crop.INTERPOLATIONS:
        parts = [
            im[b.top :, b.left :][: b.height, : b.width]
            for im, b in zip(images, boxes, strict=True)
        ]

        def resize(
            i: int, parts: list[np.ndarray] = parts, name: Interpolation = name
        ) -> np.ndarray:
            return crop.resize(parts[i], (224, 224), name)

        def evaluated(i: int, name: Interpolation = name) -> np.ndarray:
            return crop.center(images[i], (224, 224, 3), 0.875, name)

        cost(f"resize, {name}", resize)
        cost(f"centre of an evaluation, {name}", evaluated)
    cost("a generator", lambda i: np.random.Generator(np.random.Philox(key=[0, i])))
    batch = np.zeros((COUNT, 224, 224, 3), np.uint8)
    cost("copy into the batch", lambda i: np.copyto(batch[i], batch[i - 1]))


def pipelines(config: Config, seconds: float) -> None:
    """Prints how fast ways to run the steps are, up to NumPy batches on the host."""
    workers = cpu_cores()
    split = source_of(config.data).open_split("train")
    order = epoch_orders(streams(0)["order"], split.num_examples, config)(0)
    opened, steps = split.open_records(), split.num_examples // BATCH_SIZE

    def row(number: int) -> np.ndarray:
        transform = transforms[number // BATCH_SIZE % steps]
        return transform.apply(
            opened[int(order[number % (steps * BATCH_SIZE)])], number % BATCH_SIZE
        )

    def whole(step: int) -> np.ndarray:
        images = np.zeros((BATCH_SIZE, 224, 224, 3), np.uint8)
        for place in range(BATCH_SIZE):
            images[place] = row(step * BATCH_SIZE + place)
        return images

    transforms = [train_transform(config, split.image_shape, step) for step in range(steps)]
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=workers)
    by_row = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=BATCH_SIZE)
    numbers, batches = grain.MapDataset.range(10**8), grain.MapDataset.range(10**6)
    with BatchMaker(split, config, np.arange(BATCH_SIZE)) as maker:
        ours = batches.map(lambda step: maker.train_batch(step, order))
        rows = numbers.map(row).to_iter_dataset(by_row)
        datasets = {
            "Grain over batches, rows shared by threads": ours.to_iter_dataset(options),
            "Grain over batches, a thread each": batches.map(whole).to_iter_dataset(options),
            "Grain over rows, then batches": rows.batch(BATCH_SIZE),
        }
        for _ in range(2):
            for name, dataset in datasets.items():
                with contextlib.closing(iter(dataset)) as iterator:
                    speed(name, iterator, seconds)


def parser() -> command_line.Parser:
    """The command line."""
    parser = command_line.Parser(
        __doc__, "python -m benchmarks.loader.variants --dir DIR [--seconds S]"
    )
    add = parser.add_argument
    add(
        "--dir",
        metavar="DIR",
        type=not_empty,
        required=True,
        help="a dataset of benchmarks.loader.jpegs",
    )
    add(
        "--seconds",
        metavar="S",
        type=number(0.1, 3600),
        default=4.0,
        help="how long each pipeline is measured, twice; default: 4",
    )
    return parser


def main(options: Namespace) -> None:
    """Prints all.

    Raises:
      ConfigError: there are fewer images than a batch has.
    """
    config = imagenet_resnet50.get_config()
    config.data.dir = options.dir
    found = source_of(config.data).open_split("train").num_examples
    if found < BATCH_SIZE:
        raise ConfigError(
            f"--dir: got {options.dir!r} with {found:,} images; allowed: {BATCH_SIZE} or more, as "
            "benchmarks.loader.jpegs writes them."
        )
    costs(config)
    pipelines(config, options.seconds)


if __name__ == "__main__":
    command_line.run(main, parser())
