"""Damaged checkpoints are named and set aside, and the run goes on from the one before."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.damage import damaged, damages
from train.core.errors import RunError
from train.core.workdir.checkpoint_files import REMOVED
from train.core.workdir.checkpoints import Checkpoints
from train.core.workdir.quarantine import ASIDE, set_damaged_aside

STEPS = (10, 20, 30)
pytestmark = [
    pytest.mark.faults,
    # Orbax leaves coroutines behind where reading fails.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def state(step: int) -> dict[str, Any]:
    values = np.random.default_rng(step).normal(size=(64, 8)).astype(np.float32)
    return {
        "params": {"kernel": jnp.asarray(values), "scale": jnp.asarray(values[0], jnp.bfloat16)},
        "opt_state": ({"trace": jnp.asarray(values * 2)}, jnp.int32(step)),
    }


def evaluation(step: int) -> dict[str, float]:
    return {"top1_error": 100.0 - step, "loss": 1 / step}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("saved")
    with Checkpoints(epath.Path(workdir / "checkpoints"), keep=len(STEPS)) as checkpoints:
        for step in STEPS:
            checkpoints.save(step, state(step), {"wall_seconds": step / 3}, evaluation(step))
    return workdir


@pytest.fixture
def workdir(saved: Path, tmp_path: Path) -> epath.Path:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    return epath.Path(tmp_path)


def goes_on_from(workdir: epath.Path) -> int:
    """The step that a run finds; what it reads is what was saved, to the bit."""
    set_damaged_aside(workdir)
    with Checkpoints(workdir / "checkpoints", keep=2) as checkpoints:
        step = checkpoints.latest_step()
        assert step is not None
        restored, progress = checkpoints.restore(step, jax.tree.map(jnp.zeros_like, state(step)))
        assert checkpoints.best_step() == step
    expected = state(step)
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert progress == {"wall_seconds": step / 3}
    return step


def set_aside(workdir: epath.Path) -> set[str]:
    directory = workdir / ASIDE
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


@contextmanager
def copied(workdir: Path) -> Iterator[Path]:
    """A copy for one example."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(shutil.copytree(workdir, directory, dirs_exist_ok=True))


def files(step: int, saved: Path) -> list[Path]:
    directory = saved / "checkpoints" / str(step)
    return sorted(path for path in directory.rglob("*") if path.is_file())


@given(data=st.data())
def test_any_damage_is_found_or_does_no_harm(saved: Path, data: st.DataObject) -> None:
    with copied(saved) as directory:
        path = data.draw(st.sampled_from(files(STEPS[-1], directory)))
        if data.draw(st.booleans(), "is missing"):
            path.unlink()
        else:
            content = path.read_bytes()
            path.write_bytes(damaged(content, data.draw(damages(max(len(content), 1)))))
        step = goes_on_from(epath.Path(directory))
        assert (step, set_aside(epath.Path(directory))) in ((30, set()), (20, {"30"}))


def test_flipped_bit_of_a_weight_is_named(
    workdir: epath.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [path for path in files(30, Path(workdir)) if "ocdbt.process" in str(path)]
    largest = max(paths, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert goes_on_from(workdir) == 20
    warning = capsys.readouterr().out
    assert warning.startswith("warning: checkpoints/30 is damaged: ")
    assert warning.endswith(f"It is now {workdir}/damaged/30\n")
    assert warning.count("\n") == 1


@pytest.mark.parametrize("names", [("30",), ("30", "20"), ("40",), ("5",), ("15", "30")])
def test_empty_directories_are_set_aside(workdir: epath.Path, names: tuple[str, ...]) -> None:
    for name in names:
        shutil.rmtree(workdir / "checkpoints" / name, ignore_errors=True)
        (workdir / "checkpoints" / name).mkdir()
    expected = max(step for step in STEPS if str(step) not in names)
    assert goes_on_from(workdir) == expected
    assert set_aside(workdir) == set(names)


def test_whole_ones_in_a_relative_directory_are_left(
    workdir: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workdir.parent)
    set_damaged_aside(epath.Path(workdir.name))
    assert not (workdir / ASIDE).exists()


def test_foreign_directories_are_set_aside_and_files_left(workdir: epath.Path) -> None:
    for name in ("notes", "31", "031"):
        (workdir / "checkpoints" / name).mkdir()
        (workdir / "checkpoints" / name / "file").write_text("mine")
    (workdir / "checkpoints" / "file").write_text("mine")
    assert goes_on_from(workdir) == 30
    assert set_aside(workdir) == {"notes", "31", "031"}
    assert (workdir / ASIDE / "notes" / "file").read_text() == "mine"
    assert (workdir / "checkpoints" / "file").read_text() == "mine"


def test_second_one_of_a_name_is_set_aside_beside_the_first(workdir: epath.Path) -> None:
    for _ in range(3):
        (workdir / "checkpoints" / "40").mkdir()
        assert goes_on_from(workdir) == 30
    assert set_aside(workdir) == {"40", "40-2", "40-3"}


def test_damage_of_an_older_one_is_set_aside_too(workdir: epath.Path) -> None:
    (workdir / "checkpoints" / "10" / "metrics" / "metrics").write_text("{")
    (workdir / "checkpoints" / "20" / "progress" / "metadata").unlink()
    assert goes_on_from(workdir) == 30
    assert set_aside(workdir) == {"10", "20"}


def test_without_a_whole_one_nothing_is_touched(workdir: epath.Path) -> None:
    for step in STEPS:
        (workdir / "checkpoints" / str(step) / "state" / "manifest.ocdbt").write_bytes(b"")
    before = snapshot(workdir)
    with pytest.raises(RunError) as error:
        set_damaged_aside(workdir)
    message = str(error.value)
    assert message.startswith(f"no checkpoint in {workdir}/checkpoints is whole: 30 is damaged: ")
    assert all(f"{step} is damaged" in message for step in STEPS)
    assert "Nothing was changed; to start from the beginning, give another" in message
    assert "\n" not in message
    assert snapshot(workdir) == before


def snapshot(workdir: epath.Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in Path(workdir).rglob("*") if p.is_file()}


def test_unfinished_checkpoints_are_left_to_the_next_save(workdir: epath.Path) -> None:
    unfinished = workdir / "checkpoints" / "40.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "checkpoints" / "30", unfinished)
    assert goes_on_from(workdir) == 30
    assert set_aside(workdir) == set()
    assert not unfinished.exists()


def test_checkpoint_under_the_number_of_another_is_set_aside(workdir: epath.Path) -> None:
    (workdir / "checkpoints" / "30").rename(workdir / "checkpoints" / "40")
    assert goes_on_from(workdir) == 20
    assert set_aside(workdir) == {"40"}


def test_what_a_kill_left_of_one_that_is_not_kept_is_no_damage(
    workdir: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoints, "_remove", lambda self: None)
    with Checkpoints(workdir / "checkpoints", keep=2) as checkpoints:
        checkpoints.save(40, state(40), {"wall_seconds": 40 / 3}, evaluation(40))
    # Renamed at once, and removed afterwards.
    left = workdir / "checkpoints" / REMOVED / "10"
    assert sorted(p.name for p in left.iterdir()) == sorted(
        p.name for p in (workdir / "checkpoints" / "40").iterdir()
    )
    shutil.rmtree(left / "state")
    monkeypatch.undo()
    assert goes_on_from(workdir) == 40
    assert set_aside(workdir) == set()
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["30", "40"]


@pytest.mark.parametrize("read", ["restore", "restore_parts"])
def test_readers_refuse_what_is_damaged_and_change_nothing(workdir: epath.Path, read: str) -> None:
    path = max(files(30, Path(workdir)), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    before = snapshot(workdir)
    arguments = [state(30)] if read == "restore" else ["params"]
    with (
        Checkpoints(workdir / "checkpoints") as checkpoints,
        pytest.raises(RunError, match=r"^the checkpoint of step 30 in \S+ cannot be read: "),
    ):
        getattr(checkpoints, read)(30, *arguments)
    assert snapshot(workdir) == before


def test_advice_for_a_damaged_best_one_helps(workdir: epath.Path) -> None:
    """What goes on reads the newest alone in full; the best one may be older."""
    path = max(files(20, Path(workdir)), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    set_damaged_aside(workdir)
    assert set_aside(workdir) == set()
    # The best of what is left is the damaged one, until it is moved away.
    shutil.rmtree(workdir / "checkpoints" / "30")
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        best = checkpoints.step_of("best")
        assert best == 20
        with pytest.raises(RunError, match=r"step 20 .*; move another away by hand"):
            checkpoints.restore_parts(best, "params")
    (workdir / "checkpoints" / "20").rename(workdir / "20")
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        assert checkpoints.step_of("best") == 10


def test_damaged_evaluation_is_named_with_its_step(workdir: epath.Path) -> None:
    (path,) = (path for path in files(20, Path(workdir)) if path.match("metrics/metrics"))
    path.write_text("{}")
    with (
        Checkpoints(workdir / "checkpoints") as checkpoints,
        pytest.raises(RunError, match=r"the checkpoint of step 20 .* cannot be read: "),
    ):
        checkpoints.step_of("best")
