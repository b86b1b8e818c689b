"""Follows the memory of the streaming loader over an epoch of a synthetic dataset.

The records are tiny, so that what grows with their number would show. Needs
pip install '.[train,benchmark]'.

Example:
  python -m benchmarks.loader.memory --count 10000

Exit codes: 0 done, 1 failed, 2 the command line is wrong.
"""

import contextlib
import tempfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import psutil

from benchmarks.loader import jpegs
from configs import imagenet_resnet50
from train.core import command_line
from train.core.command_line.values import whole_number
from train.core.devices.busy import busy
from train.core.engine.experiment import build_experiment
from train.core.engine.feeds import train_feed

BATCH_SIZE, SIZE, SHARDS = 250, 16, 10
# A whole number of batches for each tenth of the epoch.
UNIT = 10 * BATCH_SIZE


def write(directory: Path, count: int) -> None:
    """Writes count records with the same image of 32 × 32 pixels."""
    target = directory / "imagenet2012" / "1.0.0"
    target.mkdir(parents=True)
    file = jpegs.encoded(jpegs.picture(np.random.default_rng(0))[:32, :32])
    with busy("writing", SHARDS, "files") as work:
        for i in range(SHARDS):
            name = f"imagenet2012-train.array_record-{i:05}-of-{SHARDS:05}"
            jpegs.write_shard(target / name, [jpegs.example(file, 0)] * (count // SHARDS))
            work.advance()
    jpegs.write_metadata(target, [count // SHARDS] * SHARDS)


def parser() -> command_line.Parser:
    """The command line."""
    parser = command_line.Parser(__doc__, "python -m benchmarks.loader.memory [--count N]")
    parser.add_argument(
        "--count",
        metavar="N",
        type=whole_number(UNIT, 100_000_000),
        default=1_000_000,
        help=f"records, rounded down to a multiple of {UNIT:,}; default: 1,000,000",
    )
    return parser


def main(options: Namespace) -> None:
    """Prints the resident memory at every tenth of the epoch."""
    count = options.count // UNIT * UNIT
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
    command_line.run(main, parser())
