"""Measures training steps: with random images on the devices, then with those of the loader."""

import collections
import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from train import assembly, attentions, chips, compiled, rounds
from train import experiment as experiment_lib
from train.data import sources, streaming
from train.data.feed import Feed
from train.experiment import Experiment
from train.metrics import LAG
from train.size import multiply_adds

# Batches of a split that is not on disk.
BATCHES = 4
# What is ready before the clock starts would count as instant.
READY = streaming.HOST_BATCHES + streaming.DEVICE_BATCHES + 1

Figures = dict[str, Any]
Clock = Callable[[], float]


class Run:
    """A compiled training step with its state, and arguments to call it with."""

    def __init__(self, experiment: Experiment, arguments: tuple[Any, ...]):
        """Compiles the step that the trainer runs.

        Args:
          experiment: the run.
          arguments: of the step, after the state.
        """
        self.experiment = experiment
        self.arguments = arguments
        self._state = assembly.initial_state(experiment)
        start = time.perf_counter()
        lowered = assembly.lower_train_step(experiment, self._state, arguments)
        self.program = lowered.compile()
        self.compile_seconds = time.perf_counter() - start

    def step(self) -> Any:
        """Starts a step, which uses the state up; gives its metrics."""
        self._state, metrics = self.program(self._state, *self.arguments)
        return metrics

    def wait(self) -> None:
        """Returns when every step that was started is done."""
        jax.block_until_ready(self._state)


def build(config: ConfigDict, attention: str) -> Experiment:
    """Builds a run with another attention, whose dataset need not be on disk.

    Raises:
      ConfigError: the config does not fit the dataset or the devices.
    """

    def open_split(data: ConfigDict, split: str) -> sources.Split:
        return sources.describe_split(data, split, num_examples=BATCHES * config.batch_size)

    return experiment_lib.build(attentions.exchanged(config, attention), open_split=open_split)


def random_arguments(experiment: Experiment) -> tuple[Any, ...]:
    """Random images and labels on the devices, as the loader of the config would lay them."""
    (example,) = assembly.train_example(experiment)
    rng, fields = np.random.default_rng(0), example._asdict()
    count = len(fields["labels"])
    values = {
        "images": rng.integers(0, 256, fields["images"].shape, np.uint8),
        "labels": rng.integers(0, experiment.train_split.num_classes, count, np.int32),
        "order": np.arange(count, dtype=np.int32),
        "mask": np.ones(count, bool),
        "bad_records": np.zeros(count, np.int32),
    }
    return (
        type(example)(*(jax.device_put(values[name], x.sharding) for name, x in fields.items())),
    )


def measure(experiments: Mapping[str, Experiment], steps: int) -> dict[str, Figures]:
    """Measures the training steps of several runs that differ in their attention.

    Args:
      experiments: by the name of their attention.
      steps: how many of each are timed by themselves, how many one behind another, and how many
        with the loader's images.

    Returns:
      The figures by name; those with the loader's images are None where they are not on disk.
    """
    arguments = random_arguments(next(iter(experiments.values())))
    runs = {name: Run(experiment, arguments) for name, experiment in experiments.items()}
    times = rounds.take_turns(runs, steps)
    figures = {
        name: step_figures(run, times[name], times.get("none")) for name, run in runs.items()
    }
    fed = _fed(runs, steps)
    return {name: {**figures[name], **fed[name]} for name in runs}


def step_figures(run: Run, times: rounds.Times, base: rounds.Times | None) -> Figures:
    """What a run's times and its compiled step amount to.

    Args:
      run: that was timed.
      times: of its steps.
      base: those with the attention `none`, where they were measured.
    """
    images_per_second = run.experiment.config.batch_size / statistics.median(times.rounds)
    return {
        "images_per_second": round(images_per_second, 2),
        "step_ms": round(1e3 * statistics.median(times.steps), 3),
        "step_ms_p95": round(1e3 * float(np.percentile(times.steps, 95)), 3),
        "time_vs_none": None if base is None else round(rounds.ratio(times, base), 4),
        "utilisation": utilisation(run.experiment, images_per_second),
        "compile_seconds": round(run.compile_seconds, 2),
        **compiled.figures(run.program),
    }


def utilisation(experiment: Experiment, images_per_second: float) -> float | None:
    """The share of the chips' peak in bfloat16 that the network's multiply-adds take.

    Counts those of `train.summary` and not what the compiler makes of them, nor the rest.

    Args:
      experiment: the run.
      images_per_second: that it trains with.

    Returns:
      None where the peak is not known.
    """
    devices = experiment.mesh.devices
    peak = chips.peak_flops(devices.flat[0].device_kind)
    if peak is None:
        return None
    # A multiply-add is two operations, and the backward pass takes twice the forward's.
    flops = 6 * multiply_adds(experiment.model, experiment.train_split.image_shape)
    return round(flops * images_per_second / (peak * devices.size), 4)


def _fed(runs: Mapping[str, Run], steps: int) -> dict[str, Figures]:
    experiment = next(iter(runs.values())).experiment
    if not sources.is_on_disk(experiment.config.data):
        data = experiment.config.data
        print(f"not measured with a loader: {data.name} is not in {data.dir}", flush=True)
        return {name: {"fed_images_per_second": None, "data_wait": None} for name in runs}
    # Room for the images of the loader.
    for run in runs.values():
        run.arguments = ()
    feed = assembly.train_feed(dataclasses.replace(experiment, total_steps=2**31 - 1))
    return {name: fed_figures(run, feed, steps) for name, run in runs.items()}


def fed_figures(run: Run, feed: Feed, steps: int, clock: Clock = time.perf_counter) -> Figures:
    """Times steps as the trainer does them: each takes its images from a loader.

    Args:
      run: to be timed.
      feed: of the loader.
      steps: how many.
      clock: seconds from any point on.

    Returns:
      `fed_images_per_second`, and `data_wait`, the share of the time without images.
    """
    waited, pending = 0.0, collections.deque[Any]()
    with contextlib.closing(feed.batches(0)) as batches:
        for _ in range(READY):
            run.arguments = next(batches)
            run.step()
        run.wait()
        start = clock()
        for _ in range(steps):
            before = clock()
            run.arguments = next(batches)
            waited += clock() - before
            pending.append(run.step())
            if len(pending) > LAG:
                jax.block_until_ready(pending.popleft())
        run.wait()
        seconds = clock() - start
    images_per_second = steps * run.experiment.config.batch_size / seconds
    return {
        "fed_images_per_second": round(images_per_second, 2),
        "data_wait": round(waited / seconds, 4),
    }
