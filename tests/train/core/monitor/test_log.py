"""Rows as they follow from the steps, TensorBoard events, log lines, and traces of steps."""

import struct
import sys
import time
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event

from train.core.config.fields import Config
from train.core.errors import ConfigError, LostError
from train.core.monitor import metric_rows
from train.core.monitor.log import LAG, Log, NonFiniteError, Progress
from train.core.monitor.metric_rows import RowFile, RowSegments
from train.core.monitor.profiler import Profiler, parse
from train.core.monitor.terminal import Display
from train.core.monitor.timing import Laps

SPEED = {"images_per_second", "data_wait"}


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    clock = SimpleNamespace(seconds=1000.0)
    fake = SimpleNamespace(monotonic=lambda: clock.seconds)
    for module in ("log", "timing"):
        monkeypatch.setattr(f"train.core.monitor.{module}.time", fake)
    return clock


def open_log(workdir, progress=None, log_every_steps=2, **options):
    config = Config(batch_size=10, log_every_steps=log_every_steps)
    options = {"start_step": 0, "total_steps": 10, "steps_per_epoch": 3} | options
    return Log(workdir, config, progress or Progress(), **options)


def values(step, loss=None):
    """Metrics of a step, on the device, that no other step has."""
    loss = 1 / step if loss is None else loss
    return {
        "loss": jnp.float32(loss),
        "top1_error": jnp.float32(100 / (step + 1)),
        "bad_records": jnp.float32(step),
    }


def written(workdir):
    return RowFile(workdir / "metrics.jsonl").rows()


def steps_written(workdir):
    return [row["step"] for row in written(workdir)]


@pytest.mark.parametrize("every", [1, 2, 3, 20])
def test_rows_hold_the_values_of_their_own_steps(tmp_path, every):
    with open_log(tmp_path, total_steps=10, log_every_steps=every) as log:
        for step in range(1, 11):
            log.train(range(step, step + 1), values(step))
        log.flush(10)
    rows = written(tmp_path)
    assert [row["step"] for row in rows] == sorted({*range(every, 11, every), 10})
    # Of all steps since the row before, not of its own alone.
    assert sum(row.pop("bad_records") for row in rows) == sum(range(1, 11))
    for row in rows:
        step = row["step"]
        own = {name: float(v) for name, v in values(step).items() if name != "bad_records"}
        place = {"step": step, "epoch": round(step / 3, 4), "split": "train"}
        assert {name: value for name, value in row.items() if name not in SPEED} == place | own
        assert row.keys() >= SPEED


@pytest.mark.parametrize("every", [2, 3, 5])
def test_steps_of_one_dispatch_have_rows_as_if_they_came_alone(tmp_path, every):
    def train(workdir, dispatches, padding):
        workdir.mkdir()
        with open_log(workdir, total_steps=10, log_every_steps=every) as log:
            for steps in dispatches:
                each = [values(step) for step in steps] + [values(99)] * padding
                stacked = {name: jnp.stack([v[name] for v in each]) for name in each[0]}
                log.train(steps, stacked)
            log.flush(10)
        rows = written(workdir)
        return [{k: v for k, v in row.items() if k not in SPEED} for row in rows]

    alone = train(tmp_path / "alone", [range(step, step + 1) for step in range(1, 11)], 0)
    grouped = [range(1, 3), range(3, 8), range(8, 11)]
    assert train(tmp_path / "grouped", grouped, padding=4) == alone


def test_bad_records_are_not_lost_where_a_run_goes_on(tmp_path):
    with open_log(tmp_path, total_steps=10, log_every_steps=5) as log:
        for step in range(1, 8):
            log.train(range(step, step + 1), values(step))
        log.flush(7)
        progress = log.progress
    with open_log(tmp_path, progress, start_step=7, total_steps=10, log_every_steps=5) as log:
        for step in range(8, 11):
            log.train(range(step, step + 1), values(step))
        log.flush(10)
    assert [row["bad_records"] for row in written(tmp_path)] == [15, 40]


@pytest.mark.parametrize("every", [1, 2, 3])
def test_rows_come_late_and_all_with_a_flush(tmp_path, every):
    with open_log(tmp_path, log_every_steps=every) as log:
        for step in range(1, 8):
            log.train(range(step, step + 1), values(step))
            assert steps_written(tmp_path) == list(range(every, step - LAG + 1, every))
        log.flush(7)
        assert steps_written(tmp_path) == list(range(every, 8, every))
        for step in range(8, 11):
            log.train(range(step, step + 1), values(step))
        log.flush(10)
    assert steps_written(tmp_path) == sorted({*range(every, 11, every), 10})


def feed(log, losses):
    """Feeds losses until one raises; returns the step at which it does."""
    for step, loss in enumerate(losses, start=1):
        try:
            log.train(range(step, step + 1), values(step, loss))
        except NonFiniteError as error:
            return step, error
    with pytest.raises(NonFiniteError) as raised:
        log.flush(len(losses))
    return "flush", raised.value


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("bad", "steps", "noticed"), [(3, 10, 7), (5, 10, 7), (6, 9, "flush")])
def test_loss_that_is_not_finite_names_its_step(tmp_path, loss, bad, steps, noticed):
    losses = [1.0] * (bad - 1) + [loss] + [1.0] * (steps - bad)
    with open_log(tmp_path, log_every_steps=5) as log:
        at, error = feed(log, losses)
    assert at == noticed
    assert str(error) == f"the loss of step {bad} is {loss}"


def test_rows_before_a_bad_loss_are_written(tmp_path):
    with open_log(tmp_path, log_every_steps=2) as log:
        for step in range(1, 4):
            log.train(range(step, step + 1), values(step, np.nan if step == 3 else 1.0))
        with pytest.raises(NonFiniteError):
            log.flush(3)
    assert steps_written(tmp_path) == [2]


def test_rows_before_a_bad_loss_are_written_where_they_wait_for_a_sync(tmp_path, monkeypatch):
    (tmp_path / "metrics").mkdir()
    segments = RowSegments(epath.Path(tmp_path) / "metrics")
    monkeypatch.setattr(metric_rows, "of", lambda workdir: segments)
    with open_log(tmp_path, log_every_steps=2) as log:
        for step in range(1, 4):
            log.train(range(step, step + 1), values(step, np.nan if step == 3 else 1.0))
        with pytest.raises(NonFiniteError):
            log.flush(3)
    assert [row["step"] for row in segments.rows()] == [2]


def test_rows_that_wait_are_not_written_into_a_directory_that_was_lost(tmp_path, monkeypatch):
    (tmp_path / "metrics").mkdir()
    segments = RowSegments(epath.Path(tmp_path) / "metrics")
    monkeypatch.setattr(metric_rows, "of", lambda workdir: segments)

    def lose_directory(log):
        for step in range(1, 5):
            log.train(range(step, step + 1), values(step, 1.0))
        raise LostError("another process has the directory")

    with pytest.raises(LostError), open_log(tmp_path, log_every_steps=1) as log:
        lose_directory(log)
    assert segments.rows() == []


def test_evaluation_is_written_at_once(tmp_path):
    with open_log(tmp_path, steps_per_epoch=4) as log:
        log.evaluation(6, {"loss": 0.25, "top1_error": 50.0})
        expected = {"step": 6, "epoch": 1.5, "split": "eval", "loss": 0.25, "top1_error": 50.0}
        assert written(tmp_path) == [expected]


def test_restart_drops_later_rows_and_goes_on(tmp_path):
    with open_log(tmp_path, log_every_steps=1) as log:
        for step in range(1, 8):
            log.train(range(step, step + 1), values(step))
        log.flush(7)
    with open_log(tmp_path, start_step=4, log_every_steps=1) as log:
        assert steps_written(tmp_path) == [1, 2, 3, 4]
        for step in range(5, 11):
            log.train(range(step, step + 1), values(step, loss=7.0))
        log.flush(10)
    are_new = [(row["step"], row["loss"] == 7.0) for row in written(tmp_path)]
    assert are_new == [(step, step > 4) for step in range(1, 11)]
    starts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert starts[-1] == 5  # from where on TensorBoard forgets what it has


def events(workdir):
    """All TensorBoard events: each a record of length, checksum, message and checksum."""
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_events_hold_the_scalars_of_the_rows(tmp_path):
    with open_log(tmp_path, total_steps=4) as log:
        for step in range(1, 5):
            log.train(range(step, step + 1), values(step))
        log.flush(4)
        log.evaluation(4, {"loss": 0.25, "top1_error": 50.0})
    scalars = [(v.tag, e.step, v.simple_value) for e in events(tmp_path) for v in e.summary.value]
    expected = [
        (f"{row['split']}/{name}", row["step"], np.float32(value))
        for row in written(tmp_path)
        for name, value in row.items()
        if name not in ("step", "split")
    ]
    assert scalars == expected
    assert len(scalars) == 2 * 6 + 3


def test_speed_covers_the_steps_since_the_row_before(tmp_path, clock):
    with open_log(tmp_path, Progress(7.0, 5.0), total_steps=9) as log:
        for step in range(1, 9):
            with log.waiting_for_data():
                clock.seconds += 0.125
            clock.seconds += 0.375
            log.train(range(step, step + 1), values(step))
            with log.training_paused():
                clock.seconds += 100.0
        assert log.progress == Progress(7.0 + 8 * 100.5, 5.0 + 8 * 0.5)
    # The first row waits for the steps that the log is late by.
    rates = {row["step"]: (row["images_per_second"], row["data_wait"]) for row in written(tmp_path)}
    assert rates == {2: (10.0, 0.25), 4: (20.0, 0.25), 6: (20.0, 0.25)}


ROWS = [
    {"split": "train", "step": 5, "epoch": 2.5, "loss": 0.5, "top1_error": 12.5},
    {"split": "eval", "step": 5, "epoch": 2.5, "loss": 0.25, "top1_error": 10.0},
]
LINES = [
    "train  step 5/20  epoch 2.50  loss 0.5000  error 12.50 %  1,234 images/s  0:00:30 left",
    "eval   step 5/20  epoch 2.50  loss 0.2500  error 10.00 %",
]


@pytest.mark.parametrize("columns", [120, 60])
@pytest.mark.parametrize("is_terminal", [False, True])
def test_display_prints_lines_or_on_a_terminal_a_live_one(
    monkeypatch, capsys, is_terminal, columns
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    display = Display(total_steps=20)
    for row in (ROWS[0], ROWS[0], ROWS[1], ROWS[0]):
        display.show(row | {"images_per_second": 1234.0}, wall_seconds=10.0)
    display.close()
    expected = "{0}\n{0}\n{1}\n{0}\n".format(*LINES)
    if is_terminal:
        clear, lines = "\r\x1b[K", [line[: columns - 1] for line in LINES]
        expected = "{2}{0}{2}{0}{2}{1}\n{2}{0}\n".format(*lines, clear)
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("text", ["", "3", "0:2", "3:2", "a:b", "1:2:3", "-1:2"])
def test_wrong_spans_are_refused(text):
    with pytest.raises(ConfigError, match=r"^--profile: got .* allowed: START:STOP"):
        parse(text, epath.Path())


def test_trace_needs_a_local_disk():
    with pytest.raises(
        ConfigError, match=r"^--profile: .* local --workdir; got gs://bucket/run\.$"
    ):
        parse("2:3", epath.Path("gs://bucket/run"))


def test_a_span_is_traced(tmp_path):
    with Profiler(tmp_path / "profile", parse("2:3", epath.Path())) as profiler:
        for step in range(1, 5):
            profiler.before(range(step, step + 1))
            assert (tmp_path / "profile").exists() == (step > 3)
            profiler.after(range(step, step + 1), jnp.zeros(2) + 1)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_steps_that_are_dispatched_together_are_traced_together(tmp_path):
    with Profiler(tmp_path / "profile", parse("6:7", epath.Path())) as profiler:
        for steps in (range(1, 6), range(6, 11), range(11, 16)):
            profiler.before(steps)
            profiler.after(steps, jnp.zeros(2) + 1)
            assert (tmp_path / "profile").exists() == (steps[0] >= 6)


def test_a_span_that_is_not_reached_is_told(tmp_path, capsys):
    with Profiler(tmp_path / "profile", parse("7:8", epath.Path())) as profiler:
        profiler.before(range(1, 2))
        profiler.after(range(1, 2), jnp.zeros(2))
    assert capsys.readouterr().out == "no profile: none of the steps 7:8 was run by this start\n"


def test_no_span_writes_nothing(tmp_path):
    with Profiler(tmp_path / "profile", None) as profiler:
        profiler.before(range(1, 2))
        profiler.after(range(1, 2), jnp.zeros(2))
    assert not (tmp_path / "profile").exists()


def test_laps_add_up(monkeypatch):
    times = iter([11.5, 12.0, 15.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    laps = Laps(10.0)
    for name in ("imports", "data", "compilation"):
        laps.end(name)
    assert str(laps) == "5.0 s: imports 1.5, data 0.5, compilation 3.0"
