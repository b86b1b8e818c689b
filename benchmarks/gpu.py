"""Runs what is to be measured on a GPU, one job after another, and prints one JSON.

DIR gets a file of figures and a log of each job; figures of jobs that were run
earlier are printed too. Without names, all jobs run. No dataset is needed. In
an environment with '.[train,cuda,peers]'.

Example:
  python -m benchmarks.gpu --out DIR

Exit codes: 0 done, 1 a job failed, 2 the command line is wrong.
"""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

from train.core import command_line
from train.core.command_line.values import not_empty, one_of
from train.core.errors import RunError

ALL = "none,nam_channel,nam,half,se,bam,cbam,tam,eca,simam,coordatt"
JOBS = {
    "cifar100": ("train.benchmark", "cifar100_resnet50", ALL),
    "imagenet": ("train.benchmark", "imagenet_resnet50", ALL),
    "cifar100_vs_torch": ("benchmarks.step_vs_torch", "cifar100_resnet50", "none,nam_channel,nam"),
    "imagenet_vs_torch": ("benchmarks.step_vs_torch", "imagenet_resnet50", "none,nam_channel,nam"),
}


def run_job(name: str, out: Path, steps: int) -> int:
    """Runs a job.

    Args:
      name: Name of the job, one of JOBS.
      out: Directory of its figures and its log.
      steps: Number of steps of each variant that are timed.

    Returns:
      The exit code.
    """
    module, config, attentions = JOBS[name]
    figures = out / f"{name}.json"
    # Those of an earlier run would pass for this one's where it fails.
    figures.unlink(missing_ok=True)
    command = [sys.executable, "-m", module, f"--config=configs/{config}.py"]
    command += [f"--attention={attentions}", f"--steps={steps}", f"--json={figures}"]
    print(f"{name}: begins, which takes minutes", file=sys.stderr, flush=True)
    with (out / f"{name}.log").open("w") as log:
        code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    print(f"{name}: exit code {code}", file=sys.stderr, flush=True)
    return code


def parser() -> command_line.Parser:
    """The command line."""
    parser = command_line.Parser(
        __doc__, "python -m benchmarks.gpu --out DIR [--steps N] [JOB ...]"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=not_empty, required=True, help="where figures and logs go"
    )
    parser.add_argument(
        "jobs", metavar="JOB", nargs="*", type=one_of(*JOBS), help=f"of {', '.join(JOBS)}"
    )
    parser.add_steps()
    return parser


def main(options: Namespace) -> None:
    """Runs the jobs.

    Raises:
      RunError: some of them failed.
    """
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    failed = [name for name in options.jobs or JOBS if run_job(name, out, options.steps)]
    files = sorted(out.glob("*.json"))
    print(json.dumps({file.stem: json.loads(file.read_text()) for file in files}))
    if failed:
        raise RunError(f"failed: {', '.join(failed)}; {out}/NAME.log says why.")


if __name__ == "__main__":
    command_line.run(main, parser())
