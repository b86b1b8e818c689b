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
from collections.abc import Mapping
from typing import Any

from nam_jax.attention import has_nam_scales
from nam_jax.inspection import GateStatistics
from train.core import command_line
from train.core.config.fields import Config, replaced
from train.core.engine.evaluation import (
    checkpoint_weights,
    evaluate_gates,
    evaluate_split,
    pretrained_weights,
)
from train.core.engine.experiment import Evaluation, build_evaluation
from train.core.errors import ConfigError, RunError
from train.core.workdir import gates
from train.core.workdir.storage import write_json


def parser() -> command_line.Parser:
    """The command line."""
    parser = command_line.Parser(
        __doc__, "python -m train.evaluate --config FILE [--workdir DIR] [OPTION ...]"
    )
    parser.add_config()
    parser.add_workdir("the directory of the run; default: runs/<config name>")
    parser.add_which()
    parser.add_argument(
        "--gates", action="store_true", help="also looks at NAM's gates; of a run, for its report"
    )
    parser.add_json()
    return parser


def main(options: Namespace) -> None:
    """Prints the evaluation, one figure a line, and a table of the gates."""
    # Running statistics need no groups, and the devices here may not divide into them.
    config = replaced(options.config, {"model.sync_bn_devices": 1, "accumulate_steps": 1})
    attention = config.model.attention
    if options.gates and not has_nam_scales(attention):
        raise ConfigError(
            f"--gates: config.model.attention={attention!r} has no gates of NAM; leave "
            "--gates out, or evaluate a network with NAM."
        )
    evaluation, weights, step = _loaded(options, config)
    if step is not None:
        print(f"step {step}")
    result: dict[str, Any] = evaluate_split(evaluation, weights)
    layers: dict[str, GateStatistics] = {}
    if options.gates:
        halved, layers = evaluate_gates(evaluation, weights[""])
        result |= halved
    for name, value in result.items():
        print(name, value if isinstance(value, int) else f"{value:.6g}")
        if not math.isfinite(value):
            raise RunError(
                f"the {name} is {value}: the network overflows on these images. Look at "
                "config.data.mean and config.data.std, or take other weights."
            )
    if layers:
        print(gates.table(layers).text(), gates.LEGEND, sep="\n")
        result["gates"] = {path: layer._asdict() for path, layer in layers.items()}
    if options.json:
        write_json(options.json, result)
    if layers and step is not None:
        whose = {"step": step, "which": options.which, "split": config.data.eval_split}
        gates.write(command_line.workdir(options), {**whose, **result})


def _loaded(options: Namespace, config: Config) -> tuple[Evaluation, Mapping[str, Any], int | None]:
    """What an evaluation needs, the weights, and of a run the step of the checkpoint."""
    if config.model.pretrained:
        command_line.check_no_run(options)
        evaluation = build_evaluation(config)
        return evaluation, pretrained_weights(evaluation), None
    workdir = command_line.workdir(options)
    evaluation = build_evaluation(config)
    step, weights = checkpoint_weights(evaluation, workdir, options.which)
    return evaluation, weights, step


if __name__ == "__main__":
    command_line.run(main, parser())
