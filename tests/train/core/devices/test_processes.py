"""One process of several: what is asked of it before it finds the others, and how it stops."""

import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.helpers.commands import REPOSITORY
from train.core.devices import processes
from train.core.errors import ConfigError, RunError

HEARTBEAT_SECONDS = 100


@pytest.mark.parametrize(
    ("coordinator", "num_processes", "process_id"),
    [
        ("localhost:1", None, None),
        (None, 2, 0),
        ("localhost", 2, 0),
        ("localhost:1", 2, 2),
        ("localhost:1", 2, -1),
    ],
)
def test_incomplete_or_wrong_options_are_refused(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    with pytest.raises(ConfigError, match=r"^--coordinator, --num_processes and --process_id"):
        processes.start(coordinator, num_processes, process_id, HEARTBEAT_SECONDS)


def test_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Kubernetes API Error: 403 - Forbidden\nIt appears that")

    monkeypatch.setattr("jax.distributed.initialize", fail)
    with pytest.raises(RunError, match=r"the others: Kubernetes API Error: 403 - Forbidden; give"):
        processes.start(None, None, None, HEARTBEAT_SECONDS)


def test_one_process_asks_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax.distributed.initialize", pytest.fail)
    processes.start(None, 1, None, HEARTBEAT_SECONDS)
    assert processes.is_main()


def test_second_ctrl_c_leaves_at_once() -> None:
    code = "import time\nfrom train.core.devices.processes import Preemption\nwith Preemption():\n"
    code += "    print('ready', flush=True)\n    for _ in range(600): time.sleep(0.1)"
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "\n"
        assert "Ctrl-C again leaves at once" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == "error: interrupted\n"
        assert process.returncode == 1
