"""Compares the streaming loader, on ArrayRecord files and on a folder, with tf.data, in turns.

python -m benchmarks.loader_vs_tfdata --dir DIR [--rounds 10] [--seconds 2]

DIR is what `python -m benchmarks.jpegs --dir DIR` wrote, in an environment with
pip install '.[train,benchmark]'. Three processes take turns; those that rest are stopped, and
make nothing in advance. All make batches of 256 random resized crops of 224 × 224 with bilinear
resizing and put them on the device; tf.data decodes only the crop (`decode_and_crop_jpeg` with
INTEGER_FAST) and chooses its number of threads, the loader has one for each core.
"""

import argparse
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from configs import imagenet_resnet50
from train.core.engine.experiment import build_experiment
from train.core.engine.feeds import train_feed

BATCH_SIZE, SIZE, READY = 256, 224, 6


def tfdata_batches(directory: Path) -> Iterator[Any]:
    """Batches of tf.data, on the device."""
    import tensorflow as tf

    def example(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        kinds = {"image": tf.string, "label": tf.int64}
        features = {key: tf.io.FixedLenFeature([], kind) for key, kind in kinds.items()}
        parsed = tf.io.parse_single_example(serialized, features)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(parsed["image"]),
            tf.zeros([1, 0, 4]),
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            min_object_covered=0.0,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.image.decode_and_crop_jpeg(
            parsed["image"], window, channels=3, dct_method="INTEGER_FAST"
        )
        image = tf.image.resize(image, (SIZE, SIZE), "bilinear")
        return tf.cast(tf.round(image), tf.uint8), tf.cast(parsed["label"], tf.int32)

    files = sorted(str(path) for path in directory.rglob("*-train.tfrecord*"))
    records = tf.data.Dataset.from_tensor_slices(files).interleave(
        tf.data.TFRecordDataset, cycle_length=len(files)
    )
    images = records.repeat().map(example, num_parallel_calls=tf.data.AUTOTUNE)
    batches = images.batch(BATCH_SIZE, drop_remainder=True).prefetch(READY - 2)
    return (jax.device_put(batch) for batch in batches.as_numpy_iterator())


def loader_batches(directory: Path, **data: str) -> Iterator[Any]:
    """Batches of the streaming loader, on the device."""
    config = imagenet_resnet50.get_config()
    config.batch_size, config.data.dir, config.steps = BATCH_SIZE, str(directory), 10**9
    for name, value in data.items():
        setattr(config.data, name, value)
    return train_feed(build_experiment(config)).batches(0)


def folder_batches(directory: Path) -> Iterator[Any]:
    """Batches of the streaming loader from a folder, on the device."""
    return loader_batches(directory / "folder", name="folder", eval_split="train")


BATCHES = {"array_record": loader_batches, "folder": folder_batches, "tf.data": tfdata_batches}


def measure(batches: Iterator[Any], seconds: float) -> tuple[float, float]:
    """Images per second, and per second of CPU time."""
    # What was ready when the turn before ended is not counted.
    for _ in range(READY):
        jax.block_until_ready(next(batches))
    start, cpu_start, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        jax.block_until_ready(next(batches))
        count += BATCH_SIZE
    return count / (time.perf_counter() - start), count / (time.process_time() - cpu_start)


def serve(name: str, directory: Path, seconds: float) -> None:
    """Measures once for every line of the standard input."""
    batches = BATCHES[name](directory)
    for _ in sys.stdin:
        print(*measure(batches, seconds), flush=True)


def main() -> None:
    """Prints a line a round, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--serve", choices=BATCHES)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.dir, options.seconds)
        return
    command = [sys.executable, "-m", "benchmarks.loader_vs_tfdata", *sys.argv[1:], "--serve"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    servers = {name: subprocess.Popen([*command, name], **pipes) for name in BATCHES}
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in BATCHES}
    print("images per second, and per second of CPU time")
    # The first round warms up.
    for number in range(options.rounds + 1):
        for name, server in servers.items():
            server.send_signal(signal.SIGCONT)
            server.stdin.write("\n")
            server.stdin.flush()
            wall, cpu = map(float, server.stdout.readline().split())
            server.send_signal(signal.SIGSTOP)
            if number:
                figures[name].append((wall, cpu))
                print(f"{name} {wall:.0f} {cpu:.0f}", end="   ")
        print()
    for server in servers.values():
        server.kill()
    for ours, theirs in (("array_record", "tf.data"), ("folder", "array_record")):
        for place, what in enumerate(("second", "CPU second")):
            one, other = ([turn[place] for turn in figures[name]] for name in (ours, theirs))
            ratio = statistics.median(one) / statistics.median(other)
            best = max(one) / max(other)
            print(f"images per {what}, {ours} / {theirs}: medians {ratio:.2f}, best {best:.2f}")


if __name__ == "__main__":
    main()
