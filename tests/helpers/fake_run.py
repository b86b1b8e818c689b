"""Directories of runs and comparisons that nothing was trained for."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
from etils import epath

from configs import digits_resnet20
from train.compare import runs
from train.core.devices import environment
from train.core.workdir import storage
from train.core.workdir.checkpoints import Checkpoints

STEPS_PER_EPOCH = 10


def rows(epochs, start=90.0, small=True):
    """Two training rows and an evaluation for every epoch; the errors fall."""
    for epoch in range(1, epochs + 1):
        error = start / (1 + epoch)
        common = {"loss": error / 40, "cross_entropy": error / 40, "penalty": 0.0}
        errors = {"top1_error": error, "top5_error": error / 3}
        speed = {"learning_rate": 0.1 / epoch, "images_per_second": 1e3, "data_wait": 0.01}
        for step in (epoch * STEPS_PER_EPOCH - 5, epoch * STEPS_PER_EPOCH):
            place = {"step": step, "epoch": step / STEPS_PER_EPOCH, "split": "train"}
            yield {**place, **common, **errors, **speed}
        evaluation = {"step": step, "epoch": epoch, "split": "eval", **common, **errors}
        yield {**evaluation, **({"small_weights": 100 - 100 / epoch} if small else {})}


def summary(epochs, top1_error):
    return {
        **{"top1_error": top1_error, "top5_error": top1_error / 3, "loss": 0.5},
        **{"best_top1_error": top1_error, "best_step": 10, "num_eval_images": 359},
        **{"steps": epochs * STEPS_PER_EPOCH, "params": 270610, "macs": 2500000},
        **{"wall_seconds": 10.5, "images_per_second": 1234.5, "state_sha256": "0f" * 32},
    }


def params(layers=3):
    """Parameters of NAM for channels and pixels; of each 20 channels the first are small."""
    rng = np.random.default_rng(0)
    network = {"fc": {"kernel": jnp.ones((4, 10))}}
    for layer in range(layers):
        channels = rng.uniform(0.5, 1.5, 20).astype(np.float32)
        channels[:layer] = 0.001
        pixels = rng.uniform(0.5, 1.5, (4, 4)).astype(np.float32)
        network[f"block{layer + 8}"] = {
            "attention": {
                "channel": {"nam_bn": {"scale": jnp.asarray(channels)}},
                "spatial": {"nam_bn": {"scale": jnp.asarray(pixels)}},
            }
        }
    return network


def write(directory, config=None, *, epochs=3, finished=True, start=90.0, saved=None):
    """Writes a run.

    Args:
      directory: Directory of the run; it is made.
      config: Config of the run; default: that of the digits.
      epochs: Epochs that have passed.
      finished: Whether there is a summary.
      start: Error that the errors fall from, in percent.
      saved: Parameters in its checkpoint; None: there is none.
    """
    workdir = epath.Path(directory)
    workdir.mkdir(parents=True, exist_ok=True)
    config = config or digits_resnet20.get_config()
    storage.write_json(workdir / "config.json", dataclasses.asdict(config))
    storage.write_json(workdir / "environment.json", environment.describe())
    metrics = list(rows(epochs, start))
    storage.write_text(
        workdir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in metrics)
    )
    if finished:
        storage.write_json(workdir / "summary.json", summary(epochs, metrics[-1]["top1_error"]))
    if saved is not None:
        with Checkpoints(workdir / "checkpoints", 2) as checkpoints:
            state = {"params": saved, "batch_stats": {"mean": jnp.zeros(3)}, "ema": None}
            checkpoints.save(epochs * STEPS_PER_EPOCH, state, {}, None)
    return workdir


def write_comparison(directory, finished=True):
    """Writes the runs of a comparison: none and nam, seeds 0 and 1; one goes on in any case."""
    config = digits_resnet20.get_config()
    config.optimizer.sparsity = 0.0
    for number, run in enumerate(runs.plan(config, ["none", "nam"], [0, 1])):
        goes_on = number == 3 or not finished
        write(
            epath.Path(directory) / run.name,
            run.config,
            epochs=1 if goes_on else 3,
            finished=not goes_on,
            start=90.0 - 9 * number,
        )
    return epath.Path(directory)
