"""What all commands share: their options, their help, and errors in one line with an exit code."""

from train.core.command_line.named import (
    RUN_OR_WEIGHTS,
    check_no_run,
    config_of_weights,
    named_workdir,
    workdir,
)
from train.core.command_line.parser import NO_CONFIG, Parser
from train.core.command_line.running import DONE, FAILED, PREEMPTED, WRONG_USAGE, call, run

__all__ = [
    "DONE",
    "FAILED",
    "NO_CONFIG",
    "PREEMPTED",
    "RUN_OR_WEIGHTS",
    "WRONG_USAGE",
    "Parser",
    "call",
    "check_no_run",
    "config_of_weights",
    "named_workdir",
    "run",
    "workdir",
]
