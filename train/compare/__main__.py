r"""Trains a network with several attentions and seeds, and compares what comes out.

Writes results.csv, results.md and results.png after every run. The same
command goes on where it was stopped. Needs pip install -e '.[train,plot]'.

Example:
  python -m train.compare --config configs/digits_resnet20.py \
      --workdir runs/digits --attention none,se,nam --seeds 0,1,2

Exit codes: 0 done, 1 failed, 2 the command line or the config is wrong,
75 told to stop (SIGTERM, Ctrl-C) and saved: the same command goes on.
"""

from argparse import Namespace

from train.compare.runs import asked
from train.compare.train_all import train_all, write_tables
from train.core import command_line, plotting
from train.core.command_line.values import listed, not_empty
from train.core.errors import ConfigError


def parser() -> command_line.Parser:
    """The command line."""
    parser = command_line.Parser(
        __doc__, "python -m train.compare --workdir DIR --config FILE|--report [OPTION ...]"
    )
    add = parser.add_argument
    parser.add_config(is_needed=False)
    parser.add_workdir("where all runs and the tables are written")
    parser.add_attention("those that are compared; default: none and the config's")
    add(
        "--seeds",
        metavar="N,...",
        type=listed,
        help="seeds that each is trained with; default: the config's",
    )
    add(
        "--sparsity",
        metavar="P,...",
        type=listed,
        help="strengths of the penalty for NAM; default: the config's",
    )
    add(
        "--only",
        metavar="K/N",
        type=not_empty,
        help="every Nth run from the Kth on: N machines share the work",
    )
    add("--report", action="store_true", help="only the tables, of the runs that are in DIR")
    return parser


def main(options: Namespace) -> None:
    """Trains what is not trained yet, and makes the tables."""
    plotting.check_installed()
    workdir = command_line.named_workdir(options, "the comparison")
    if options.report:
        _check_report(options)
    else:
        if options.config is None:
            raise ConfigError(command_line.NO_CONFIG)
        runs = asked(
            options.config, options.attention, options.seeds, options.sparsity, options.only
        )
        train_all(runs, workdir)
    print(write_tables(workdir))


def _check_report(options: Namespace) -> None:
    """Checks that no option is given which would choose runs: a report is of all."""
    for name in ("config", "attention", "seeds", "sparsity", "only"):
        if getattr(options, name) is not None:
            raise ConfigError(f"--{name}: --report is of all runs that are there; leave it out.")


if __name__ == "__main__":
    command_line.run(main, parser())
