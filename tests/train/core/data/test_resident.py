"""Resident splits: their size limit, their order, and every example once."""

import jax
import numpy as np
import pytest

from tests.helpers.values import with_slow
from train.core.config.fields import default_config, replaced
from train.core.data import resident
from train.core.data.feed import epoch_orders
from train.core.data.resident import Resident
from train.core.data.sources.split import Split
from train.core.devices.mesh import AXES, create, jit_replicated, local_rows, replicated
from train.core.errors import ConfigError


def arrays(size):
    """Images that tell their own number in their pixels, and their labels."""
    numbers = np.arange(size)
    pixels = np.stack([numbers // 256, numbers % 256], -1)[:, None, None, :]
    return np.broadcast_to(pixels, (size, 3, 2, 2)).astype(np.uint8), numbers.astype(np.int32) + 7


def split_of(size):
    return Split("train", size, 10, (3, 2, 2), lambda: arrays(size))


def put(size, num_devices=4, batch_size=4):
    """A split on some devices, and their mesh."""
    mesh = create(batch_size, devices=jax.devices()[:num_devices])
    return resident.put(split_of(size), mesh), mesh


def orders(split, seed=0, start_step=0, steps=6, steps_per_epoch=3):
    key = jax.random.key(seed)
    dispatches = [range(step, step + 1) for step in range(start_step + 1, start_step + steps + 1)]
    order = epoch_orders(key, len(split.labels), default_config())
    splits = resident.in_epoch_orders(split, order, dispatches, steps_per_epoch)
    return [np.asarray(ordered.order) for ordered, _ in splits]


def test_split_above_the_limit_is_refused():
    def check(limit):
        config = replaced(default_config(), {"data.resident_limit_gb": limit})
        Resident(config, create(4)).check_split(split_of(1_000_000))

    # 12 bytes an image.
    check(0.012)
    with pytest.raises(ConfigError, match=r"^config\.data\.resident_limit_gb: .* train ") as error:
        check(0.01)
    assert "takes 0.012 GB" in str(error.value)
    assert "limit is 0.01 GB" in str(error.value)


def test_split_is_put_on_every_device():
    split = resident.put(split_of(1000), create(4))
    images, labels = arrays(1000)
    order = np.arange(1000, dtype=np.int32)
    for array, expected in zip(split, (images, labels, order), strict=True):
        assert array.dtype == expected.dtype
        assert len(array.addressable_shards) == 4
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(shard.data, expected)


def test_every_epoch_reads_every_example_once_in_an_order_of_its_own():
    split, _ = put(50)
    first, *_, last = found = orders(split, steps=9)
    for epoch in range(3):
        of_epoch = found[3 * epoch : 3 * epoch + 3]
        np.testing.assert_array_equal(np.sort(of_epoch[0]), np.arange(50))
        for order in of_epoch:
            np.testing.assert_array_equal(order, of_epoch[0])
    assert len({tuple(order) for order in found}) == 3
    assert not np.array_equal(first, np.arange(50))
    assert last.dtype == np.int32


def test_order_depends_on_the_seed_alone():
    split, _ = put(50)
    np.testing.assert_array_equal(orders(split, seed=1), orders(split, seed=1))
    assert not np.array_equal(orders(split, seed=1), orders(split, seed=2))


@pytest.mark.parametrize("num_devices", [1, 2])
def test_order_does_not_depend_on_the_devices(num_devices):
    fewer, more = put(50, num_devices)[0], put(50, 4)[0]
    np.testing.assert_array_equal(orders(fewer), orders(more))


@with_slow("start_step", [1, 2, 3, 4, 7], (1, 2, 3, 4))
def test_starting_late_gives_the_orders_of_walking_there(start_step):
    split, _ = put(50)
    walked = orders(split, steps=12)[start_step:]
    np.testing.assert_array_equal(orders(split, 0, start_step, len(walked)), walked)


def test_dispatches_of_several_steps_have_the_order_of_their_epoch():
    split, _ = put(50)
    grouped = [range(1, 3), range(3, 4), range(4, 7)]
    order = epoch_orders(jax.random.key(0), 50, default_config())
    splits = resident.in_epoch_orders(split, order, grouped, steps_per_epoch=3)
    first, second = orders(split, steps=6)[::3]
    for (ordered, _), expected in zip(splits, (first, first, second), strict=True):
        np.testing.assert_array_equal(ordered.order, expected)


def test_order_lies_on_every_device():
    split, mesh = put(50)
    order = epoch_orders(jax.random.key(0), 50, default_config())
    batch, _ = next(resident.in_epoch_orders(split, order, [range(1, 2)], 3))
    assert batch.order.sharding.is_equivalent_to(replicated(mesh), 1)
    assert batch.images is split.images


def taker(mesh, batch_size):
    """A jitted `take` of the whole batch, gathered from all devices."""

    def take(split, index):
        rows = local_rows(mesh, batch_size)
        batch = resident.take(split, index, batch_size, rows)
        return jax.tree.map(lambda x: jax.lax.all_gather(x, AXES, tiled=True), batch)

    return jit_replicated(take, mesh)


def test_take_follows_the_order():
    split, mesh = put(10)
    order = np.array([9, 3, 1, 7, 5, 0, 2, 4, 6, 8], np.int32)
    split = split._replace(order=jax.device_put(order, replicated(mesh)))
    images, labels = arrays(10)
    for index in (0, 1):
        batch = taker(mesh, 4)(split, np.int32(index))
        examples = order[4 * index : 4 * index + 4]
        np.testing.assert_array_equal(batch.images, images[examples])
        np.testing.assert_array_equal(batch.labels, labels[examples])
        np.testing.assert_array_equal(batch.mask, [True] * 4)


@pytest.mark.parametrize(
    ("size", "batch_size", "num_devices"),
    [(10, 4, 4), (8, 4, 4), (3, 8, 4), (1, 4, 4), (9, 4, 2), (300, 128, 4), (7, 3, 1)],
)
def test_evaluation_pass_counts_every_example_once(size, batch_size, num_devices):
    split, mesh = put(size, num_devices, batch_size)
    take = taker(mesh, batch_size)
    found = [take(split, np.int32(i)) for i in range(-(-size // batch_size))]
    mask = np.concatenate([batch.mask for batch in found])
    images, labels = arrays(size)
    np.testing.assert_array_equal(mask, np.arange(len(mask)) < size)
    np.testing.assert_array_equal(np.concatenate([b.images for b in found])[mask], images)
    np.testing.assert_array_equal(np.concatenate([b.labels for b in found])[mask], labels)
