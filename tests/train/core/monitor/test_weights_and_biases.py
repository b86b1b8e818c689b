"""Rows for Weights & Biases: each once, over restarts; nothing there stops a training."""

import json
import os
import struct
import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest
from etils import epath

from train.core.config.fields import Config
from train.core.errors import ConfigError
from train.core.monitor import weights_and_biases
from train.core.monitor.metric_rows import RowFile
from train.core.monitor.weights_and_biases import check_installed, opened

CONFIG = Config(epochs=3)
CONFIG.log.wandb_project = "digits"


class Server:
    """What the package and its server do, in place of both.

    Attributes:
      runs: By id the rows of a run, by wandb's step, and what else it holds.
      held: Ids that the package's process holds, since it tries to reach the server with them.
      failing: Name of the function that raises.
    """

    def __init__(self):
        self.runs, self.held = {}, set()
        self.has_login, self.mode, self.failing = True, "online", None

    def module(self):
        module = ModuleType("wandb")
        module.Settings = SimpleNamespace
        module.setup = lambda *_: SimpleNamespace(settings=SimpleNamespace(mode=self.mode))
        module.login, module.init, module.teardown = self.login, self.init, self.held.clear
        return module

    def login(self, *, prompt):
        assert prompt is False
        self.fail("login")
        return self.has_login

    def init(self, *, id, config, mode="online", **options):
        if id in self.held:
            raise RuntimeError(f"run ID {id} is in use")
        self.held.add(id)
        self.fail("init", mode)
        # Offline it knows nothing of earlier starts.
        run = self.runs.setdefault(id, {}) if mode == "online" else {}
        self.runs[id] = run
        run |= {"config": config, "mode": mode, "options": options, "code": None}
        rows = run.setdefault("rows", {})

        def log(figures, *, step, commit):
            self.fail("log")
            assert commit
            # Others wandb passes over with a warning.
            assert step >= max(rows, default=-1) + 1
            rows[step] = figures

        def finish(exit_code):
            self.fail("finish")
            self.held.discard(id)
            run["code"] = exit_code

        return SimpleNamespace(
            starting_step=max(rows, default=-1) + 1,
            disabled=self.mode == "disabled",
            url=f"https://server/{id}" if mode == "online" else None,
            dir=f"{options['dir']}/wandb/offline-run/files",
            define_metric=lambda *_, **__: self.fail("define_metric"),
            log=log,
            summary=run.setdefault("summary", {}),
            finish=finish,
        )

    def fail(self, name, mode="online"):
        if name == self.failing or f"{name} {mode}" == self.failing:
            raise RuntimeError(f"{name} is broken\nin many lines")


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setitem(sys.modules, "wandb", server.module())
    return server


def train(workdir, start, stop, *, summary=None, every=1):
    """Makes rows as a run does, from a checkpoint to where it ends or is killed."""
    file = RowFile(workdir / "metrics.jsonl")
    with opened(workdir, CONFIG, start) as sender:
        file.truncate(start)
        for step in range(start + every, stop + 1, every):
            for split in ["train"] + ["eval"] * (step % 4 == 0):
                row = {"step": step, "epoch": step / 4, "split": split, "loss": 1 / step}
                file.append(row)
                sender.write(row)
        if summary:
            sender.finish(summary)


def only_run(server):
    (run,) = server.runs.values()
    return run


def steps_sent(server, name="train/loss"):
    """The steps of the rows that are there, in the order in which they are."""
    rows = [row for _, row in sorted(only_run(server)["rows"].items())]
    assert all(row[name] == 1 / row["step"] for row in rows if name in row)
    return [row["step"] for row in rows if name in row]


@pytest.fixture
def workdir(tmp_path):
    return epath.Path(tmp_path)


def test_rows_config_environment_and_summary_are_sent(server, workdir):
    train(workdir, 0, 8, summary={"top1_error": 2.5})
    run = only_run(server)
    assert steps_sent(server) == list(range(1, 9))
    assert steps_sent(server, "eval/loss") == [4, 8]
    first = {"step": 1, "train/epoch": 0.25, "train/loss": 1.0}
    assert next(iter(run["rows"].values())) == first
    assert run["config"]["epochs"] == 3
    assert run["config"]["environment"]["versions"]["jax"]
    assert (run["summary"], run["code"]) == ({"top1_error": 2.5}, 0)
    assert run["options"]["project"] == "digits"


@pytest.mark.parametrize("killed_at", [4, 5, 7, 8, 9])
def test_a_run_that_goes_on_has_every_step_once(server, workdir, killed_at):
    train(workdir, 0, killed_at)
    assert only_run(server)["code"] == 1
    train(workdir, 4, 12, summary={"top1_error": 2.5})
    assert steps_sent(server) == list(range(1, 13))
    assert steps_sent(server, "eval/loss") == [4, 8, 12]


def test_a_kill_between_a_row_of_training_and_that_of_its_evaluation(server, workdir):
    train(workdir, 0, 8)
    rows = only_run(server)["rows"]
    del rows[max(rows)]
    train(workdir, 4, 8)
    assert steps_sent(server, "eval/loss") == [4, 8]


def test_what_the_server_never_got_is_sent_by_the_next_start(server, workdir):
    train(workdir, 0, 8)
    rows = only_run(server)["rows"]
    for lost in sorted(rows)[3:]:
        del rows[lost]
    train(workdir, 8, 12)
    assert steps_sent(server) == list(range(1, 13))


def test_other_rows_after_a_restart_leave_no_hole(server, workdir):
    train(workdir, 0, 10)
    train(workdir, 8, 16, every=2)
    assert steps_sent(server) == [*range(1, 11), 12, 14, 16]


def test_a_finished_run_that_is_started_again_sends_its_rows(server, workdir):
    server.failing = "log"
    train(workdir, 0, 8)
    server.failing = None
    # As in another process.
    server.held.clear()
    train(workdir, 8, 8, summary={"top1_error": 2.5})
    assert steps_sent(server) == list(range(1, 9))


def test_runs_of_two_directories_are_two(server, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        train(epath.Path(tmp_path / name), 0, 4)
    assert sorted(run["options"]["name"] for run in server.runs.values()) == ["a", "b"]


def test_nothing_is_sent_where_the_user_turned_it_off(server, workdir, capsys):
    server.mode = "disabled"
    train(workdir, 0, 8)
    assert only_run(server)["rows"] == {}
    assert capsys.readouterr().out == ""


def test_without_a_project_nothing_is_imported(workdir, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with opened(workdir, Config(), 0) as sender:
        assert sender is None
    check_installed(Config())


def test_only_the_first_process_sends(workdir, monkeypatch):
    monkeypatch.setattr(weights_and_biases, "is_main", lambda: False)
    with opened(workdir, CONFIG, 0) as sender:
        assert sender is None


def test_a_package_that_is_missing_is_named_before_the_work(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"wandb_project needs the package wandb; get it with"):
        check_installed(CONFIG)


@pytest.mark.parametrize(
    ("failing", "has_login", "told"),
    [
        (None, False, "not reached: there is no login"),
        ("login", True, "not reached: login is broken."),
        ("init online", True, "not reached: init is broken."),
    ],
)
def test_what_cannot_be_reached_is_written_to_files(
    server, workdir, capsys, failing, has_login, told
):
    server.failing, server.has_login = failing, has_login
    train(workdir, 0, 8)
    assert only_run(server)["mode"] == "offline"
    assert steps_sent(server) == list(range(1, 9))
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"Weights & Biases: {told}")
    assert second.endswith(f"to send the run: wandb sync {workdir}/wandb/offline-run")


@pytest.mark.parametrize("failing", ["init", "define_metric", "log", "finish"])
def test_what_is_broken_is_told_in_a_line_and_stops_nothing(server, workdir, capsys, failing):
    server.failing = failing
    train(workdir, 0, 8, summary={"top1_error": 2.5})
    assert len(RowFile(workdir / "metrics.jsonl").rows()) == 10
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"Weights & Biases: nothing more is sent: {failing} is broken."


def test_a_package_that_cannot_be_imported_stops_nothing(workdir, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    train(workdir, 0, 8)
    assert "Weights & Biases: nothing more is sent: " in capsys.readouterr().out


def test_a_server_that_hangs_delays_nothing(server, workdir, monkeypatch, capsys):
    answers = threading.Event()
    monkeypatch.setattr(server, "fail", lambda *_: answers.wait(60))
    monkeypatch.setattr(weights_and_biases, "FINISH_SECONDS", 0)
    before = threading.enumerate()
    try:
        train(workdir, 0, 8)
        assert "not all was sent within" in capsys.readouterr().out
    finally:
        answers.set()
        for thread in set(threading.enumerate()) - set(before):
            thread.join()
    # What it comes to afterwards is of no interest.
    assert capsys.readouterr().out == ""


def records(path):
    """The records of one of wandb's files: LevelDB's log format, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        # A whole record, or the last part of one.
        if kind in (1, 4):
            yield Record.FromString(whole)
            whole = b""


def items(parts):
    return {part.key or "/".join(part.nested_key): json.loads(part.value_json) for part in parts}


@pytest.mark.parametrize(("mode", "lines"), [("offline", 1), ("online", 2)])
def test_offline_files_hold_every_step_once_after_a_restart(
    workdir, monkeypatch, capfd, mode, lines
):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", mode)
    # Nobody is logged in.
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(workdir / "none"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:9")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    # It takes a while to start where the machine has other work.
    monkeypatch.setattr(weights_and_biases, "FINISH_SECONDS", 120)
    train(workdir, 0, 6)
    train(workdir, 4, 8, summary={"top1_error": 2.5})
    # As at the end of a process: the package writes in one of its own.
    wandb.teardown()
    files = list((workdir / "wandb").glob("offline-run-*/*.wandb"))
    files.sort(key=lambda file: os.stat(file).st_mtime_ns)
    contents = [list(records(file)) for file in files]
    runs = [record.run for content in contents for record in content if record.HasField("run")]
    assert {(run.run_id, run.project) for run in runs} == {
        ((workdir / "wandb_id.txt").read_text(), "digits")
    }
    config = items(runs[-1].config.update)
    assert (config["epochs"], "versions" in config["environment"]) == (3, True)
    rows = [items(r.history.item) for r in contents[-1] if r.HasField("history")]
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, 9))
    assert [row["step"] for row in rows if "eval/loss" in row] == [4, 8]
    assert [row["_step"] for row in rows] == sorted({row["_step"] for row in rows})
    summaries = [items(r.summary.update) for r in contents[-1] if r.HasField("summary")]
    assert any(summary.get("top1_error") == 2.5 for summary in summaries)
    # Nothing of the package's own: each start says where the run is, and why where it is not sent.
    out, err = capfd.readouterr()
    assert (out.count("\n"), err) == (2 * lines, ""), out
    assert str(files[-1].parent) in out
