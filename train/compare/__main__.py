r"""Trains a network with several attentions and seeds, and compares what comes out.

Usage: python -m train.compare --config FILE --workdir DIR
                               [--attention NAME,...] [--seeds N,...]
                               [--sparsity P,...] [--only K/N]
                               [--config.FIELD=VALUE ...]
       python -m train.compare --report --workdir DIR

  --config FILE          the experiment; configs/ holds examples
  --workdir DIR          where all runs and the tables are written
  --attention NAME,...   default: none and the config's
  --seeds N,...          default: the config's
  --sparsity P,...       strengths of the penalty for NAM; default: the config's
  --only K/N             every Nth run from the Kth on: N machines share the work
  --report               only the tables, of the runs that are in DIR
  --config.FIELD=VALUE   overrides a field; python -m train.config lists them

Writes estimates.csv, estimates.md and estimates.png after every run. The same
command goes on where it was stopped. Needs pip install '.[train,plot]'.

Example:
  python -m train.compare --config configs/digits_resnet20.py \
      --workdir runs/digits --attention none,se,nam --seeds 0,1,2

Exit codes: 0 done, 1 failed, 2 the command line or the config is wrong,
75 told to stop (SIGTERM, Ctrl-C) and saved: the same command goes on.
"""

from absl import flags

from train.compare.runs import asked
from train.compare.train_all import train_all, write_tables
from train.core import attentions, command_line, plotting

SEEDS = flags.DEFINE_list("seeds", None, "The seeds of the runs with each attention.")
SPARSITY = flags.DEFINE_list("sparsity", None, "Strengths of the penalty.")
ONLY = flags.DEFINE_string("only", None, "K/N: every Nth run from the Kth on.")
REPORT = flags.DEFINE_bool("report", False, "Only make the tables.")


def main() -> None:
    """Trains what is not trained yet, and makes the tables."""
    plotting.check_installed()
    workdir = command_line.named_workdir()
    if not REPORT.value:
        config = command_line.CONFIG.value
        names = attentions.asked(config) if attentions.ATTENTION.value else None
        train_all(asked(config, names, SEEDS.value, SPARSITY.value, ONLY.value), workdir)
    print(write_tables(workdir))


if __name__ == "__main__":
    command_line.run(main, __doc__, needs_config=lambda: not REPORT.value)
