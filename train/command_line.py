"""What all commands share: flags, help, and errors in one line with an exit code."""

import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from train import distributed, storage
from train.config import FIELDS, refusal, validate
from train.errors import ConfigError, PreemptedError, RunError

DONE, FAILED, WRONG_USAGE, PREEMPTED = 0, 1, 2, 75

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.")
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
      usage: what --help prints.
      actions: what the command can do, if that is more than one thing; main is called with the
        one that was asked for.
      needs_config: whether the options ask for something that --config is for.
    """

    def guarded(argv: Sequence[str]) -> None:
        try:
            main(*argv[1:])
        except ConfigError as error:
            _exit(WRONG_USAGE, error)
        except RunError as error:
            _exit(FAILED, error)
        except OSError as error:
            # Those of a bucket have many lines.
            _exit(FAILED, str(error).partition("\n")[0])
        except PreemptedError as error:
            distributed.say(f"{error}; the same command goes on from there")
            sys.exit(PREEMPTED)
        except KeyboardInterrupt:
            _exit(FAILED, "interrupted; the same command goes on with what is done already.")
        except Exception:
            traceback.print_exc()
            distributed.fail(FAILED)

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
    path = Path(value).expanduser()
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"--{name}: got {value!r}; name a file in a directory that is there.")
    return path


def _parse(
    argv: Sequence[str], usage: str, actions: Sequence[str], needs_config: Callable[[], bool]
) -> list[str]:
    if any(re.match(r"--?h(elp|$)", argument) for argument in argv[1:]):
        print(usage.strip())
        sys.exit(DONE)
    # Orbax warns of every checkpoint that has no evaluation.
    logging.set_verbosity(logging.ERROR)
    try:
        _check_names(argv)
        rest = flags.FLAGS(argv)
        if WORKDIR.value == "":
            raise ConfigError("--workdir is empty; name a directory, or leave it out.")
        given = rest[1:]
        if actions and (not given or given[0] not in actions):
            got = f"; got {given[0]!r}" if given else ""
            raise ConfigError(f"name what to do: {' or '.join(actions)}{got}.")
        for surplus in given[1 if actions else 0 :]:
            raise ConfigError(f"unknown argument {surplus!r}; --help lists the options.")
        if needs_config():
            _check_config()
    except ConfigError as error:
        _exit(WRONG_USAGE, error)
    # A config file is code: anything may come out of it.
    except Exception as error:
        _exit(WRONG_USAGE, _explain(error))
    return rest


def _check_config() -> None:
    if not flags.FLAGS["config"].present:
        raise ConfigError("--config is missing; configs/ holds examples.")
    if CONFIG.value is None:
        raise ConfigError("--config: get_config() of the file returns nothing.")
    validate(CONFIG.value)


def _check_names(argv: Sequence[str]) -> None:
    """Refuses overrides of fields that do not exist, and says which name may be meant."""
    for argument in argv[1:]:
        match = re.match(r"--?config\.([^=]*)", argument)
        if match and match[1] not in FIELDS:
            group = [name for name in FIELDS if name.startswith(f"{match[1]}.")]
            near = group or difflib.get_close_matches(match[1], FIELDS, n=1, cutoff=0.5)
            hint = (
                f"; did you mean config.{near[0]}?"
                if near
                else "; python -m train.config lists them."
            )
            raise ConfigError(f"config.{match[1]}: there is no such field{hint}")


def _explain(error: Exception) -> str:
    message = str(error).strip()
    match = re.match(r"flag --config\.([\w.]+)=(.*?):", message)
    if match and match[1] in FIELDS:
        return refusal(match[1], match[2])
    lines = message.splitlines() or [type(error).__name__]
    # A config file that fails brings its whole traceback along; its last line says why.
    line = lines[-1] if "Traceback" in message else " ".join(lines)
    return line if len(line) <= 250 else line[:250] + "…"


def _exit(code: int, error: object) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    distributed.fail(code)
