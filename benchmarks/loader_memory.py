"""Follows the memory of the streaming loader over an epoch of a synthetic dataset.

python -m benchmarks.loader_memory --count 1000000

The records are tiny, so that what grows with their number would show.
"""

import argparse
import contextlib
import tempfile
from pathlib import Path

import numpy as np
import psutil

from benchmarks import jpegs
from configs import imagenet_resnet50
from train.core.engine.experiment import build_experiment
from train.core.engine.feeds import train_feed

BATCH_SIZE, SIZE, SHARDS = 250, 16, 10


def write(directory: Path, count: int) -> None:
    """Writes count records with the same image of 32 × 32 pixels."""
    target = directory / "imagenet2012" / "1.0.0"
    target.mkdir(parents=True)
    image = jpegs.picture(np.random.default_rng(0))[:32, :32]
    for i in range(SHARDS):
        name = f"imagenet2012-train.array_record-{i:05}-of-{SHARDS:05}"
        jpegs.write_shard(target / name, [jpegs.example(image, 0)] * (count // SHARDS))
    jpegs.write_metadata(target, [count // SHARDS] * SHARDS)


def main() -> None:
    """Prints the resident memory at every tenth of the epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    count = parser.parse_args().count // (10 * BATCH_SIZE) * (10 * BATCH_SIZE)
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory), count)
        config = imagenet_resnet50.get_config()
        config.batch_size, config.data.image_size = BATCH_SIZE, SIZE
        config.data.dir = directory
        config.data.eval_split, config.optimizer.warmup_epochs = "train", 0.0
        config.steps = steps = count // BATCH_SIZE
        with contextlib.closing(train_feed(build_experiment(config)).batches(0)) as fed:
            for step, _ in enumerate(fed, 1):
                if step == 1 or step % (steps // 10) == 0:
                    resident = psutil.Process().memory_info().rss / 2**20
                    print(f"{step * BATCH_SIZE:>9,} records: {resident:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
