"""Errors that a user can mend: printed in one line, without a traceback."""


class ConfigError(ValueError):
    """The command line or the config is wrong (exit code 2)."""


class RunError(RuntimeError):
    """The run cannot go on (exit code 1)."""


class PreemptedError(Exception):
    """The run was told to stop, and has saved a checkpoint (exit code 75)."""
