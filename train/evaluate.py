"""Evaluates a checkpoint of a run.

The config is that which the run was started with; free are data.eval_split,
batch_size and others that do not change what a checkpoint means.

Example:
  python -m train.evaluate --config configs/digits_resnet20.py --which best

Exit codes: 0 done, 1 failed, 2 the command line or the config is wrong.
"""

from argparse import Namespace

from train.core import command_line
from train.core.config.fields import replaced
from train.core.engine.evaluation import evaluate_checkpoint
from train.core.engine.experiment import build_experiment


def parser() -> command_line.Parser:
    """The command line."""
    parser = command_line.Parser(
        __doc__, "python -m train.evaluate --config FILE [--workdir DIR] [OPTION ...]"
    )
    parser.add_config()
    parser.add_workdir("the directory of the run; default: runs/<config name>")
    parser.add_which()
    return parser


def main(options: Namespace) -> None:
    """Prints the evaluation of the checkpoint, one figure a line."""
    workdir = command_line.workdir(options)
    # Running statistics need no groups, and the devices here may not divide into them.
    config = replaced(options.config, {"model.sync_bn_devices": 1, "accumulate_steps": 1})
    step, result = evaluate_checkpoint(build_experiment(config), workdir, options.which)
    print(f"step {step}")
    for name, value in result.items():
        print(f"{name} {value:.6g}")


if __name__ == "__main__":
    command_line.run(main, parser())
