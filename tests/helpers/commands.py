"""Commands as a user starts them, in a process of their own."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def call(*arguments: str, command: str = "train.main") -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, from the root of the repository."""
    return subprocess.run(
        [sys.executable, "-m", command, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
