"""Signs of life: when they are given, what they say, and that every long work of a command does."""

import io
import math
import threading
from types import SimpleNamespace

import pytest

from train.core.devices import busy, processes
from train.core.devices.busy import LOG_SECONDS, TERMINAL_SECONDS, Work


class Stream(io.StringIO):
    """A terminal, or a file."""

    def __init__(self, is_terminal):
        super().__init__()
        self.isatty = lambda: is_terminal


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets; nothing is going on in the beginning."""
    clock = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(busy, "time", SimpleNamespace(monotonic=lambda: clock.seconds))
    monkeypatch.setattr(busy, "_all", [])
    return clock


def stderr(monkeypatch, *, is_terminal=False):
    stream = Stream(is_terminal)
    monkeypatch.setattr("sys.stderr", stream)
    return stream


def begin(what="reading train", total=None, unit="images", patience=5.0):
    work = Work(what, total, unit, patience)
    busy._all.append(work)
    return work


def tick_each_second(clock, work, seconds):
    for _ in range(seconds):
        clock.seconds += 1
        work.tick()


def test_what_is_quick_says_nothing(clock, monkeypatch):
    stream, work = stderr(monkeypatch), begin()
    tick_each_second(clock, work, 4)
    work.end()
    assert stream.getvalue() == ""


def test_a_log_file_has_a_line_now_and_then_and_one_at_the_end(clock, monkeypatch):
    stream, work = stderr(monkeypatch), begin(total=4000)
    for _ in range(40):
        work.advance(25)
        tick_each_second(clock, work, 1)
    work.end()
    assert stream.getvalue().splitlines() == [
        "reading train: 125 of 4,000 images, 3 %, 0:00:05 so far, 0:02:35 left",
        "reading train: 875 of 4,000 images, 22 %, 0:00:35 so far, 0:02:05 left",
        "reading train: took 0:00:40",
    ]
    assert LOG_SECONDS == 30


def test_a_terminal_has_one_line_that_goes_away(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream, work = stderr(monkeypatch, is_terminal=True), begin(total=10)
    tick_each_second(clock, work, 8)
    work.end()
    assert "\n" not in stream.getvalue()
    # Cut to what the terminal has room for.
    *signs, last = stream.getvalue().split("\r\x1b[K")[1:]
    assert signs[0] == "reading train: 0 of 10 images, 0 %, 0:0"
    assert (len(signs), last, TERMINAL_SECONDS) == (4, "", 1)


@pytest.mark.parametrize(
    ("total", "done", "expected"),
    [
        (None, 0, "compiling: 0:01:01 so far"),
        (None, 1200, "compiling: 1,200 files, 0:01:01 so far"),
        (4, 0, "compiling: 0 of 4 files, 0 %, 0:01:01 so far"),
        (4, 1, "compiling: 1 of 4 files, 25 %, 0:01:01 so far, 0:03:03 left"),
        (0, 0, "compiling: 0:01:01 so far"),
    ],
)
def test_what_a_sign_says(clock, total, done, expected):
    work = begin("compiling", total, "files")
    work.advance(done)
    clock.seconds += 61
    assert str(work) == expected


def test_only_the_innermost_gives_signs(clock, monkeypatch):
    stream, outer = stderr(monkeypatch), begin("training")
    with busy.busy("evaluating", patience=0):
        tick_each_second(clock, outer, 60)
        assert stream.getvalue() == ""
    tick_each_second(clock, outer, 1)
    assert stream.getvalue() == "training: 0:01:01 so far\n"


def test_another_line_postpones_the_signs(clock, monkeypatch):
    stream, work = stderr(monkeypatch), begin(patience=30.0)
    for _ in range(10):
        tick_each_second(clock, work, 29)
        busy.postpone()
    assert stream.getvalue() == ""
    tick_each_second(clock, work, 30)
    assert stream.getvalue().count("\n") == 1


def test_a_line_takes_the_place_of_a_sign_on_a_terminal(clock, monkeypatch):
    stream, work = stderr(monkeypatch, is_terminal=True), begin(patience=30.0)
    tick_each_second(clock, work, 30)
    sign = stream.getvalue()
    # As after a row, through a pipe: nothing is left of the sign, nor is the row cleared later.
    busy.postpone()
    work.end()
    assert stream.getvalue() == f"{sign}{busy.CLEAR}"


def test_what_is_said_postpones_the_signs(clock, monkeypatch, capsys):
    work = begin()
    clock.seconds += 4
    processes.say("one line")
    tick_each_second(clock, work, 4)
    assert capsys.readouterr() == ("one line\n", "")


def test_processes_beside_the_main_one_are_silent(clock, monkeypatch):
    monkeypatch.setattr(busy, "_is_hushed", False)
    stream, work = stderr(monkeypatch), begin()
    busy.hush()
    tick_each_second(clock, work, 60)
    assert stream.getvalue() == ""


def test_signs_come_by_themselves_while_the_work_waits(monkeypatch):
    told, threads = threading.Event(), {*threading.enumerate()}
    monkeypatch.setattr(busy, "TERMINAL_SECONDS", 0.001)
    monkeypatch.setattr(Work, "tick", lambda work: told.set())
    with busy.busy("compiling"):
        assert told.wait(60)
    assert busy._all == []
    # Others may end meanwhile.
    assert {*threading.enumerate()} <= threads


@pytest.mark.parametrize(
    "error", [OSError(28, "no space left"), ValueError("closed file"), AttributeError("None")]
)
def test_signs_that_cannot_be_written_disturb_nothing(monkeypatch, error):
    tried = threading.Event()

    def fail(*arguments, **options):
        tried.set()
        raise error

    stderr(monkeypatch, is_terminal=True)
    monkeypatch.setattr(busy, "TERMINAL_SECONDS", 0.001)
    monkeypatch.setattr("builtins.print", fail)
    with busy.busy("compiling", patience=-1):
        assert tried.wait(60)
        busy.postpone()


def test_an_error_inside_ends_the_work(clock):
    with pytest.raises(RuntimeError), busy.busy("compiling", patience=math.inf):
        raise RuntimeError
    assert busy._all == []
