"""Runs what is to be measured on a GPU, one job after another, and prints one JSON.

python -m benchmarks.gpu --out DIR [--steps N] [JOB ...]

DIR gets a file of figures and a log of each job; those of earlier runs are printed too. Without
names, all jobs run. No dataset is needed. In an environment with '.[train,cuda,peers]'.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ALL = "none,nam_channel,nam,half,se,bam,cbam,tam,eca,simam,coordatt"
JOBS = {
    "cifar100": ("train.benchmark", "cifar100_resnet50", ALL),
    "imagenet": ("train.benchmark", "imagenet_resnet50", ALL),
    "cifar100_vs_torch": ("benchmarks.step_vs_torch", "cifar100_resnet50", "none,nam_channel,nam"),
    "imagenet_vs_torch": ("benchmarks.step_vs_torch", "imagenet_resnet50", "none,nam_channel,nam"),
}


def main() -> None:
    """Runs the jobs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", default="50")
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"of {', '.join(JOBS)}")
    options = parser.parse_args()
    for name in options.jobs:
        if name not in JOBS:
            parser.error(f"JOB: got {name!r}; allowed: {', '.join(JOBS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.jobs or JOBS:
        module, config, attentions = JOBS[name]
        command = [sys.executable, "-m", module, f"--config=configs/{config}.py"]
        command += [f"--attention={attentions}", f"--steps={options.steps}"]
        print(f"{name}: begins, which takes minutes", file=sys.stderr, flush=True)
        with (options.out / f"{name}.log").open("w") as log:
            command.append(f"--json={options.out / name}.json")
            code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
        print(f"{name}: exit code {code}", file=sys.stderr, flush=True)
    files = sorted(options.out.glob("*.json"))
    print(json.dumps({file.stem: json.loads(file.read_text()) for file in files}))


if __name__ == "__main__":
    main()
