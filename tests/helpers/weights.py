"""How a file of weights is refused, in this process or in another."""

import resource
from pathlib import Path

from nam_jax import torch_import

MOST_BYTES = 2**28  # what reading a small file may take in memory
LONGEST_MESSAGE = 301


def refusal(path: Path) -> str | None:
    """Why a file is not read, in one short line; None where it is read."""
    try:
        torch_import.read(path)
    except ValueError as error:
        message = str(error)
    else:
        return None
    beginning = f"{path} cannot be read as weights: "
    assert message.startswith(beginning)
    reason = message.removeprefix(beginning)
    assert reason.isprintable()
    assert len(reason) <= LONGEST_MESSAGE
    return reason


def refused_within(path: Path) -> str:
    """What made the reader refuse a file, with little more memory than is taken already."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MOST_BYTES, before[1]))
    try:
        torch_import.read(path)
    except ValueError as error:
        return type(error.__cause__).__name__
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    return "nothing"
