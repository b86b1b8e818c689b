"""Evaluates a checkpoint of a run.

Usage: python -m train.evaluate --config FILE [--workdir DIR]
                                [--which last|best] [--config.FIELD=VALUE ...]

  --config FILE          the config that the run was started with
  --workdir DIR          the directory of the run; default: runs/<config name>
  --which last|best      the latest checkpoint, or that of the lowest error
  --config.FIELD=VALUE   as the run had it; free: data.eval_split, batch_size …

Example:
  python -m train.evaluate --config configs/digits_resnet20.py --which best

Exit codes: 0 done, 1 failed, 2 the command line or the config is wrong.
"""

from absl import flags

from train.core import command_line
from train.core.engine import evaluation
from train.core.engine import experiment as experiment_lib

WHICH = flags.DEFINE_enum("which", "last", ["last", "best"], "The checkpoint to evaluate.")


def main() -> None:
    """Prints the evaluation of the checkpoint, one figure a line."""
    config, workdir = command_line.CONFIG.value, command_line.workdir()
    # Running statistics need no groups, and the devices here may not divide into them.
    config.model.sync_bn_devices = 1
    config.accumulate_steps = 1
    experiment = experiment_lib.build(config)
    step, result = evaluation.evaluate_checkpoint(experiment, workdir, WHICH.value)
    print(f"step {step}")
    for name, value in result.items():
        print(f"{name} {value:.6g}")


if __name__ == "__main__":
    command_line.run(main, __doc__)
