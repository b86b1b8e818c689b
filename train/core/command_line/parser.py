"""The command line of a command: argparse, with the fields of a config among its options."""

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from train.core.command_line.values import attentions, not_empty, one_of, output, whole_number
from train.core.config import parsing
from train.core.config.attentions import with_attentions
from train.core.config.checks import validate
from train.core.config.fields import FIELDS, replaced
from train.core.errors import ConfigError

NO_CONFIG = "--config is missing; configs/ holds examples."


class Parser(argparse.ArgumentParser):
    """The command line of a command."""

    def __init__(self, doc: str | None, usage: str):
        """Makes the help of the command's own words.

        Args:
          doc: Docstring of the command's module. What begins with its example stands below the
            options.
          usage: Arguments of the command in short.
        """
        description, example, end = (doc or "").partition("Example:\n")
        super().__init__(
            usage=usage,
            description=description.strip(),
            epilog=f"{example}{end}".strip(),
            formatter_class=_Help,
            allow_abbrev=False,
            add_help=False,
        )
        self.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
        self._needs_config: bool | None = None

    def add_config(
        self, what: str = "the experiment; configs/ holds examples", *, is_needed: bool = True
    ) -> None:
        """Adds --config and an option for every field.

        The parsed `config` is a checked `Config`, or None without --config, and `config_name` the
        name of its file without the ending.

        Args:
          what: Help of --config.
          is_needed: Whether the command line is wrong without it.
        """
        self._needs_config = is_needed
        self.add_argument("--config", metavar="FILE", type=not_empty, action=_Once, help=what)
        self.add_argument(
            "--config.FIELD",
            metavar="VALUE",
            default=argparse.SUPPRESS,
            help="overrides a field; python -m train.config lists them",
        )
        hidden: Any = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        # A switch alone turns it on.
        switch: Any = {"nargs": "?", "const": "true"}
        for name, spec in FIELDS.items():
            kind = switch if isinstance(spec.default, bool) else {}
            self.add_argument(f"--config.{name}", **kind, **hidden)

    def add_workdir(self, what: str) -> None:
        """Adds --workdir; `workdir` and `named_workdir` make a directory of it."""
        self.add_argument("--workdir", metavar="DIR", type=not_empty, help=what)

    def add_attention(self, what: str) -> None:
        """Adds --attention: attentions, with commas between."""
        self.add_argument("--attention", metavar="NAME,...", type=attentions, help=what)

    def add_json(self) -> None:
        """Adds --json: a file for figures."""
        self.add_argument(
            "--json", metavar="FILE", type=output, help="also writes the figures to a file"
        )

    def add_steps(self, default: int = 50, what: str = "steps") -> None:
        """Adds --steps: how many steps, or calls, are timed."""
        kind = whole_number(1, 1_000_000)
        self.add_argument(
            "--steps",
            metavar="N",
            type=kind,
            default=default,
            help=f"{what} of each that are timed; default: {default}",
        )

    def add_which(self) -> None:
        """Adds --which: a checkpoint."""
        self.add_argument(
            "--which",
            metavar="NAME",
            type=one_of("last", "best", "best_ema"),
            default="last",
            help="last (default), best, or best_ema of averaged weights",
        )

    def add_trained(self) -> None:
        """Adds what names a trained network: a run, or a config with weights of a file.

        `config_of_weights` and `named_workdir` tell which.
        """
        self.add_config("in place of --workdir, for config.model.pretrained", is_needed=False)
        self.add_workdir("the directory of the run; its config is used")
        self.add_which()
        self.add_argument(
            "--data_dir",
            metavar="DIR",
            type=not_empty,
            help="where the dataset of the run lies now, if elsewhere",
        )

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parses a command line, and loads its config.

        Raises:
          ConfigError: something about it is wrong.
        """
        if any(argument in ("-h", "--help") for argument in arguments):
            arguments = ["--help"]
        for argument in arguments:
            if not argument.isprintable():
                raise ConfigError(
                    f"the argument {argument!r} holds characters that cannot be printed; allowed "
                    "are those of one line of text."
                )
        options, rest = self.parse_known_args(list(arguments))
        for argument in rest:
            self._refuse(argument)
        if self._needs_config is not None:
            self._load_config(options)
        return options

    def print_help(self, file: Any = None) -> None:
        """Prints the help; argparse would pass over a full disk."""
        print(self.format_help(), end="", flush=True)

    def error(self, message: str) -> NoReturn:
        """Refuses the command line, where argparse would print more than a line.

        Raises:
          ConfigError: always.
        """
        # Argparse puts a colon behind the option.
        message = message.removeprefix("argument ").replace(": is empty;", " is empty;")
        raise ConfigError(message.replace("ignored explicit argument", "takes no value; got"))

    def _refuse(self, argument: str) -> NoReturn:
        if not argument.startswith("-") or argument.strip("-") == "":
            raise ConfigError(f"unknown argument {argument!r}; --help lists the options.")
        name = argument.partition("=")[0]
        if name.startswith("--config.") and self._needs_config is not None:
            raise ConfigError(parsing.unknown_field(name.removeprefix("--config.")))
        # Without dashes, which would make all names alike.
        options = [option[2:] for option in self._option_string_actions if option[:2] == "--"]
        near = difflib.get_close_matches(name.lstrip("-"), options, n=1)
        hint = f"did you mean --{near[0]}?" if near else "--help lists the options."
        raise ConfigError(f"unknown option {name}; {hint}")

    def _load_config(self, options: argparse.Namespace) -> None:
        """Puts the config, with the fields of the command line in it, where its file is named."""
        given = {
            name.removeprefix("config."): value
            for name, value in vars(options).items()
            if name.startswith("config.")
        }
        for name in given.keys() - FIELDS.keys():
            raise ConfigError(parsing.unknown_field(name))
        if options.config is None and given:
            name = next(iter(given))
            if "--data_dir" in self._option_string_actions:
                raise ConfigError(
                    f"config.{name}: a run has a config of its own, and --data_dir says where its "
                    "dataset lies now; with weights of a file give --config too."
                )
            raise ConfigError(f"config.{name}: {NO_CONFIG}")
        if options.config is None and self._needs_config:
            raise ConfigError(NO_CONFIG)
        if options.config is None:
            return
        options.config_name = Path(options.config).stem
        config = parsing.load(options.config)
        values = {name: parsing.parse(name, value) for name, value in given.items()}
        config = replaced(config, values)
        validate(config)
        options.config = parsing.typed(config)
        # Finds two that are the same one.
        with_attentions(options.config, getattr(options, "attention", None) or [])


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=25, width=80)


class _Once(argparse.Action):
    """Takes a file's name, but not a second one."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        if getattr(namespace, self.dest) is not None:
            raise ConfigError(f"{option} is given twice; name one file.")
        setattr(namespace, self.dest, values)
