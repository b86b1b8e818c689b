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
from train.core.command_line.values import not_empty, number
from train.core.config.attentions import attention_name, with_attentions
from train.core.errors import ConfigError
from train.core.workdir.storage import write_json


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
        type=loader.numbers_of_workers,
        help="numbers of threads; default: 1 and one a CPU core",
    )
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=number(0.1, 3600),
        default=10.0,
        help="how long each number is measured; default: 10",
    )
    parser.add_json()
    return parser


def main(options: Namespace) -> None:
    """Measures, and prints a table and JSON."""
    config, also = options.config, options.also or []
    if also and options.attention:
        raise ConfigError("--also and --attention each name what takes turns; give one of them.")
    if options.loader_only:
        figures = loader.run_all(with_fields(config, also), options.workers, options.seconds)
    else:
        names = options.attention or [attention_name(config)]
        configs = with_fields(config, also) if also else with_attentions(config, names)
        base = UNCHANGED if also else "none"
        figures = measure_variants(configs, options.config_name, options.steps, base)
    if options.json:
        write_json(options.json, figures)


if __name__ == "__main__":
    command_line.run(main, parser())
