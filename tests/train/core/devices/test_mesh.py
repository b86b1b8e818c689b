"""The mesh: which arrangements fit, and what its devices do together; one process of several."""

import signal
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.commands import REPOSITORY
from train.core.devices import processes
from train.core.devices.mesh import (
    AXES,
    by_rows,
    create,
    jit_replicated,
    local_rows,
    mean,
    norm_axis,
    process_rows,
    put_rows,
    replicated,
    total,
)
from train.core.errors import ConfigError, RunError

# Groups of 1, 2 and all of the four devices.
each_group = pytest.mark.parametrize("group", [1, 2, 4])


@pytest.mark.parametrize(
    ("batch_size", "num_devices", "nearest"),
    [(6, 4, "4 or 8"), (9, 4, "8 or 12"), (127, 2, "126 or 128"), (3, 4, "4")],
)
def test_batch_that_does_not_divide_names_the_nearest_sizes(batch_size, num_devices, nearest):
    with pytest.raises(ConfigError, match=r"^config\.batch_size: ") as error:
        create(batch_size, devices=jax.devices()[:num_devices])
    message = str(error.value)
    assert f"{batch_size} images do not divide over {num_devices} devices" in message
    assert message.endswith(f": {nearest}.")


@pytest.mark.parametrize(("group", "num_devices"), [(3, 4), (8, 4), (2, 3)])
def test_groups_that_do_not_divide_are_refused(group, num_devices):
    with pytest.raises(ConfigError, match=r"^config\.model\.sync_bn_devices: ") as error:
        create(12, group, jax.devices()[:num_devices])
    assert f"{num_devices} devices do not divide into groups of {group}" in str(error.value)


@pytest.mark.parametrize(
    ("sync_bn_devices", "shape", "axis"),
    [
        (1, {"replica": 4, "group": 1}, None),
        (2, {"replica": 2, "group": 2}, "group"),
        (4, {"replica": 1, "group": 4}, "group"),
        (-1, {"replica": 1, "group": 4}, "group"),
    ],
)
def test_groups_share_their_statistics(sync_bn_devices, shape, axis):
    mesh = create(8, sync_bn_devices)
    assert dict(mesh.shape) == shape
    assert norm_axis(mesh) == axis


@pytest.mark.parametrize("sync_bn_devices", [1, -1])
def test_one_device_has_no_one_to_share_with(sync_bn_devices):
    mesh = create(7, sync_bn_devices, jax.devices()[:1])
    assert dict(mesh.shape) == {"replica": 1, "group": 1}
    assert norm_axis(mesh) is None


def test_replicated_arrays_lie_whole_on_every_device():
    array = jax.device_put(np.arange(6), replicated(create(8, 2)))
    assert {shard.device for shard in array.addressable_shards} == set(jax.devices())
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(shard.data, np.arange(6))


def on_every_device(function, mesh, *arguments):
    """What a function of one device gives, one row a device, in the order of their numbers."""

    def row(*arguments):
        device = jax.lax.axis_index(AXES)
        result = function(*arguments)
        return total(jnp.zeros((mesh.size, *result.shape)).at[device].set(result))

    return np.asarray(jit_replicated(row, mesh)(*arguments))


@each_group
@pytest.mark.parametrize("batch_size", [4, 24])
def test_local_rows_are_each_row_of_the_batch_once(group, batch_size):
    mesh = create(batch_size, group)
    rows = on_every_device(lambda: local_rows(mesh, batch_size), mesh)
    # Contiguous, so that neighbours, which mixup pairs, stay on one device.
    np.testing.assert_array_equal(rows, np.arange(batch_size).reshape(4, -1))


@each_group
def test_devices_of_a_group_hold_neighbouring_rows(group):
    mesh = create(8, group)
    rows = on_every_device(
        lambda: jax.lax.all_gather(local_rows(mesh, 8), "group", tiled=True), mesh
    )
    expected = np.arange(8).reshape(4 // group, -1).repeat(group, 0)
    np.testing.assert_array_equal(rows, expected)


@each_group
@pytest.mark.parametrize("at_once", [False, True])
def test_mean_and_total_are_those_of_all_rows_on_every_device(group, at_once):
    mesh, values = create(8, group), np.arange(8.0) ** 2

    def reduce(values):
        local = values[local_rows(mesh, 8)]
        halves = mean(list(local.reshape(2, -1).mean(1)), at_once=at_once)
        return {"mean": (halves[0] + halves[1]) / 2, "total": total(local.sum())}

    result = jit_replicated(reduce, mesh)(values)
    for name, expected in {"mean": values.mean(), "total": values.sum()}.items():
        shards = [float(shard.data) for shard in result[name].addressable_shards]
        assert shards == [expected] * 4


def test_mean_at_once_is_one_message_and_keeps_shapes_and_dtypes():
    mesh = create(8)
    tree = {"a": jnp.ones((2, 3)), "b": jnp.arange(4, dtype=jnp.bfloat16)}

    def program(at_once):
        return jit_replicated(lambda x: mean(x, at_once=at_once), mesh)

    counts = [program(at_once).lower(tree).as_text().count("all_reduce") for at_once in (0, 1)]
    assert counts == [2, 1]
    jax.tree.map(np.testing.assert_array_equal, program(at_once=True)(tree), tree)


@each_group
def test_mean_of_local_gradients_is_the_gradient_of_the_mean(group):
    mesh, values = create(8, group), jnp.arange(8.0)

    def gradient(weight):
        def loss(weight):
            return (weight * values[local_rows(mesh, 8)]).mean()

        return mean(jax.grad(loss)(weight))

    assert jit_replicated(gradient, mesh)(2.0) == values.mean()


def test_donated_arguments_are_gone_and_others_stay():
    mesh = create(4)
    first, second = (jax.device_put(np.ones(4), replicated(mesh)) for _ in range(2))
    jit_replicated(lambda a, b: a + b, mesh, donate_argnums=0)(first, second)
    assert first.is_deleted()
    assert not second.is_deleted()


@each_group
@pytest.mark.parametrize("reverse", [False, True])
def test_rows_of_this_process_become_a_global_batch(group, reverse):
    mesh = create(8, group, jax.devices()[:: -1 if reverse else 1])
    rows = process_rows(mesh, 8)
    np.testing.assert_array_equal(rows, np.arange(8))
    images = np.arange(24).reshape(8, 3)
    batch = put_rows({"images": images, "labels": rows}, mesh, 8)
    np.testing.assert_array_equal(batch["images"], images)
    np.testing.assert_array_equal(batch["labels"], rows)
    assert batch["images"].sharding == by_rows(mesh)


def test_batch_split_over_devices_arrives_as_the_rows_that_are_theirs():
    mesh, labels = create(8), np.arange(8)

    def check(whole, batch):
        own = local_rows(mesh, 8)
        return total(jnp.abs(batch - whole[own]).sum())

    compiled = jit_replicated(check, mesh, rows_argnum=1)
    assert compiled(labels, put_rows(labels, mesh, 8)) == 0


# One process of several: what is asked of it before it finds the others, and how it stops.

HEARTBEAT_SECONDS = 100


@pytest.mark.parametrize(
    ("coordinator", "num_processes", "process_id"),
    [
        ("localhost:1", None, None),
        (None, 2, 0),
        ("localhost", 2, 0),
        ("localhost:1", 2, 2),
        ("localhost:1", 2, -1),
        ("junk", 1, 0),
        (None, 1, 0),
        ("localhost:1", 1, 1),
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
