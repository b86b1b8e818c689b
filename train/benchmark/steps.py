"""Measures training steps: with random images on the devices, then with those of the loader."""

import collections
import contextlib
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from nam_jax.models.size import multiply_adds
from train.benchmark import turns
from train.core.config.fields import Config
from train.core.config.model_fields import ModelConfig
from train.core.config.optimizer_fields import OptimizerConfig
from train.core.config.spec import MOST_STEPS
from train.core.data.feed import Feed
from train.core.data.streaming import READY
from train.core.devices import chips, program_cost
from train.core.devices.busy import busy
from train.core.engine.compiled_steps import lower_train_step
from train.core.engine.experiment import Experiment, build_experiment
from train.core.engine.feeds import train_example, train_feed
from train.core.engine.state import initial_state
from train.core.monitor.log import LAG

# Batches of a split that is not on disk.
BATCHES = 4

Figures = dict[str, Any]
Clock = Callable[[], float]


class CompiledStep:
    """A compiled training step with its state and a batch, or split, of random images."""

    def __init__(self, experiment: Experiment, images: Any):
        """Compiles the step that the trainer runs.

        Args:
          experiment: Experiment that the step is of.
          images: Images and labels from `random_images`.
        """
        self.experiment = experiment
        self._images = images
        self._state = initial_state(experiment)
        begin = time.perf_counter()
        example = self._arguments(0)
        self.program = lower_train_step(experiment, self._state, example).compile()
        self.compile_seconds = time.perf_counter() - begin

    def _arguments(self, count: int) -> tuple[Any, ...]:
        is_grouped = self.experiment.is_grouped
        return (self._images, np.int32(count)) if is_grouped else (self._images,)

    def start(self, count: int) -> None:
        """Starts so many steps, as many in a dispatch as the trainer does."""
        longest = self.experiment.loader.longest_dispatch
        for done in range(0, count, longest):
            self.dispatch(self._arguments(min(longest, count - done)))

    def dispatch(self, arguments: tuple[Any, ...]) -> Any:
        """Starts steps, which use the state up; gives their metrics."""
        self._state, metrics = self.program(self._state, *arguments)
        return metrics

    def wait(self) -> None:
        """Returns when every step that was started is done."""
        jax.block_until_ready(self._state)

    def drop_images(self) -> None:
        """Makes room for those of a loader; no more steps can be started without one."""
        self._images = None


def experiment_of(config: Config) -> Experiment:
    """Builds a run whose dataset need not be on disk.

    Raises:
      ConfigError: the config does not fit the dataset or the devices.
    """
    return build_experiment(config, unread_examples=BATCHES * config.batch_size)


def random_images(experiment: Experiment) -> Any:
    """Random images and labels on the devices, as the loader of the config would lay them."""
    example = train_example(experiment)[0]
    rng, fields = np.random.default_rng(0), example._asdict()
    count = len(fields["labels"])
    values = {
        "images": rng.integers(0, 256, fields["images"].shape, np.uint8),
        "labels": rng.integers(0, experiment.train_split.num_classes, count, np.int32),
        "order": np.arange(count, dtype=np.int32),
        "mask": np.ones(count, bool),
        "bad_records": np.zeros(count, np.int32),
    }
    return type(example)(
        *(jax.device_put(values[name], shape.sharding) for name, shape in fields.items())
    )


def measure(experiments: Mapping[str, Experiment], steps: int, base: str) -> dict[str, Figures]:
    """Measures the training steps of several variants of a run.

    Args:
      experiments: Experiments by name.
      steps: Number of steps of each that are timed one by one, as many together, and as many with
        the loader's images.
      base: Name of the one that the others are compared with; it need not be there.

    Returns:
      The figures by name; those with the loader's images are None where they are not on disk.
    """
    images: dict[Any, Any] = {}
    runs = {}
    with busy("compiling", len(experiments), "networks") as work:
        for name, experiment in experiments.items():
            # Variants with images of the same shapes share them.
            kind = (experiment.train_split.num_classes, train_example(experiment)[0])
            if kind not in images:
                images[kind] = random_images(experiment)
            runs[name] = CompiledStep(experiment, images[kind])
            work.advance()
    del images
    with busy("timing", 2 * steps * len(runs), "steps") as work:
        times = turns.take_turns(runs, steps, told=work.advance)
    figures = {
        name: step_figures(run, times[name], base, times.get(base)) for name, run in runs.items()
    }
    fed = _fed(runs, steps)
    return {name: {**figures[name], **fed[name]} for name in runs}


def step_figures(
    run: CompiledStep, times: turns.Times, base: str, base_times: turns.Times | None
) -> Figures:
    """What a run's times and its compiled step amount to.

    Args:
      run: Step that was timed.
      times: Times of the step.
      base: Name of the variant that it is compared with.
      base_times: Times of that one, where they were measured.
    """
    images_per_second = run.experiment.config.batch_size / statistics.median(times.rounds)
    ratio = None if base_times is None else round(turns.ratio(times, base_times), 4)
    return {
        "images_per_second": round(images_per_second, 2),
        "step_ms": round(1e3 * statistics.median(times.steps), 3),
        "step_ms_p95": round(1e3 * float(np.percentile(times.steps, 95)), 3),
        f"time_vs_{base}": ratio,
        "utilisation": utilisation(run.experiment, images_per_second),
        "compile_seconds": round(run.compile_seconds, 2),
        **program_cost.figures(run.program),
    }


def utilisation(experiment: Experiment, images_per_second: float) -> float | None:
    """The share of the chips' peak in bfloat16 that the network's multiply-adds take.

    Counts those of `train.summary` and not what the compiler makes of them, nor the rest.

    Args:
      experiment: Experiment of the run.
      images_per_second: Speed that it trains with.

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


def _fed(runs: Mapping[str, CompiledStep], steps: int) -> dict[str, Figures]:
    there = {name: run for name, run in runs.items() if run.experiment.source.is_on_disk}
    data = [run.experiment.config.data for name, run in runs.items() if name not in there]
    for missing in dict.fromkeys(f"{one.name} is not in {one.dir}" for one in data):
        print(f"not measured with a loader: {missing} (config.data.dir)", flush=True)
    for run in runs.values():
        run.drop_images()
    figures: dict[str, Figures]
    figures = {name: {"fed_images_per_second": None, "data_wait": None} for name in runs}
    with busy("timing with the loader"):
        for _, names in itertools.groupby(there, lambda name: _of_feed(there[name])):
            figures |= _fed_alike({name: there[name] for name in names}, steps)
    return figures


def _of_feed(run: CompiledStep) -> Config:
    """All of a config that its feed may depend on."""
    return dataclasses.replace(
        run.experiment.config, model=ModelConfig(), optimizer=OptimizerConfig()
    )


def _fed_alike(runs: Mapping[str, CompiledStep], steps: int) -> dict[str, Figures]:
    """Figures of runs that one feed is for: a split that is kept on the device is read once."""
    experiment = next(iter(runs.values())).experiment
    endless = dataclasses.replace(experiment, total_steps=MOST_STEPS)
    feed = train_feed(endless)
    return {
        name: fed_figures(run, feed, endless.dispatches(0), steps) for name, run in runs.items()
    }


def fed_figures(
    run: CompiledStep,
    feed: Feed,
    dispatches: Iterator[range],
    steps: int,
    clock: Clock = time.perf_counter,
) -> Figures:
    """Times steps as the trainer does them: their images come from a loader.

    Args:
      run: Step to be timed.
      feed: Feed of the training split.
      dispatches: Steps that each of the feed's arguments is for.
      steps: Number of steps, at least.
      clock: Gives seconds from any point on.

    Returns:
      `fed_images_per_second`, and `data_wait`, the share of the time without images.
    """
    waited, done, pending = 0.0, 0, collections.deque[Any]()
    with contextlib.closing(feed.batches(0)) as batches:
        for _ in range(READY):
            next(dispatches)
            run.dispatch(next(batches))
        run.wait()
        begin = clock()
        while done < steps:
            before = clock()
            arguments = next(batches)
            waited += clock() - before
            pending.append(run.dispatch(arguments))
            done += len(next(dispatches))
            if len(pending) > LAG:
                jax.block_until_ready(pending.popleft())
        run.wait()
        seconds = clock() - begin
    return {
        "fed_images_per_second": round(done * run.experiment.config.batch_size / seconds, 2),
        "data_wait": round(waited / seconds, 4),
    }
