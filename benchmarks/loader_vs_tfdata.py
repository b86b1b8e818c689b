"""Compares the streaming loader with tf.data on the same images, in turns.

python -m benchmarks.loader_vs_tfdata --dir DIR [--rounds 4] [--seconds 8]

DIR is what `python -m benchmarks.jpegs --dir DIR` wrote, in an environment with
pip install '.[train,benchmark]'. Each turn is a process of its own, which warms up first. Both
make batches of 256 random resized crops of 224 × 224 with bilinear resizing and put them on the
device; tf.data decodes only the crop (`decode_and_crop_jpeg`) and chooses its number of threads.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH_SIZE, SIZE = 256, 224


def tfdata_figures(directory: Path, seconds: float) -> tuple[float, float]:
    """Measures tf.data: images per second, and per second of CPU time."""
    import jax
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
        image = tf.image.decode_and_crop_jpeg(parsed["image"], window, channels=3)
        image = tf.image.resize(image, (SIZE, SIZE), "bilinear")
        return tf.cast(tf.round(image), tf.uint8), parsed["label"]

    files = sorted(str(path) for path in directory.rglob("*-train.tfrecord*"))
    records = tf.data.Dataset.from_tensor_slices(files).interleave(
        tf.data.TFRecordDataset, cycle_length=len(files)
    )
    images = records.repeat().map(example, num_parallel_calls=tf.data.AUTOTUNE)
    batches = images.batch(BATCH_SIZE, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    iterator = (jax.device_put(batch) for batch in batches.as_numpy_iterator())
    for _ in range(5):
        next(iterator)
    start, cpu_start, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        jax.block_until_ready(next(iterator))
        count += BATCH_SIZE
    return count / (time.perf_counter() - start), count / (time.process_time() - cpu_start)


def loader_figures(directory: Path, seconds: float) -> tuple[float, float]:
    """Measures the streaming loader with a thread a core, as tf.data is."""
    with tempfile.NamedTemporaryFile() as file:
        command = [
            *(sys.executable, "-m", "train.benchmark", "--loader-only"),
            f"--workers={len(os.sched_getaffinity(0))}",
            *("--config", "configs/imagenet_resnet50.py", f"--config.data.dir={directory}"),
            *(f"--config.batch_size={BATCH_SIZE}", f"--seconds={seconds}", f"--json={file.name}"),
        ]
        subprocess.run(command, check=True, capture_output=True)
        result = json.loads(Path(file.name).read_text())["loader"][0]
        return result["images_per_second"], result["images_per_cpu_second"]


def tfdata_in_a_process(directory: Path, seconds: float) -> tuple[float, float]:
    """Measures tf.data in a process of its own."""
    call = f"tfdata_figures(Path({str(directory)!r}), {seconds})"
    module = "from benchmarks.loader_vs_tfdata import *"
    command = [sys.executable, "-c", f"{module}; print(*{call})"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    wall, cpu = output.split()[-2:]
    return float(wall), float(cpu)


def main() -> None:
    """Prints a line a round, and the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args()
    ours, theirs = [], []
    print("images per second, and per second of CPU time")
    for _ in range(options.rounds):
        ours.append(loader_figures(options.dir, options.seconds))
        theirs.append(tfdata_in_a_process(options.dir, options.seconds))
        print("loader {:6.0f} {:6.0f}   tf.data {:6.0f} {:6.0f}".format(*ours[-1], *theirs[-1]))
    for place, name in enumerate(("second", "CPU second")):
        mine, other = ([figures[place] for figures in turns] for turns in (ours, theirs))
        ratio = statistics.median(mine) / statistics.median(other)
        best = max(mine) / max(other)
        print(f"images per {name}, loader / tf.data: medians {ratio:.2f}, best {best:.2f}")


if __name__ == "__main__":
    main()
