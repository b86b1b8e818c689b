"""What all commands share: flags, help, and errors in one line with an exit code."""

import contextlib
import difflib
import io
import itertools
import os
import re
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from train.core.config.checks import refusal, validate
from train.core.config.fields import FIELDS
from train.core.devices import processes
from train.core.errors import ConfigError, PreemptedError, RunError
from train.core.workdir import storage

DONE, FAILED, WRONG_USAGE, PREEMPTED = 0, 1, 2, 75

# The longest message; of a longer one the middle is left out.
MOST_CHARACTERS = 2000

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The experiment's config file.",
    # It would read a --flagfile, which is no option here, as soon as this module is imported.
    sys_argv=[argument for argument in sys.argv if "flagfile" not in argument],
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run is written.")


def run(
    main: Callable[..., None],
    usage: str,
    actions: Sequence[str] = (),
    needs_config: Callable[[], bool] = lambda: True,
) -> None:
    """Parses the command line, runs main, and exits.

    Args:
      main: the command; raises ConfigError or RunError for what a user can mend.
      usage: what --help prints; options that it does not tell of are refused.
      actions: what the command can do, if that is more than one thing; main is called with the
        one that was asked for.
      needs_config: whether the options ask for something that --config is for.
    """

    def guarded(argv: Sequence[str]) -> None:
        try:
            main(*argv[1:])
            sys.stdout.flush()
        except ConfigError as error:
            _exit(WRONG_USAGE, error)
        except RunError as error:
            _exit(FAILED, error)
        except BrokenPipeError:
            # Whoever read the output has enough of it.
            processes.fail(FAILED)
        except OSError as error:
            # Those of a bucket have many lines.
            _exit(FAILED, str(error).partition("\n")[0])
        except MemoryError as error:
            _exit(FAILED, f"there is not enough memory: {error or 'none is left'}.")
        except PreemptedError as error:
            processes.say(f"{error}; the same command goes on from there")
            sys.exit(PREEMPTED)
        except KeyboardInterrupt:
            _exit(FAILED, "interrupted; the same command goes on with what is done already.")
        except Exception:
            traceback.print_exc()
            processes.fail(FAILED)

    _mend_output()
    app.run(guarded, flags_parser=lambda argv: _parse(argv, usage, actions, needs_config))


def workdir() -> epath.Path:
    """The directory of the run: --workdir, or runs/<config name>.

    Raises:
      ConfigError: --workdir names a bucket that cannot be used.
    """
    if WORKDIR.value is None:
        return epath.Path("runs") / config_name()
    return named_workdir()


def named_workdir() -> epath.Path:
    """The directory that --workdir names.

    Raises:
      ConfigError: it is missing, or names a bucket that cannot be used.
    """
    if WORKDIR.value is None:
        raise ConfigError("--workdir is missing; name the directory.")
    return storage.locate(WORKDIR.value)


def config_name() -> str:
    """The name of the config's file, without its ending."""
    return Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem


def output(name: str, value: str | None) -> Path | None:
    """The file that an option names, before the work whose figures it is for.

    Args:
      name: of the option.
      value: of the option.

    Raises:
      ConfigError: the file could not be written.
    """
    if value is None:
        return None
    path = Path(os.path.expanduser(value))
    try:
        is_right = path.is_file() or (path.parent.is_dir() and not path.exists())
        is_right = is_right and os.access(path if path.exists() else path.parent, os.W_OK)
    except OSError:
        is_right = False
    if not is_right:
        raise ConfigError(f"--{name}: got {value!r}; name a file in a directory that is there.")
    return path


def _parse(
    argv: Sequence[str], usage: str, actions: Sequence[str], needs_config: Callable[[], bool]
) -> list[str]:
    if any(re.fullmatch(r"--?h(elp)?", argument) for argument in argv[1:]):
        _print_help(usage)
    # Orbax warns of every checkpoint that has no evaluation, and tells of errors that it raises.
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = _report_unraisable
    options = set(re.findall(r"--([a-z][\w-]*)", usage))
    try:
        _check_names(argv[1:], options)
        rest = flags.FLAGS(argv)
        _check_values(options - {"config"})
        _check_actions(rest[1:], actions)
        if needs_config():
            _check_config()
    except ConfigError as error:
        _exit(WRONG_USAGE, error)
    # A config file is code: anything may come out of it.
    except SystemExit:
        _exit(WRONG_USAGE, "--config: the file gives no config: it ends the program.")
    except Exception as error:
        _exit(WRONG_USAGE, _explain(error))
    return rest


def _print_help(usage: str) -> NoReturn:
    try:
        print(usage.strip(), flush=True)
    except BrokenPipeError:
        processes.fail(FAILED)
    except OSError as error:
        _exit(FAILED, error)
    sys.exit(DONE)


def _check_names(arguments: Sequence[str], options: Collection[str]) -> None:
    """Refuses options that the usage does not tell of: libraries have theirs, which may do harm."""
    names = []
    for argument in itertools.takewhile(lambda argument: argument != "--", arguments):
        if not argument.isprintable():
            raise ConfigError(f"the argument {argument!r} holds characters that cannot be printed.")
        # What begins with a digit is a negative number, and so a value.
        names += re.findall(r"^--?([^\d.=-][^=]*)", argument)
    for given in names:
        name = given if given in options else given.removeprefix("no")
        if name.startswith("config.") and "config" in options:
            _check_field(name.removeprefix("config."))
        elif name not in options:
            near = difflib.get_close_matches(given, options, n=1)
            hint = f"did you mean --{near[0]}?" if near else "--help lists the options."
            raise ConfigError(f"unknown option --{given}; {hint}")
    if names.count("config") > 1:
        raise ConfigError("--config is given twice; name one file.")
    fields = [name for name in names if "config." in name]
    if fields and "config" not in names:
        raise ConfigError(f"{fields[0]}: --config is missing; configs/ holds examples.")


def _check_field(name: str) -> None:
    """Refuses a field that does not exist, and says which name may be meant."""
    if name in FIELDS:
        return
    group = [field for field in FIELDS if field.startswith(f"{name}.")]
    near = group or difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.5)
    hint = f"; did you mean config.{near[0]}?" if near else "; python -m train.config lists them."
    raise ConfigError(f"config.{name}: there is no such field{hint}")


def _check_values(options: Iterable[str]) -> None:
    """Refuses empty values, which would mean the default."""
    for name in options:
        if flags.FLAGS[name].present and flags.FLAGS[name].value in ("", []):
            raise ConfigError(f"--{name} is empty; give it a value, or leave it out.")


def _check_actions(given: Sequence[str], actions: Sequence[str]) -> None:
    if actions and (not given or given[0] not in actions):
        got = f"; got {given[0]!r}" if given else ""
        raise ConfigError(f"name what to do: {' or '.join(actions)}{got}.")
    for surplus in given[1 if actions else 0 :]:
        raise ConfigError(f"unknown argument {surplus!r}; --help lists the options.")


def _check_config() -> None:
    if not flags.FLAGS["config"].present:
        raise ConfigError("--config is missing; configs/ holds examples.")
    if CONFIG.value is None:
        raise ConfigError("--config: get_config() of the file returns nothing.")
    validate(CONFIG.value)


def _explain(error: Exception) -> str:
    message = str(error).strip()
    match = re.match(r"flag --config\.([\w.]+)=", message)
    if match and match[1] in FIELDS:
        # Behind the value stands what the parser said of it.
        value = message[match.end() :].removesuffix(f": {error.__context__}")
        return refusal(match[1], value)
    # What the file raises is wrapped, together with its traceback, where it is one of these.
    if isinstance(error, (flags.Error, ValueError)) and "Traceback" not in message:
        return message
    kind = "" if "Traceback" in message else f"{type(error).__name__}: "
    reason = next(reversed(message.splitlines()), "nothing more is known").strip()
    return f"--config: the file gives no config: {kind}{reason}"


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


def _exit(code: int, error: object) -> NoReturn:
    # It may go to a file on a full disk.
    with contextlib.suppress(OSError):
        print(f"error: {_one_line(str(error))}", file=sys.stderr)
    processes.fail(code)


def _one_line(text: str) -> str:
    line = "".join(character if character.isprintable() else " " for character in text)
    half = MOST_CHARACTERS // 2
    return line if len(line) <= MOST_CHARACTERS else f"{line[:half]} … {line[-half:]}"
