"""Measures how fast images can be had: the streaming loader, without a network."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from train.core.config.fields import Config, replaced
from train.core.config.spec import MOST_STEPS
from train.core.data.feed import cpu_cores, epoch_orders
from train.core.data.loaders import LOADERS
from train.core.data.on_host.transform import train_transform
from train.core.data.sources.records import BadRecordError
from train.core.data.streaming import READY, Streaming
from train.core.devices.busy import busy
from train.core.devices.mesh import process_rows, put_rows
from train.core.engine.experiment import Experiment, build_experiment, streams
from train.core.engine.feeds import train_feed
from train.core.errors import ConfigError

STAGES = ("read", "decode", "crop_and_resize", "batch", "transfer")


def run_all(
    configs: Mapping[str, Config], numbers: Sequence[int] | None, seconds: float
) -> dict[str, Any]:
    """Measures the loader of several variants, one after the other.

    Args:
      configs: Variants of a config, by name.
      numbers: Numbers of threads, see `run`.
      seconds: Seconds to measure each.

    Returns:
      What `run` gives; of several variants by their names.

    Raises:
      ConfigError: a config names another loader, or another number of threads.
    """
    first, *others = configs.values()
    for config in (first, *others):
        _check(config)
        if config.data.workers != first.data.workers:
            raise ConfigError("--also data.workers: numbers of threads are those of --workers.")
    if not others:
        return run(first, numbers, seconds)
    figures = {}
    for name, config in configs.items():
        print(f"{name}:")
        figures[name] = run(config, numbers, seconds)
    return figures


def _check(config: Config) -> None:
    if LOADERS[config.data.loader] is not Streaming:
        raise ConfigError(
            f"config.data.loader: got {config.data.loader!r}, which has no work to measure; set "
            "config.data.loader=streaming."
        )


def run(config: Config, numbers: Sequence[int] | None, seconds: float) -> dict[str, Any]:
    """Measures the loader with every number of workers, and prints a line for each.

    Args:
      config: Config of the run; its number of workers is exchanged.
      numbers: Numbers of threads to try; None: 1, and one a CPU core.
      seconds: Seconds to measure each.

    Returns:
      `cores`, and under `loader` what `loader_figures` gives for each.
    """
    cores = cpu_cores()
    experiment = build_experiment(config)
    print(f"{cores} CPU cores; microseconds per image and thread, by stage")
    results = []
    for workers in numbers or sorted({1, cores}):
        own = replaced(config, {"data.workers": workers})
        loader = Streaming(own, experiment.mesh)
        own_experiment = dataclasses.replace(experiment, config=own, loader=loader)
        with busy(f"measuring {workers} workers, for {1.5 * seconds:.0f} seconds"):
            result = loader_figures(own_experiment, workers, seconds)
        results.append(result)
        stages = "  ".join(f"{n} {t:.0f}" for n, t in result["microseconds_per_image"].items())
        print(
            f"{workers} workers  {result['images_per_second']:,.0f} images/s  "
            f"{result['images_per_second_per_core']:,.0f} per core  "
            f"{result['images_per_cpu_second']:,.0f} per CPU second  {stages}",
            flush=True,
        )
    return {"cores": cores, "loader": results}


def loader_figures(experiment: Experiment, workers: int, seconds: float) -> dict[str, Any]:
    """Measures the streaming loader of the training split.

    Args:
      experiment: Experiment with so many workers in its config.
      workers: Number of threads that read and decode.
      seconds: Seconds to measure.

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
    endless = dataclasses.replace(experiment, total_steps=MOST_STEPS)
    with contextlib.closing(train_feed(endless).batches(0)) as fed:
        for _ in range(READY):
            next(fed)
        start, cpu_start, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds or not count:
            jax.block_until_ready(next(fed))
            count += experiment.config.batch_size
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu_start
        return count / wall, count / cpu


def _stages(experiment: Experiment, workers: int, seconds: float) -> dict[str, float]:
    config, split, mesh = experiment.config, experiment.train_split, experiment.mesh
    records, rows = split.open_records(), process_rows(mesh, config.batch_size)
    order = epoch_orders(streams(config.seed)["order"], split.num_examples, config)(0)
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
            jax.block_until_ready(put_rows(images, mesh, config.batch_size))
            totals[-1] += time.perf_counter() - begin
            batches += 1
    per_image = 1e6 * totals / (batches * len(rows))
    return {stage: round(float(t), 1) for stage, t in zip(STAGES, per_image, strict=True)}
