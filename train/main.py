"""Trains a network, or goes on where the same command was stopped.

Several processes find one another where JAX knows the cluster; elsewhere by
--coordinator, --num_processes and --process_id.

Example:
  python -m train.main --config configs/digits_resnet20.py --config.epochs=10

Exit codes: 0 done, 1 failed, 2 the command line or the config is wrong,
75 told to stop (SIGTERM, Ctrl-C) and saved: the same command goes on.
"""

from argparse import Namespace

from train import BEGIN
from train.core import command_line
from train.core.command_line.values import not_empty, whole_number
from train.core.config.fields import flatten, marked
from train.core.config.spec import MOST_STEPS, Mark
from train.core.devices import compilation_cache, processes
from train.core.engine import loop
from train.core.engine.experiment import build_experiment
from train.core.monitor import profiler
from train.core.monitor.timing import Laps


def parser() -> command_line.Parser:
    """The command line."""
    parser = command_line.Parser(
        __doc__, "python -m train.main --config FILE [--workdir DIR] [OPTION ...]"
    )
    parser.add_config()
    parser.add_workdir(
        "where the run is written, on a disk or gs://BUCKET/DIR; default: runs/<config name>"
    )
    parser.add_argument(
        "--profile",
        metavar="START:STOP",
        type=not_empty,
        help="writes a trace of these steps (not to a bucket)",
    )
    parser.add_argument(
        "--coordinator", metavar="HOST:PORT", type=not_empty, help="address of the first process"
    )
    parser.add_argument(
        "--num_processes",
        metavar="N",
        type=whole_number(1, MOST_STEPS),
        help="number of processes in all",
    )
    parser.add_argument(
        "--process_id",
        metavar="I",
        type=whole_number(0, MOST_STEPS),
        help="number of this one, from 0 on",
    )
    parser.add_argument(
        "--heartbeat_seconds",
        metavar="S",
        type=whole_number(1, 86_400),
        default=100,
        help="after how long a lost process ends the others",
    )
    return parser


def main(options: Namespace) -> None:
    """Runs the experiment of the command line and prints its result."""
    startup = Laps(BEGIN)
    startup.end("imports")
    workdir = command_line.workdir(options)
    span = None if options.profile is None else profiler.parse(options.profile, workdir)
    processes.start(
        options.coordinator, options.num_processes, options.process_id, options.heartbeat_seconds
    )
    config, local = options.config, marked(Mark.LOCAL)
    # Here already: one that does not fit would end some of the processes alone.
    processes.check_agreement(
        {f"config.{name}": value for name, value in flatten(config) if name not in local}
    )
    compilation_cache.enable()
    summary = loop.train(build_experiment(config), workdir, span, startup)
    if summary is not None:
        print(
            f"done: top-1 error {summary['top1_error']:.2f} %, top-5 error "
            f"{summary['top5_error']:.2f} % on {summary['num_eval_images']} images"
        )


if __name__ == "__main__":
    command_line.run(main, parser())
