r"""Measures how fast training steps are, of several variants in turns.

First with random images on the device, then, if the dataset is on disk, each
by itself with the config's loader: the last two columns.

Example:
  python -m train.benchmark --config configs/digits_resnet20.py \
      --attention none,nam

Exit codes: 0 done, 1 failed, 2 the command line or the config is wrong.
"""

from argparse import Namespace

from train.benchmark import loader
from train.benchmark.variants import UNCHANGED, measure_variants, with_fields
from train.core import command_line
from train.core.command_line.values import each, not_empty, number, whole_number
from train.core.config.attentions import attention_name, with_attentions
from train.core.config.data_fields import MOST_WORKERS
from train.core.errors import ConfigError
from train.core.workdir.storage import write_json

# How long the loader is measured with each number of threads.
SECONDS = 10.0


def parser() -> command_line.Parser:
    """The command line."""
    parser = command_line.Parser(
        __doc__, "python -m train.benchmark [--loader-only] --config FILE [OPTION ...]"
    )
    parser.add_config()
    parser.add_attention("in place of the config's; several take turns")
    parser.add_argument(
        "--also",
        metavar="A=1[+B=2]",
        type=not_empty,
        action="append",
        help="also with these fields, in turns; repeat it for more",
    )
    parser.add_steps()
    parser.add_argument(
        "--loader-only",
        action="store_true",
        help="the streaming loader alone, without a network",
    )
    parser.add_argument(
        "--workers",
        metavar="N[,M...]",
        type=each(whole_number(1, MOST_WORKERS)),
        help="with it: numbers of threads; default: 1 and one a CPU core",
    )
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=number(0.1, 3600),
        help=f"with it: how long each number is measured; default: {SECONDS:g}",
    )
    parser.add_json()
    return parser


def main(options: Namespace) -> None:
    """Measures, and prints a table and JSON."""
    config, also = options.config, options.also or []
    if also and options.attention:
        raise ConfigError("--also and --attention each name what takes turns; give one of them.")
    _check_belongs(options)
    if options.loader_only:
        seconds = SECONDS if options.seconds is None else options.seconds
        figures = loader.run_all(with_fields(config, also), options.workers, seconds)
    else:
        names = options.attention or [attention_name(config)]
        configs = with_fields(config, also) if also else with_attentions(config, names)
        base = UNCHANGED if also else "none"
        figures = measure_variants(configs, options.config_name, options.steps, base)
    if options.json:
        write_json(options.json, figures)


def _check_belongs(options: Namespace) -> None:
    """Checks that no option is given which is for the other kind of measurement."""
    if options.loader_only and options.attention:
        raise ConfigError("--attention: --loader-only runs no network; leave one of them out.")
    for name in ("workers", "seconds"):
        if not options.loader_only and getattr(options, name) is not None:
            raise ConfigError(f"--{name} goes with --loader-only; give both, or neither.")


if __name__ == "__main__":
    command_line.run(main, parser())
