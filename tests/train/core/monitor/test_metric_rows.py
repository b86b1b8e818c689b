"""Rows in a file, and in segments where nothing can be appended to."""

import errno
import json
import os

import pytest
from etils import epath

from train.core.errors import RunError
from train.core.monitor.metric_rows import RowFile, RowSegments


def row(step, split="train", **figures):
    return {"step": step, "epoch": step / 10, "split": split, **figures}


def test_row_file_holds_what_was_appended(tmp_path):
    file = RowFile(tmp_path / "rows")
    assert file.rows() == []
    rows = [row(1, loss=0.1 + 0.2), row(2, "eval \n \u2028")]
    for each in rows:
        file.append(each)
    file.sync()
    assert file.rows() == RowFile(tmp_path / "rows").rows() == rows
    assert [json.loads(line) for line in (tmp_path / "rows").read_text().split("\n")[:-1]] == rows


@pytest.mark.parametrize("torn", ['{"step": 3', '{"step": 3}', "{"])
def test_torn_last_line_is_left_out_and_truncated_away(tmp_path, torn):
    path = tmp_path / "rows"
    whole = "".join(f"{json.dumps(row(step))}\n" for step in (1, 2))
    path.write_text(whole + torn)
    assert RowFile(path).rows() == [row(1), row(2)]
    RowFile(path).truncate(3)
    assert path.read_text() == whole


@pytest.mark.parametrize(
    "line",
    [
        *(b"{", b"3", b"[]", b"{}", b"", b'{"step": 1}', b"\xff"),
        b'{"step": 1, "epoch": 0.1, "split": "train", "loss": null}',
        b'{"step": "1", "epoch": 0.1, "split": "train"}',
        b'{"step": 1, "epoch": 0.1, "split": ["train"]}',
        b'{"step": 1, "epoch": 0.1, "split": "train", "loss": NaN}',
        b'{"step": 1, "epoch": 0.1, "split": "train", "loss": -Infinity}',
        b'{"step": 1, "epoch": 0.1, "split": "train", "loss": 1e999}',
    ],
)
def test_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "rows"
    path.write_bytes(line + b"\n" + json.dumps(row(2)).encode() + b"\n")
    with pytest.raises(RunError, match=f"{path} is damaged: ") as error:
        RowFile(path).rows()
    assert len(str(error.value).splitlines()) == 1
    if line != b"\xff":
        assert f"{line.decode()!r} is no row of a run. Remove that line" in str(error.value)


@pytest.mark.parametrize("step", [0, 2, 3, 9])
def test_truncate_keeps_the_rows_up_to_a_step(tmp_path, step):
    file = RowFile(tmp_path / "rows")
    rows = [row(n, split) for n in (1, 2, 4) for split in ("train", "eval")]
    for each in rows:
        file.append(each)
    file.truncate(step)
    assert file.rows() == [each for each in rows if each["step"] <= step]
    assert os.listdir(tmp_path) == ["rows"]


SPLITS = ("train", "eval")
ROWS = [row(step, split) for step in (2, 4, 6, 8, 10) for split in SPLITS]


def up_to(step):
    return [each for each in ROWS if each["step"] <= step]


def written(directory, sizes):
    """The rows in segments of these sizes."""
    segments = RowSegments(epath.Path(directory))
    rows = iter(ROWS)
    for size in sizes:
        for _ in range(size):
            segments.append(next(rows))
        segments.sync()
    return segments


def test_segment_is_written_by_sync_and_read_by_others(tmp_path):
    segments = RowSegments(epath.Path(tmp_path / "metrics"))
    (tmp_path / "metrics").mkdir()
    assert segments.rows() == []
    segments.sync()
    assert not list((tmp_path / "metrics").iterdir())
    for each in ROWS[:3]:
        segments.append(each)
        assert segments.rows() == []
    segments.sync()
    segments.append(ROWS[3])
    segments.sync()
    segments.sync()
    assert segments.rows() == RowSegments(epath.Path(tmp_path / "metrics")).rows() == ROWS[:4]
    assert sorted(os.listdir(tmp_path / "metrics")) == ["000000.jsonl", "000001.jsonl"]


def test_no_segments_where_there_is_no_directory(tmp_path):
    segments = RowSegments(epath.Path(tmp_path / "metrics"))
    segments.truncate(0)
    assert segments.rows() == []


SIZES = pytest.mark.parametrize("sizes", [(10,), (1,) * 10, (3, 3, 3, 1), (2, 2, 2, 2, 2)])


@SIZES
@pytest.mark.parametrize("step", [0, 2, 3, 6, 10, 12])
def test_truncated_segments_hold_the_rows_up_to_a_step_and_go_on(tmp_path, sizes, step):
    written(tmp_path, sizes).truncate(step)
    segments = RowSegments(epath.Path(tmp_path))
    assert segments.rows() == up_to(step)
    for each in ROWS[len(up_to(step)) :]:
        segments.append(each)
        segments.sync()
    assert segments.rows() == ROWS


@SIZES
@pytest.mark.parametrize("step", [0, 3, 6])
@pytest.mark.parametrize("last", [0, 1, 2])
def test_truncation_that_fails_midway_loses_no_row_up_to_the_step(
    tmp_path, monkeypatch, sizes, step, last
):
    segments = written(tmp_path, sizes)
    removed = []
    remove = os.remove

    def fail_later(path):
        if len(removed) == last:
            raise OSError(errno.EIO, "Input/output error")
        removed.append(path)
        remove(path)

    monkeypatch.setattr(os, "remove", fail_later)
    try:
        segments.truncate(step)
    except OSError:
        rows = segments.rows()
        assert rows == ROWS[: len(rows)]
        assert len(rows) > len(up_to(step))
    monkeypatch.undo()
    segments.truncate(step)
    assert segments.rows() == up_to(step)
