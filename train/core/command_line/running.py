"""Runs a command: what went wrong is told in one line, and by the exit code."""

import argparse
import contextlib
import faulthandler
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import logging as absl_logging

from train.core.command_line.parser import Parser
from train.core.devices import processes
from train.core.errors import ConfigError, PreemptedError, RunError, WeightsError, reason_and_file

DONE, FAILED, WRONG_USAGE, PREEMPTED = 0, 1, 2, 75

# The longest message; of a longer one the middle is left out.
MOST_CHARACTERS = 2000


def run(main: Callable[[argparse.Namespace], None], parser: Parser) -> NoReturn:
    """Runs a command with the arguments of this process, and exits.

    Args:
      main: The command; raises ConfigError or RunError for what a user can mend.
      parser: Its command line.
    """
    _mend_output()
    if sys.stderr is not None:
        faulthandler.enable()
    # Orbax warns of every checkpoint that has no evaluation, and tells of errors that it raises.
    absl_logging.set_verbosity(absl_logging.FATAL)
    # Where several files cannot be written Orbax raises one error, and asyncio tells of the others.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    # Orbax leaves coroutines behind where writing fails.
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
    sys.unraisablehook = _report_unraisable
    code = call(main, parser, sys.argv[1:])
    if code in (DONE, PREEMPTED):
        processes.leave(code)
    processes.fail(code)


def call(
    main: Callable[[argparse.Namespace], None], parser: Parser, arguments: Sequence[str]
) -> int:
    """Runs a command, and prints in one line what went wrong.

    Args:
      main: The command; raises ConfigError or RunError for what a user can mend.
      parser: Its command line.
      arguments: What follows the command's name.

    Returns:
      The exit code.
    """
    try:
        try:
            options = parser.parse(arguments)
        except SystemExit:
            # The help is printed.
            options = None
        if options is not None:
            main(options)
        sys.stdout.flush()
        return DONE
    except ConfigError as error:
        return _failed(WRONG_USAGE, error)
    except RunError as error:
        return _failed(FAILED, error)
    except BrokenPipeError:
        # Whoever read the output has enough of it.
        return FAILED
    except OSError as error:
        return _failed(FAILED, reason_and_file(error))
    except MemoryError as error:
        return _failed(
            FAILED,
            f"there is not enough memory: {error or 'none is left'}; a smaller config.batch_size "
            "takes less.",
        )
    except PreemptedError as error:
        # Whoever read the output may have left at the same Ctrl-C.
        with contextlib.suppress(OSError):
            processes.say(f"{error}; the same command goes on from there")
        return PREEMPTED
    except KeyboardInterrupt:
        return _failed(FAILED, "interrupted.")
    except Exception:
        traceback.print_exc()
        return FAILED


def _failed(code: int, error: object) -> int:
    lines = str(error).split("\n") if isinstance(error, WeightsError) else [str(error)]
    # It may go to a file on a full disk.
    with contextlib.suppress(OSError):
        print("error:", "\n".join(map(_one_line, lines)), file=sys.stderr)
    return code


def _one_line(message: str) -> str:
    line = "".join(character if character.isprintable() else " " for character in message)
    half = MOST_CHARACTERS // 2
    return line if len(line) <= MOST_CHARACTERS else f"{line[:half]} … {line[-half:]}"


def _mend_output() -> None:
    """Makes output possible where it is closed, or knows fewer characters."""
    if sys.stdout is None:
        # It stays open until the process ends.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _report_unraisable(unraisable: Any) -> None:
    # Orbax closes its event loops while writes that failed have still to answer.
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
