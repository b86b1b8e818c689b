"""Compares the streaming loader, on ArrayRecord files and on a folder, with tf.data, in turns.

DIR is what `python -m benchmarks.loader.jpegs --dir DIR` wrote, in an environment with
pip install '.[train,benchmark]'. Three processes take turns; those that rest
are stopped, and make nothing in advance. All make batches of 256 random resized
crops of 224 × 224 with bilinear resizing and put them on the device; tf.data
decodes only the crop (`decode_and_crop_jpeg` with INTEGER_FAST) and chooses its
number of threads, the loader has one for each core.

Example:
  python -m benchmarks.loader.vs_tfdata --dir DIR

Exit codes: 0 done, 1 failed, 2 the command line is wrong.
"""

import contextlib
import signal
import statistics
import subprocess
import sys
import time
from argparse import SUPPRESS, Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from configs import imagenet_resnet50
from train.core import command_line
from train.core.command_line.values import not_empty, number, one_of, whole_number
from train.core.devices.busy import busy
from train.core.engine.experiment import build_experiment
from train.core.engine.feeds import train_feed
from train.core.errors import ConfigError, RunError

BATCH_SIZE, SIZE, READY = 256, 224, 6

# Images per second, and per second of CPU time.
Speed = tuple[float, float]
Server = subprocess.Popen[str]


def tfrecord_files(directory: Path) -> list[str]:
    """The files that tf.data reads.

    Raises:
      ConfigError: there are none.
    """
    files = sorted(str(path) for path in directory.rglob("*-train.tfrecord*"))
    if not files:
        raise ConfigError(
            f"--dir: got {str(directory)!r}, which holds no TFRecord files; let "
            "benchmarks.loader.jpegs write it where TensorFlow is installed."
        )
    return files


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

    files = tfrecord_files(directory)
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


def measure(batches: Iterator[Any], seconds: float) -> Speed:
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


def command(name: str, options: Namespace) -> list[str]:
    """The command of the process that measures one of BATCHES."""
    own = [f"--serve={name}", f"--dir={options.dir}", f"--seconds={options.seconds}"]
    return [sys.executable, "-m", "benchmarks.loader.vs_tfdata", *own]


def start(name: str, options: Namespace) -> Server:
    """Starts that process."""
    pipe = subprocess.PIPE
    return subprocess.Popen(command(name, options), stdin=pipe, stdout=pipe, text=True)


@contextlib.contextmanager
def serving(options: Namespace) -> Iterator[dict[str, Server]]:
    """The processes by name; at the end, whatever it is, none of them is left."""
    servers: dict[str, Server] = {}
    try:
        for name in BATCHES:
            servers[name] = start(name, options)
        yield servers
    finally:
        for server in servers.values():
            # Also those that are stopped.
            server.kill()
            server.communicate()


def turn(name: str, server: Server) -> Speed:
    """Lets a process measure once, and stops it again.

    Raises:
      RunError: it has ended.
    """
    assert server.stdout
    server.send_signal(signal.SIGCONT)
    with contextlib.suppress(BrokenPipeError):
        print(file=server.stdin, flush=True)
    line = server.stdout.readline()
    if not line:
        raise RunError(f"the process of {name} has ended, with exit code {server.wait()}.")
    server.send_signal(signal.SIGSTOP)
    wall, cpu = map(float, line.split())
    return wall, cpu


def take_turns(servers: Mapping[str, Server], rounds: int) -> dict[str, list[Speed]]:
    """Prints a line a round, and gives the figures of all by name."""
    figures: dict[str, list[Speed]] = {name: [] for name in servers}
    with busy("warming up"):
        for name, server in servers.items():
            turn(name, server)
    for _ in range(rounds):
        found = {name: turn(name, server) for name, server in servers.items()}
        print("   ".join(f"{name} {wall:.0f} {cpu:.0f}" for name, (wall, cpu) in found.items()))
        for name, speed in found.items():
            figures[name].append(speed)
    return figures


def print_ratios(figures: Mapping[str, Sequence[Speed]]) -> None:
    """Prints how many times as fast one is as another."""
    for ours, theirs in (("array_record", "tf.data"), ("folder", "array_record")):
        for place, what in enumerate(("second", "CPU second")):
            one, other = ([speed[place] for speed in figures[name]] for name in (ours, theirs))
            ratio = statistics.median(one) / statistics.median(other)
            best = max(one) / max(other)
            print(f"images per {what}, {ours} / {theirs}: medians {ratio:.2f}, best {best:.2f}")


def parser() -> command_line.Parser:
    """The command line."""
    parser = command_line.Parser(
        __doc__, "python -m benchmarks.loader.vs_tfdata --dir DIR [OPTION ...]"
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
        "--rounds",
        metavar="N",
        type=whole_number(1, 10_000),
        default=10,
        help="turns of each; default: 10",
    )
    add(
        "--seconds",
        metavar="S",
        type=number(0.1, 3600),
        default=2.0,
        help="how long a turn is; default: 2",
    )
    add("--serve", type=one_of(*BATCHES), help=SUPPRESS)
    return parser


def main(options: Namespace) -> None:
    """Prints a line a round, and the ratios."""
    directory = Path(options.dir)
    if options.serve:
        serve(options.serve, directory, options.seconds)
        return
    # Before any process starts.
    tfrecord_files(directory)
    print("images per second, and per second of CPU time", flush=True)
    with serving(options) as servers:
        figures = take_turns(servers, options.rounds)
    print_ratios(figures)


if __name__ == "__main__":
    command_line.run(main, parser())
