"""Augmentation against NumPy, and its independence of how devices share the batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.core.config.fields import default_config
from train.core.data import on_device
from train.core.devices.mesh import AXES, create, jit_replicated, local_rows
from train.core.engine.experiment import streams

# Of pixels that are all different, so that a crop or a box can be found in a result.
DISTINCT = np.random.default_rng(0).permutation(np.arange(1, 121, dtype=np.uint8))


def keys(count):
    return jax.random.split(jax.random.key(0), count)


def distinct_images(count):
    return np.stack([np.roll(DISTINCT, 7 * i).reshape(10, 6, 2) for i in range(count)])


def data_config(**fields):
    plain = {"crop_padding": 0, "flip": False, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    return dataclasses.replace(default_config().data, **{**plain, **fields})


def offsets_of(crop, image, padding):
    """Every place of the padded image where the crop can be cut out."""
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    places = [(i, j) for i in range(2 * padding + 1) for j in range(2 * padding + 1)]
    height, width, _ = image.shape
    return [(i, j) for i, j in places if (padded[i : i + height, j : j + width] == crop).all()]


@pytest.mark.parametrize("padding", [1, 2])
def test_crops_are_cut_from_every_place_of_the_padded_image(padding):
    images = distinct_images(400)
    crops = np.asarray(jax.jit(on_device.random_crop, static_argnums=2)(keys(400), images, padding))
    assert crops.dtype == np.uint8
    found = [offsets_of(c, i, padding) for c, i in zip(crops, images, strict=True)]
    assert all(len(places) == 1 for places in found)
    assert len({places[0] for places in found}) == (2 * padding + 1) ** 2


def test_crop_without_padding_changes_nothing():
    images = distinct_images(8)
    np.testing.assert_array_equal(on_device.random_crop(keys(8), images, 0), images)


def test_flip_mirrors_about_half_of_the_images_left_to_right():
    images = distinct_images(400)
    flipped = np.asarray(jax.jit(on_device.random_flip)(keys(400), images))
    same = (flipped == images).all((1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 160 < mirrored.sum() < 240  # four standard deviations


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_normalize_is_its_formula(x64, dtype):
    images = np.arange(256, dtype=np.uint8).repeat(3).reshape(4, 8, 8, 3)
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    result = on_device.normalize(images, mean, std, dtype)
    assert result.dtype == dtype
    expected = (images / 255 - np.array(mean)) / np.array(std)
    # Roundings of numbers up to 2, most of which cancel near the mean.
    np.testing.assert_allclose(result, expected, rtol=0, atol=4 * jnp.finfo(dtype).eps)


def test_normalize_rounds_to_bfloat16_once():
    images = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    precise = on_device.normalize(images, (0.3,), (0.2,), jnp.float32)
    result = on_device.normalize(images, (0.3,), (0.2,), jnp.bfloat16)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_array_equal(result, precise.astype(jnp.bfloat16))


def test_one_number_serves_all_channels():
    images = distinct_images(2)
    one = on_device.normalize(images, (0.3,), (0.2,), jnp.float32)
    two = on_device.normalize(images, (0.3, 0.3), (0.2, 0.2), jnp.float32)
    np.testing.assert_array_equal(one, two)


def row_key_data(seed, step, rows):
    return np.asarray(
        jax.random.key_data(on_device.row_keys(jax.random.key(seed), step, jnp.asarray(rows)))
    )


@pytest.mark.parametrize("chunks", [2, 4])
def test_key_of_a_row_does_not_depend_on_the_rows_beside_it(chunks):
    parts = [row_key_data(3, 5, rows) for rows in np.split(np.arange(8), chunks)]
    np.testing.assert_array_equal(np.concatenate(parts), row_key_data(3, 5, np.arange(8)))


def test_keys_differ_between_seeds_steps_and_rows():
    found = [row_key_data(seed, step, np.arange(8)) for seed in (0, 1) for step in (0, 1, 2)]
    assert len({tuple(key) for key in np.concatenate(found)}) == 2 * 3 * 8


@functools.cache
def augmented(num_devices, mixup, cutmix):
    """A batch of 16, augmented by several devices that have an equal share each."""
    mesh = create(16, devices=jax.devices()[:num_devices])
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
    config = data_config(crop_padding=2, flip=True, mixup=mixup, cutmix=cutmix)

    def share(images, targets):
        rows = local_rows(mesh, 16)
        row_keys = on_device.row_keys(streams(1)["augment"], 7, rows)
        batch = on_device.train_batch(row_keys, images[rows], targets[rows], config, jnp.float32)
        return jax.tree.map(lambda x: jax.lax.all_gather(x, AXES, tiled=True), batch)

    return jax.device_get(jit_replicated(share, mesh)(images, jnp.eye(16)))


@pytest.mark.parametrize(
    ("num_devices", "mixup", "cutmix"),
    [
        (4, 0.0, 0.0),
        pytest.param(2, 0.0, 0.0, marks=pytest.mark.slow),
        pytest.param(2, 0.4, 1.0, marks=pytest.mark.slow),
        pytest.param(4, 0.4, 0.0, marks=pytest.mark.slow),
        pytest.param(4, 0.0, 1.0, marks=pytest.mark.slow),
        pytest.param(4, 0.4, 1.0, marks=pytest.mark.slow),
    ],
)
def test_batch_does_not_depend_on_the_number_of_devices(num_devices, mixup, cutmix):
    found = augmented(num_devices, mixup, cutmix)
    for array, expected in zip(found, augmented(1, mixup, cutmix), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_keys_of_a_run_do_not_depend_on_the_default_of_jax():
    with jax.default_prng_impl("rbg"):
        found = streams(3)
    for name, key in streams(3).items():
        np.testing.assert_array_equal(jax.random.key_data(found[name]), jax.random.key_data(key))
        assert jax.random.key_impl(found[name]) == "threefry2x32"


@pytest.mark.slow
def test_nor_does_a_batch_on_several_devices():
    with jax.default_prng_impl("rbg"):
        found = augmented.__wrapped__(4, 0.4, 0.0)
    for array, expected in zip(found, augmented(1, 0.4, 0.0), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_batch_goes_through_every_piece_with_keys_of_its_own():
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
    augmentation = {"crop_padding": 2, "flip": True, "random_erasing": 0.5}
    config = data_config(**augmentation, mixup=0.4, cutmix=1.0)
    found = on_device.train_batch(keys(16), images, np.eye(16), config, jnp.float32)
    crop_keys, flip_keys, mix_keys = jax.vmap(lambda key: jax.random.split(key, 3), 0, 1)(keys(16))
    erase_keys = jax.vmap(lambda key: jax.random.fold_in(key, 3))(keys(16))
    expected = on_device.random_crop(crop_keys, images, 2)
    expected = on_device.random_flip(flip_keys, expected)
    expected = on_device.normalize(expected, config.mean, config.std, jnp.float32)
    expected = on_device.random_erase(erase_keys, expected, 0.5)
    expected = on_device.mix_pairs(mix_keys, expected, np.eye(16), 0.4, 1.0)
    for array, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, wanted)
    drawn = jnp.concatenate(
        [crop_keys, flip_keys, mix_keys, erase_keys, on_device.drop_keys(keys(16))]
    )
    assert len(np.unique(jax.random.key_data(drawn), axis=0)) == 5 * 16


def test_batch_without_any_augmentation_is_normalised_alone():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    config = data_config()
    got, targets = on_device.train_batch(keys(4), images, np.eye(4), config, jnp.float32)
    expected = on_device.normalize(images, config.mean, config.std, jnp.float32)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(targets, np.eye(4))


@pytest.mark.slow
def test_border_of_a_crop_is_black_before_it_is_normalised():
    white, config = np.full((32, 6, 6, 3), 255, np.uint8), data_config(crop_padding=2)
    images, _ = on_device.train_batch(keys(32), white, np.eye(32), config, jnp.float32)
    levels = np.array([0, 255], np.uint8).reshape(1, 2, 1, 1).repeat(3, -1)
    black, full = on_device.normalize(levels, config.mean, config.std, jnp.float32)[0, :, 0]
    is_black = (np.asarray(images) == black).all(-1)
    np.testing.assert_array_equal(
        np.asarray(images)[~is_black], np.tile(full, ((~is_black).sum(), 1))
    )
    assert is_black.any()


@functools.cache
def mixed(count, mixup, cutmix, size=(8, 8)):
    """Mixed images and targets of a random batch, the images before, and their partners."""
    images = np.random.default_rng(0).uniform(-1, 1, (count, *size, 3)).astype(np.float32)
    mix = jax.jit(on_device.mix_pairs, static_argnums=(3, 4))
    got_images, got_targets = mix(keys(count), images, jnp.eye(count), mixup, cutmix)
    partners = images[np.arange(count) ^ 1]
    return np.asarray(got_images), np.asarray(got_targets), images, partners


def own_shares(images, own, partners):
    """The share λ of every pixel in λ own + (1 − λ) partner, from their three channels."""
    difference = own - partners
    shares = ((images - partners) * difference).sum(-1) / (difference**2).sum(-1)
    np.testing.assert_allclose(
        images, shares[..., None] * own + (1 - shares[..., None]) * partners, atol=1e-6
    )
    return shares


def assert_targets_are(targets, shares):
    """Row i has its share at class i and the rest at its partner's class."""
    rows = np.arange(len(targets))
    expected = np.zeros(targets.shape)
    expected[rows, rows], expected[rows, rows ^ 1] = shares, 1 - shares
    np.testing.assert_allclose(targets, expected, atol=1e-5)
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)


def test_mixup_blends_a_pair_with_one_share():
    images, targets, own, partners = mixed(400, 0.2, 0.0, size=(3, 2))
    shares = own_shares(images, own, partners)
    first = shares[:, 0, 0]
    np.testing.assert_allclose(
        shares, np.broadcast_to(first[:, None, None], shares.shape), atol=1e-5
    )
    np.testing.assert_allclose(first[::2], first[1::2], atol=1e-5)
    assert_targets_are(targets, first)


def test_mixup_draws_its_shares_from_the_beta_distribution():
    _, targets, *_ = mixed(400, 0.2, 0.0, size=(3, 2))
    shares = targets.diagonal()[::2]
    assert shares.min() >= 0
    assert shares.max() <= 1
    # Within four standard errors of 200 draws.
    assert abs(shares.mean() - 0.5) < 0.12
    assert abs(shares.var() - 1 / (4 * (2 * 0.2 + 1))) < 0.03


def test_cutmix_pastes_the_same_box_into_both_of_a_pair():
    images, targets, own, partners = mixed(64, 0.0, 1.0)
    is_own, is_partners = (images == own).all(-1), (images == partners).all(-1)
    assert (is_own ^ is_partners).all()
    np.testing.assert_array_equal(is_own[::2], is_own[1::2])
    box = is_partners.any(2)[:, :, None] & is_partners.any(1)[:, None, :]
    np.testing.assert_array_equal(is_partners, box)
    assert_targets_are(targets, is_own.mean((1, 2)))
    assert len(set(is_own.sum((1, 2)))) > 8


@pytest.mark.slow
def test_area_of_the_box_is_the_share_of_the_partner():
    images, _, _, partners = mixed(128, 0.0, 1e4, size=(64, 32))
    is_partners = (images == partners).all(-1)[::2]
    # So large a parameter leaves λ = 1/2; boxes that the border clips are smaller.
    for axis, size in ((2, 64), (1, 32)):
        sides = is_partners.any(axis)
        inside = sides[~(sides[:, 0] | sides[:, -1])]
        assert len(inside) > 3
        assert np.abs(inside.sum(-1) - size * np.sqrt(0.5)).max() < 1


@pytest.mark.slow
def test_both_together_toss_a_coin_for_each_pair():
    images, targets, own, partners = mixed(128, 0.8, 1.0)
    shares = own_shares(images, own, partners)
    assert_targets_are(targets, shares.mean((1, 2)))
    spread = np.ptp(shares, (1, 2))[::2]
    by_cutmix = spread > 0.5
    assert (by_cutmix | (spread < 1e-4)).all()
    # Four standard deviations of 64 tosses.
    assert 16 < by_cutmix.sum() < 48


def test_mixing_with_neither_changes_nothing():
    images, targets, own, _ = mixed(8, 0.0, 0.0)
    np.testing.assert_array_equal(images, own)
    np.testing.assert_array_equal(targets, np.eye(8))


def erased_boxes(images):
    """Area and height / width of the box of zeros in each image, None where there is none."""
    found = []
    for image in np.asarray(images):
        rows, columns = np.nonzero((image == 0).all(-1))
        if not len(rows):
            found.append(None)
            continue
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert height * width == len(rows)
        found.append((height * width / image.shape[0] / image.shape[1], height / width))
    return found


def test_random_erasing_follows_its_definition():
    images = jnp.ones((600, 40, 60, 2))
    erase = jax.jit(on_device.random_erase, static_argnums=2)
    found = erased_boxes(erase(keys(600), images, 0.25))
    boxes = [box for box in found if box is not None]
    assert 100 < len(boxes) < 200
    areas, aspects = np.array(boxes).T
    assert 0.015 < areas.min() < 0.05 < 0.27 < areas.max() < 0.345
    assert 0.25 < aspects.min() < 0.4 < 2.5 < aspects.max() < 4
    assert abs(np.log(aspects).mean()) < 0.2
    assert all(found == 1 for found in np.unique(erase(keys(600), images, 0.0)))


@pytest.mark.slow
def test_random_erasing_reaches_every_pixel():
    images = jnp.ones((300, 20, 20, 1))
    kept = jax.jit(on_device.random_erase, static_argnums=2)(keys(300), images, 1)
    assert (np.asarray(kept).min(0) == 0).all()
    assert None not in erased_boxes(kept)


def test_random_erasing_comes_after_normalisation():
    config = data_config(random_erasing=1.0)
    images = np.full((8, 20, 20, 3), 255, np.uint8)
    targets = jnp.zeros((8, 2))
    train_batch = jax.jit(lambda k, x: on_device.train_batch(k, x, targets, config, jnp.float32))
    erased, _ = train_batch(keys(8), images)
    assert None not in erased_boxes(erased)


def test_resized_crops_are_not_padded_and_cut_again():
    config = data_config(crop="resized", crop_padding=4)
    images = distinct_images(8)[..., [0, 1, 0]]
    found, _ = on_device.train_batch(keys(8), images, jnp.zeros((8, 2)), config, jnp.float32)
    expected = on_device.normalize(images, config.mean, config.std, jnp.float32)
    np.testing.assert_array_equal(found, expected)
