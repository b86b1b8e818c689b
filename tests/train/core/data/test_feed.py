"""The order of an epoch, with and without rows that are made of the same image."""

import jax
import numpy as np
import pytest

from train.core.config.fields import default_config, replaced
from train.core.data.feed import epoch_orders


def order(size: int, batch_size: int, repeats: int, epoch: int = 0) -> np.ndarray:
    changes = {"batch_size": batch_size, "data.augment_repeats": repeats}
    config = replaced(default_config(), changes)
    return epoch_orders(jax.random.key(3), size, config)(epoch)


SIZES = [(100, 12, 2), (100, 12, 3), (100, 12, 4), (100, 8, 3), (101, 25, 2), (7, 4, 4), (9, 4, 3)]


@pytest.mark.parametrize(("size", "batch_size", "repeats"), SIZES)
def test_images_come_as_often_as_they_are_repeated(
    size: int, batch_size: int, repeats: int
) -> None:
    whole, repeated = order(size, batch_size, 1), order(size, batch_size, repeats)
    assert (repeated.shape, repeated.dtype) == (whole.shape, whole.dtype)
    # The definition: the first images, each so often, as many rows as there are images.
    np.testing.assert_array_equal(np.sort(repeated), np.sort(np.repeat(whole, repeats)[:size]))
    for index in range(size // batch_size):
        batch = repeated[index * batch_size : (index + 1) * batch_size]
        stream = np.repeat(whole, repeats)[index * batch_size : (index + 1) * batch_size]
        np.testing.assert_array_equal(np.sort(batch), np.sort(stream))


@pytest.mark.parametrize(("size", "batch_size", "repeats"), [s for s in SIZES if s[1] >= 2 * s[2]])
def test_pairs_that_are_mixed_are_of_two_images(size: int, batch_size: int, repeats: int) -> None:
    repeated = order(size, batch_size, repeats)
    for index in range(size // batch_size):
        batch = repeated[index * batch_size : (index + 1) * batch_size]
        even = len(batch) // 2 * 2
        assert (batch[:even:2] != batch[1:even:2]).all()


def test_epochs_have_images_of_their_own() -> None:
    first, second = (set(order(100, 10, 5, epoch)) for epoch in (0, 1))
    assert len(first) == len(second) == 20
    assert first != second
