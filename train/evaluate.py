r"""Evaluates a checkpoint of a run, or the weights of a file.

Of a run the config is that which it was started with; free are data.eval_split,
batch_size and others that do not change what a checkpoint means. With
config.model.pretrained that file is evaluated, and there need be no run.

Example:
  python -m train.evaluate --config configs/digits_resnet20.py --which best
  python -m train.evaluate --config configs/imagenet_mobilenet_v2.py \
      --config.model.attention=none --config.model.pretrained=mobilenet_v2.pth

Exit codes: 0 done, 1 failed, 2 the command line or the config is wrong.
"""

import math
from argparse import Namespace

from train.core import command_line
from train.core.config.fields import replaced
from train.core.engine.evaluation import evaluate_checkpoint, evaluate_pretrained
from train.core.engine.experiment import build_evaluation, build_experiment
from train.core.errors import RunError
from train.core.workdir.storage import write_json


def parser() -> command_line.Parser:
    """The command line."""
    parser = command_line.Parser(
        __doc__, "python -m train.evaluate --config FILE [--workdir DIR] [OPTION ...]"
    )
    parser.add_config()
    parser.add_workdir("the directory of the run; default: runs/<config name>")
    parser.add_which()
    parser.add_json()
    return parser


def main(options: Namespace) -> None:
    """Prints the evaluation, one figure a line."""
    # Running statistics need no groups, and the devices here may not divide into them.
    config = replaced(options.config, {"model.sync_bn_devices": 1, "accumulate_steps": 1})
    if config.model.pretrained:
        command_line.check_no_run(options)
        result = evaluate_pretrained(build_evaluation(config))
    else:
        workdir = command_line.workdir(options)
        step, result = evaluate_checkpoint(build_experiment(config), workdir, options.which)
        print(f"step {step}")
    for name, value in result.items():
        print(f"{name} {value:.6g}")
        if not math.isfinite(value):
            raise RunError(f"the {name} is {value}: the network overflows on these images.")
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    command_line.run(main, parser())
