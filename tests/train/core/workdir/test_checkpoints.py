"""Checkpoints: which are kept, that they hold the very bits, and the digest of a state."""

import collections
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from train.core.devices.mesh import AXES, by_rows, create, replicated
from train.core.errors import RunError
from train.core.workdir.checkpoint_files import state_sha256
from train.core.workdir.checkpoints import Checkpoints


def state_of(number=0.0):
    """A state of several dtypes, some of it sharded, that a number tells from others."""
    mesh = create(4, 2)
    everywhere, split = replicated(mesh), NamedSharding(mesh, P(AXES))
    values = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32) + number
    return {
        "params": {"kernel": jax.device_put(values, everywhere)},
        "moments": (jax.device_put(values, split), jax.device_put(np.int32(number), everywhere)),
        "low": jax.device_put(values.astype(jnp.bfloat16), everywhere),
        "nothing": None,
    }


def assert_identical(restored, expected):
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert a.sharding == b.sharding
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def steps_on_disk(directory):
    return sorted(int(path.name) for path in directory.iterdir())


def save_all(checkpoints, errors):
    """Saves one checkpoint an entry: its error, or None without an evaluation."""
    for step, error in enumerate(errors, start=1):
        evaluation = None if error is None else {"top1_error": error, "loss": 100 - error}
        checkpoints.save(step, state_of(step), {"wall_seconds": step / 3}, evaluation)
    checkpoints.wait()


@pytest.mark.parametrize(
    ("keep", "errors", "kept", "best"),
    [
        (2, [50.0, 10.0, 30.0, 40.0, 20.0], [2, 4, 5], 2),
        (3, [50.0, 10.0, 30.0, 40.0, 20.0, 60.0], [2, 4, 5, 6], 2),
        (2, [50.0, 40.0, 30.0, 20.0], [3, 4], 4),
        (2, [30.0, None, None, None], [1, 3, 4], 1),
        (2, [30.0, 20.0, 20.0, 25.0, None], [3, 4, 5], 3),
        (2, [None, None, None], [2, 3], None),
    ],
    ids=["old best", "keep 3", "last is best", "one evaluation", "equals", "no evaluation"],
)
def test_latest_and_the_best_are_kept(tmp_path, keep, errors, kept, best):
    with Checkpoints(tmp_path / "checkpoints", keep) as checkpoints:
        save_all(checkpoints, errors)
        assert steps_on_disk(tmp_path / "checkpoints") == kept
        assert checkpoints.latest_step() == len(errors)
        assert checkpoints.best_step() == best


def test_best_of_the_averaged_weights_is_kept_too(tmp_path):
    with Checkpoints(tmp_path, 2) as checkpoints:
        for step, (error, averaged) in enumerate([(10, 40), (30, 20), (25, 35), (28, 36)], start=1):
            evaluation = {"top1_error": error, "ema_top1_error": averaged}
            checkpoints.save(step, state_of(step), {}, evaluation)
        checkpoints.wait()
        assert steps_on_disk(tmp_path) == [1, 2, 3, 4]
        found = {which: checkpoints.step_of(which) for which in ("last", "best", "best_ema")}
        assert found == {"last": 4, "best": 1, "best_ema": 2}


def test_run_without_averaged_weights_has_no_best_of_them(tmp_path):
    with Checkpoints(tmp_path, 2) as checkpoints:
        save_all(checkpoints, [10.0])
        with pytest.raises(RunError, match=r"no best_ema checkpoint in .*config\.ema_decay"):
            checkpoints.step_of("best_ema")


def test_best_is_known_and_readable_when_opened_again(tmp_path):
    with Checkpoints(tmp_path, 2) as checkpoints:
        save_all(checkpoints, [10.0, 30.0, None, 20.0])
    with Checkpoints(tmp_path, 2) as checkpoints:
        assert (checkpoints.latest_step(), checkpoints.best_step()) == (4, 1)
        restored, progress = checkpoints.restore(1, state_of())
        assert_identical(restored, state_of(1))
        assert progress == {"wall_seconds": 1 / 3}


def test_new_directory_holds_no_checkpoint(tmp_path):
    with Checkpoints(tmp_path / "run" / "checkpoints", 2) as checkpoints:
        assert checkpoints.latest_step() is None
        assert checkpoints.best_step() is None
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_restored_state_is_the_one_saved_to_the_bit(tmp_path):
    state = state_of(1.5)
    progress = {"wall_seconds": 0.1 + 0.2, "train_seconds": 1e-9}
    with Checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(7, state, progress, None)
        checkpoints.wait()
        restored, restored_progress = checkpoints.restore(7, jax.tree.map(jnp.zeros_like, state))
    assert_identical(restored, state)
    assert restored_progress == progress


def test_parts_are_read_without_a_state_of_their_structure(tmp_path):
    state = {**state_of(1.5), "batch_stats": {"mean": jnp.arange(3.0)}}
    with Checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(7, state, {}, None)
    with Checkpoints(tmp_path) as checkpoints:
        parts = checkpoints.restore_parts(7, "params", "batch_stats")
    assert parts.keys() == {"params", "batch_stats"}
    for name, tree in parts.items():
        expected = jax.device_get(state[name])
        assert jax.tree.structure(tree) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b, strict=True)


def test_parts_of_a_state_that_lay_on_several_devices(tmp_path):
    mesh = create(4, 2)
    values = np.arange(24, dtype=np.float32).reshape(8, 3)
    state = {
        "params": {"fc": jax.device_put(values, replicated(mesh))},
        "batch_stats": {"bn": jax.device_put(values, by_rows(mesh))},
        "opt_state": (np.ones(3), None),
    }
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(3, state, {}, None)
    with Checkpoints(tmp_path) as checkpoints:
        parts = checkpoints.restore_parts(3, "params", "batch_stats")
    assert parts.keys() == {"params", "batch_stats"}
    for array in jax.tree.leaves(parts):
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array, values)


def test_nan_infinity_and_negative_zero_come_back_to_the_bit(tmp_path):
    bits = np.array([0x7FC00001, 0xFF800000, 0x80000000, 0x00000001], np.uint32)
    state = {"params": jnp.asarray(bits.view(np.float32))}
    with Checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(1, state, {}, None)
        checkpoints.wait()
        restored, _ = checkpoints.restore(1, state)
    np.testing.assert_array_equal(np.asarray(restored["params"]).view(np.uint32), bits)


def test_state_may_be_donated_as_soon_as_it_is_saved(tmp_path):
    # Large enough to be on its way to the disk still when it is overwritten.
    saved, spare = (jnp.arange(2**22, dtype=jnp.float32) + offset for offset in (0, 1))
    expected = np.array(saved)
    step = jax.jit(lambda x: -x - 1, donate_argnums=0).lower(saved).compile()
    step(spare)
    assert spare.is_deleted()
    with Checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(1, {"params": saved}, {}, None)
        after = step(saved)
        checkpoints.wait()
        restored, _ = checkpoints.restore(1, {"params": after})
    np.testing.assert_array_equal(restored["params"], expected)


def test_interrupted_save_is_ignored_and_removed_by_the_next(tmp_path):
    with Checkpoints(tmp_path, 2) as checkpoints:
        save_all(checkpoints, [30.0])
    # The name under which Orbax writes until a checkpoint is whole.
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path, 2) as checkpoints:
        assert checkpoints.latest_step() == 1
        assert checkpoints.best_step() == 1
        checkpoints.save(3, state_of(3), {}, None)
    assert steps_on_disk(tmp_path) == [1, 3]


def test_leaving_waits_until_the_checkpoint_is_on_disk(tmp_path):
    with Checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(1, {"params": jnp.zeros(2**20)}, {}, None)
    assert steps_on_disk(tmp_path) == [1]


def tree(**changes):
    leaves = {
        "a": np.array([[0.0, 1.5], [-2.0, 3.0]], np.float32),
        "b": np.arange(4, dtype=np.int32),
    }
    return {"params": leaves | changes}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_open_files_stay_flat(tmp_path):
    open_files = []
    with Checkpoints(tmp_path, 2) as checkpoints:
        for step in range(1, 13):
            checkpoints.save(step, state_of(step), {}, None)
            checkpoints.wait()
            open_files.append(len(list(Path("/proc/self/fd").iterdir())))
    assert max(open_files[-4:]) <= max(open_files[2:6])


def test_digest_is_that_of_every_process():
    expected = "960ad65cf6a6bb3f6d8d32902708b754cfeb57069ed3c2444014ab71ee0dc5d6"
    assert state_sha256(tree()) == expected


def test_digest_is_that_of_a_tree_as_it_is_read_back():
    pair = collections.namedtuple("pair", ["first", "second"])
    leaves = [np.float32(i) for i in range(12)]
    state = {"b": pair(leaves[0], (leaves, None)), "a": {}}
    plain = {"b": {"first": leaves[0], "second": [leaves]}}
    assert state_sha256(state) == state_sha256(plain)


def test_digest_is_of_the_values_wherever_they_lie():
    mesh = create(4)
    for sharding in (replicated(mesh), NamedSharding(mesh, P("replica"))):
        state = tree()
        state["params"]["b"] = jax.device_put(state["params"]["b"], sharding)
        assert state_sha256(state) == state_sha256(tree())


def flipped(bit):
    array = np.arange(4, dtype=np.int32)
    array.view(np.uint8)[bit // 8] ^= 1 << bit % 8
    return array


def test_digest_changes_with_every_single_bit():
    digests = {state_sha256(tree(b=flipped(bit))) for bit in range(4 * 32)}
    assert len(digests | {state_sha256(tree())}) == 4 * 32 + 1


@pytest.mark.parametrize(
    "other",
    [
        tree(a=np.array([[-0.0, 1.5], [-2.0, 3.0]], np.float32)),
        tree(a=tree()["params"]["a"].view(np.int32)),
        tree(b=np.arange(4, dtype=np.uint32)),
        tree(b=np.arange(4, dtype=np.int32).reshape(2, 2)),
        tree(c=np.zeros(0, np.float32)),
        {"params": {"a": tree()["params"]["a"], "c": tree()["params"]["b"]}},
        {"other": tree()["params"]},
        {"params": tree()["params"], "step": np.int32(0)},
    ],
    ids=["sign of zero", "dtype", "signedness", "shape", "empty", "name", "parent", "leaf"],
)
def test_digest_changes_with(other):
    assert state_sha256(other) != state_sha256(tree())


def test_reading_beside_a_live_run_changes_nothing(tmp_path):
    with Checkpoints(tmp_path, 2) as checkpoints:
        save_all(checkpoints, [50.0])
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == checkpoints.best_step() == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_reading_does_not_make_the_directory(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() is None
    assert not (tmp_path / "checkpoints").exists()
