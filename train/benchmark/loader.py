"""Measures how fast images can be had: the streaming loader, without a network."""

import contextlib
import dataclasses
import functools
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from absl import flags

from train.core.config.fields import MOST_WORKERS, Config
from train.core.data import streaming
from train.core.data.feed import cpu_cores, epoch_orders
from train.core.data.on_host.transform import train_transform
from train.core.data.sources.records import BadRecordError
from train.core.devices import mesh as mesh_lib
from train.core.engine import assembly
from train.core.engine import experiment as experiment_lib
from train.core.engine import step as step_lib
from train.core.engine.experiment import Experiment
from train.core.errors import ConfigError

WORKERS = flags.DEFINE_list("workers", None, "Numbers of threads to try.")
SECONDS = flags.DEFINE_float("seconds", 10.0, "How long to measure each.")
MOST_SECONDS = 3600

STAGES = ("read", "decode", "crop_and_resize", "batch", "transfer")


def run(config: Config) -> dict[str, Any]:
    """Measures the loader with every number of workers, and prints a line for each.

    Returns:
      `cores`, and under `loader` what `loader_figures` gives for each.

    Raises:
      ConfigError: the numbers of workers or of seconds are none, or the config names another
        loader.
    """
    cores = cpu_cores()
    numbers, seconds = _numbers_of_workers(cores), _seconds()
    if config.data.loader != "streaming":
        raise ConfigError("config.data.loader: the resident loader has no work to measure.")
    experiment = experiment_lib.build(config)
    print(f"{cores} CPU cores; microseconds per image and thread, by stage")
    results = []
    for workers in numbers:
        config.data.workers = workers
        result = loader_figures(experiment, workers, seconds)
        results.append(result)
        stages = "  ".join(f"{n} {t:.0f}" for n, t in result["microseconds_per_image"].items())
        print(
            f"{workers} workers  {result['images_per_second']:,.0f} images/s  "
            f"{result['images_per_second_per_core']:,.0f} per core  "
            f"{result['images_per_cpu_second']:,.0f} per CPU second  {stages}",
            flush=True,
        )
    return {"cores": cores, "loader": results}


def _numbers_of_workers(cores: int) -> list[int]:
    if WORKERS.value is None:
        return sorted({1, cores})
    numbers = [int(n) if re.fullmatch(r"\d{1,4}", n) else 0 for n in WORKERS.value]
    if not numbers or not all(1 <= number <= MOST_WORKERS for number in numbers):
        raise ConfigError(
            f"--workers: got {','.join(WORKERS.value)!r}; allowed: numbers from 1 to "
            f"{MOST_WORKERS}, such as 1,2,4."
        )
    return numbers


def _seconds() -> float:
    # Not bounds of the flag: a value that is no number passes them.
    if not 0.1 <= SECONDS.value <= MOST_SECONDS:
        raise ConfigError(f"--seconds: got {SECONDS.value}; allowed: 0.1 to {MOST_SECONDS}.")
    return SECONDS.value


def loader_figures(experiment: Experiment, workers: int, seconds: float) -> dict[str, Any]:
    """Measures the streaming loader of the training split.

    Args:
      experiment: with so many workers in its config.
      workers: threads that read and decode.
      seconds: how long to measure.

    Returns:
      `workers`, `images_per_second`, `images_per_second_per_core`, `images_per_cpu_second`
      (steadier where other processes want the cores too), and `microseconds_per_image` of every
      stage, on one thread.
    """
    images_per_second, images_per_cpu_second = _throughput(experiment, seconds)
    cores = min(workers, cpu_cores())
    return {
        "workers": workers,
        "images_per_second": round(images_per_second, 1),
        "images_per_cpu_second": round(images_per_cpu_second, 1),
        "images_per_second_per_core": round(images_per_second / cores, 1),
        "microseconds_per_image": _stages(experiment, workers, seconds / 2),
    }


def _throughput(experiment: Experiment, seconds: float) -> tuple[float, float]:
    endless = dataclasses.replace(experiment, total_steps=2**31 - 1)
    with contextlib.closing(assembly.train_feed(endless).batches(0)) as fed:
        # What is ready before the clock starts would count as instant.
        for _ in range(streaming.HOST_BATCHES + streaming.DEVICE_BATCHES + 1):
            next(fed)
        start, cpu_start, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds or not count:
            jax.block_until_ready(next(fed))
            count += experiment.config.batch_size
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu_start
        return count / wall, count / cpu


def _stages(experiment: Experiment, workers: int, seconds: float) -> dict[str, float]:
    config, split, mesh = experiment.config, experiment.train_split, experiment.mesh
    records, rows = split.open_records(), mesh_lib.process_rows(mesh, config.batch_size)
    order = epoch_orders(step_lib.streams(config.seed)["order"], split.num_examples)(0)
    transform = train_transform(config, split.image_shape, 0)

    def make_rows(images: np.ndarray, examples: np.ndarray, places: np.ndarray) -> np.ndarray:
        spent = np.zeros(len(STAGES) - 1)
        for place in places:
            times = [time.perf_counter()]
            with contextlib.suppress(BadRecordError):
                record = records[int(examples[place])]
                times.append(time.perf_counter())
                part = transform.decode(record, int(rows[place]))
                times.append(time.perf_counter())
                image = transform.finish(part, int(rows[place]))
                times.append(time.perf_counter())
                images[place] = image
                times.append(time.perf_counter())
                spent += np.diff(times)
        return spent

    totals, batches, start = np.zeros(len(STAGES)), 0, time.perf_counter()
    shares = np.array_split(np.arange(len(rows)), workers)
    with ThreadPoolExecutor(workers) as pool:
        while time.perf_counter() - start < seconds or not batches:
            examples = order[batches % experiment.steps_per_epoch * config.batch_size + rows]
            images = np.zeros((len(rows), *split.image_shape), np.uint8)
            totals[:-1] += sum(pool.map(functools.partial(make_rows, images, examples), shares))
            begin = time.perf_counter()
            jax.block_until_ready(mesh_lib.put_rows(images, mesh, config.batch_size))
            totals[-1] += time.perf_counter() - begin
            batches += 1
    per_image = 1e6 * totals / (batches * len(rows))
    return {stage: round(float(t), 1) for stage, t in zip(STAGES, per_image, strict=True)}
