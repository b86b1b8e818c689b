"""Trains a network, or goes on where the same command was stopped.

Usage: python -m train.main --config FILE [--workdir DIR]
                            [--config.FIELD=VALUE ...]

  --config FILE          the experiment; configs/ holds examples
  --workdir DIR          where the run is written, on a disk or gs://BUCKET/DIR;
                         default: runs/<config name>
  --config.FIELD=VALUE   overrides a field; python -m train.config lists them
  --profile START:STOP   writes a trace of these steps (not to a bucket)

Several processes find one another where JAX knows the cluster; elsewhere:

  --coordinator HOST:PORT --num_processes N --process_id I
  --heartbeat_seconds S  after how long a lost process ends the others

Example:
  python -m train.main --config configs/digits_resnet20.py --config.epochs=10

Exit codes: 0 done, 1 failed, 2 the command line or the config is wrong,
75 told to stop (SIGTERM, Ctrl-C) and saved: the same command goes on.
"""

from absl import flags

from train import BEGIN
from train.core import command_line
from train.core.config.fields import LOCAL_FIELDS, flatten
from train.core.devices import compilation_cache, processes
from train.core.engine import experiment as experiment_lib
from train.core.engine import loop
from train.core.monitor import profiler
from train.core.monitor.timing import Laps

PROFILE = flags.DEFINE_string("profile", None, "The steps to trace, START:STOP.")


def main() -> None:
    """Runs the experiment of the command line and prints its result."""
    startup = Laps(BEGIN)
    startup.end("imports")
    workdir = command_line.workdir()
    span = None if PROFILE.value is None else profiler.parse(PROFILE.value, workdir)
    processes.start()
    config = command_line.CONFIG.value
    processes.check_agreement(
        {f"config.{name}": value for name, value in flatten(config) if name not in LOCAL_FIELDS}
    )
    compilation_cache.enable()
    experiment = experiment_lib.build(config)
    for split in (experiment.train_split, experiment.eval_split):
        processes.check_agreement(split.description)
    summary = loop.train(experiment, workdir, span, startup)
    if summary is not None:
        print(
            f"done: top-1 error {summary['top1_error']:.2f} %, top-5 error "
            f"{summary['top5_error']:.2f} % on {summary['num_eval_images']} images"
        )


if __name__ == "__main__":
    command_line.run(main, __doc__)
