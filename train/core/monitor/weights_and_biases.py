"""The rows of a run for Weights & Biases, through its package.

A thread of its own sends them: no network, no login and no fault of the package stops or delays a
training. What cannot be sent waits in files, for `wandb sync`.
"""

import contextlib
import dataclasses
import importlib.util
import queue
import secrets
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from train.core.config.fields import Config
from train.core.devices import environment
from train.core.devices.busy import busy
from train.core.devices.processes import is_main, say
from train.core.errors import ConfigError, reason
from train.core.monitor import metric_rows
from train.core.monitor.metric_rows import Row
from train.core.workdir import storage

# Seconds that the server has to answer in the beginning, and to take in what is left in the end. Of
# the former fewer: a short run is then in files at least. At its exit Python waits for both.
INIT_SECONDS = 15
FINISH_SECONDS = 20
# The file with the name of the run at Weights & Biases, the same after every restart.
ID_FILE = "wandb_id.txt"


def check_installed(config: Config) -> None:
    """Checks that the package is there if it is wanted.

    Raises:
      ConfigError: it is not.
    """
    if config.log.wandb_project and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "config.log.wandb_project needs the package wandb; get it with "
            "pip install -e '.[train,wandb]'."
        )


@contextlib.contextmanager
def opened(workdir: epath.Path, config: Config, start_step: int) -> Iterator["Sender | None"]:
    """Sends rows in the main process, if the config names a project.

    Args:
      workdir: Directory of the run.
      config: Config of the run.
      start_step: Number of updates done so far; the rows up to there are sent first, where they
        were not.
    """
    if not config.log.wandb_project or not is_main():
        yield None
        return
    sender = Sender(workdir, config, start_step)
    try:
        yield sender
    finally:
        sender.close()


def number(row: Row) -> int:
    """The step of a row in wandb's own count, which grows from row to row."""
    return 2 * row["step"] + (row["split"] == "eval")


class Sender:
    """Sends rows, and in the end the summary.

    Every row is sent once: of what a restart does anew, the server has some rows already, and
    tells the number of the last one.
    """

    def __init__(self, workdir: epath.Path, config: Config, start_step: int):
        """Begins to send; see `opened`."""
        self._workdir = workdir
        self._config = config
        self._environment = environment.describe()
        self._rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._summary: Mapping[str, Any] | None = None
        self._is_given_up = False
        for row in metric_rows.of(workdir).rows():
            if row["step"] <= start_step:
                self.write(row)
        self._thread = threading.Thread(target=self._send_or_tell, daemon=True)
        self._thread.start()

    def write(self, row: Row) -> None:
        """Takes a row, to be sent some time."""
        self._rows.put(row)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Takes the summary of the finished run."""
        self._summary = summary

    def close(self) -> None:
        """Waits a little until all is sent."""
        self._rows.put(None)
        with busy(f"sending the rest to Weights & Biases, at most {FINISH_SECONDS} seconds"):
            self._thread.join(FINISH_SECONDS)
        if self._thread.is_alive():
            self._tell(
                f"not all was sent within {FINISH_SECONDS} seconds; to send the rest: wandb sync "
                f"{_directory(self._workdir)}/wandb/run-*"
            )
            self._is_given_up = True

    def _tell(self, text: str) -> None:
        # The output may lie on a full disk, or be closed.
        with contextlib.suppress(OSError, ValueError):
            if not self._is_given_up:
                say(f"Weights & Biases: {text}")

    def _send_or_tell(self) -> None:
        try:
            self._send()
        # It may be anything: the package is another's, and talks to a network and to processes.
        except Exception as error:
            self._tell(f"nothing more is sent: {reason(error)}")

    def _send(self) -> None:
        run = self._open()
        if run.disabled:
            return
        self._tell(run.url or f"offline; to send the run: wandb sync {epath.Path(run.dir).parent}")
        first = run.starting_step
        for split in ("train", "eval"):
            run.define_metric(f"{split}/*", step_metric="step")
        while (row := self._rows.get()) is not None:
            if number(row) >= first:
                run.log(_named(row), step=number(row), commit=True)
        if self._summary:
            run.summary.update(self._summary)
        run.finish(exit_code=0 if self._summary else 1)

    def _open(self) -> Any:
        """The run at the server, or where that is not reached in files."""
        import wandb

        try:
            settings = wandb.setup(wandb.Settings(silent=True)).settings
            if settings.mode == "online" and not wandb.login(prompt=False):
                raise PermissionError("there is no login; see wandb login")
            return self._init()
        except Exception as error:
            self._tell(f"not reached: {reason(error)}")
            # Its process may hold the run's name still.
            wandb.teardown()
            wandb.setup(wandb.Settings(silent=True))
            return self._init(mode="offline")

    def _init(self, **mode: str) -> Any:
        import wandb

        return wandb.init(
            project=self._config.log.wandb_project,
            id=_id(self._workdir),
            name=self._workdir.name,
            config={**dataclasses.asdict(self._config), "environment": self._environment},
            dir=_directory(self._workdir),
            resume="allow",
            reinit="create_new",
            settings=_settings(wandb),
            **mode,
        )


def _settings(wandb: Any) -> Any:
    """Nothing of the machine, of the code and of the output is sent."""
    return wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
        init_timeout=INIT_SECONDS,
        silent=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )


def _id(workdir: epath.Path) -> str:
    """The name of the run at Weights & Biases; made up once."""
    kept = storage.read_text(workdir / ID_FILE)
    if not kept:
        kept = secrets.token_hex(4)
        storage.write_text(workdir / ID_FILE, kept)
    return kept


def _directory(workdir: epath.Path) -> str:
    """Where wandb keeps its files: in a folder `wandb` there."""
    return tempfile.gettempdir() if storage.is_bucket(workdir) else str(workdir)


def _named(row: Row) -> dict[str, Any]:
    """The figures of a row, as `<split>/<name>`, over `step`."""
    names = row.keys() - {"step", "split"}
    return {"step": row["step"]} | {f"{row['split']}/{name}": row[name] for name in sorted(names)}
