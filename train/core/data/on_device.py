"""Augmentation on the device, inside the jitted step.

Every image has its own random key, made from the seed, the step and its row in the global
batch, so that nothing depends on how many devices share the batch.
"""

import jax
import jax.numpy as jnp
from flax.typing import Dtype

from train.core.config.data_fields import DataConfig
from train.core.config.fields import Config
from train.core.errors import ConfigError


def row_keys(key: jax.Array, step: jax.Array, rows: jax.Array) -> jax.Array:
    """One key per row of the global batch of a step.

    Args:
      key: Random key of the run.
      step: Number of the step.
      rows: Positions in the global batch, (n,).
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, step), rows)


def drop_keys(keys: jax.Array) -> jax.Array:
    """One key per row for what the network drops, from those of `row_keys`."""
    return jax.vmap(lambda key: jax.random.fold_in(key, 4))(keys)


def train_batch(
    keys: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    config: DataConfig,
    dtype: Dtype,
) -> tuple[jax.Array, jax.Array]:
    """Crops, mirrors, normalises, erases and mixes the images of a training batch.

    Args:
      keys: Random key of each row, from `row_keys`, (N,).
      images: Images, (N, H, W, C) uint8.
      targets: Probability of every class, (N, classes).
      config: The `data` part of a run's config.
      dtype: Dtype of the images that are returned.

    Returns:
      Images (N, H, W, C) and targets (N, classes).
    """
    crop_keys, flip_keys, mix_keys = jnp.moveaxis(
        jax.vmap(lambda k: jax.random.split(k, 3))(keys), 1, 0
    )
    if config.crop == "pad":
        images = random_crop(crop_keys, images, config.crop_padding)
    images = random_flip(flip_keys, images) if config.flip else images
    images = normalize(images, config.mean, config.std, dtype)
    if config.random_erasing:
        erase_keys = jax.vmap(lambda k: jax.random.fold_in(k, 3))(keys)
        images = random_erase(erase_keys, images, config.random_erasing)
    if config.mixup or config.cutmix:
        images, targets = mix_pairs(mix_keys, images, targets, config.mixup, config.cutmix)
    return images, targets


def random_crop(keys: jax.Array, images: jax.Array, padding: int) -> jax.Array:
    """Pads with zeros on each side and cuts the old size out at random.

    Args:
      keys: Random key of each row, (N,).
      images: Images, (N, H, W, C) of any dtype.
      padding: Number of pixels on each side.

    Returns:
      The crops, of the shape of images.
    """
    if padding == 0:
        return images
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def crop(key: jax.Array, image: jax.Array) -> jax.Array:
        top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
        return jax.lax.dynamic_slice(image, (top, left, 0), images.shape[1:])

    return jax.vmap(crop)(keys, padded)


def random_flip(keys: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability 1/2.

    Args:
      keys: Random key of each row, (N,).
      images: Images, (N, H, W, C) of any dtype.
    """
    mirrored = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def normalize(
    images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: Dtype
) -> jax.Array:
    """(images / 255 − mean) / std.

    Args:
      images: Images, (N, H, W, C) uint8.
      mean: Mean of every channel, or one for all.
      std: Standard deviation of every channel, or one for all.
      dtype: Dtype of the result.
    """
    precise = jnp.promote_types(dtype, jnp.float32)
    scale = 1 / (255 * jnp.asarray(std, precise))
    offset = -jnp.asarray(mean, precise) / jnp.asarray(std, precise)
    return (images.astype(precise) * scale + offset).astype(dtype)


def random_erase(keys: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Sets a random box of an image to zero, with a probability.

    The box has 2 to 33 % of the image's area, and height / width between 0.3 and 1 / 0.3, in
    logarithmic proportion; the first of ten such boxes that fits into the image is taken. The
    largest area, the proportions and the zeros are those in use today; the paper has 40 % and
    random values.

    Args:
      keys: Random key of each row, (N,).
      images: Normalised images, in which zero is the mean, (N, H, W, C) floating.
      probability: Probability that an image is changed, in [0, 1].

    Source: Z. Zhong et al., Random Erasing Data Augmentation, 2017,
    https://arxiv.org/abs/1708.04896.
    """
    height, width = images.shape[1:3]
    size = jnp.array([height, width])

    def kept(key: jax.Array) -> jax.Array:
        chance_key, area_key, aspect_key, place_key = jax.random.split(key, 4)
        area = jax.random.uniform(area_key, (10,), minval=0.02, maxval=0.33) * height * width
        bound = -jnp.log(0.3)
        aspect = jnp.exp(jax.random.uniform(aspect_key, (10,), minval=-bound, maxval=bound))
        extents = jnp.round(jnp.stack([jnp.sqrt(area * aspect), jnp.sqrt(area / aspect)], -1))
        fits = (extents < size).all(-1)
        extent = extents[fits.argmax()]
        low = jnp.floor(jax.random.uniform(place_key, (2,)) * (size - extent + 1))
        erased = fits.any() & jax.random.bernoulli(chance_key, float(probability))
        return jnp.where(erased, _outside(low, low + extent, (height, width)), 1.0)

    return images * jax.vmap(kept)(keys)[..., None].astype(images.dtype)


def mix_pairs(
    keys: jax.Array, images: jax.Array, targets: jax.Array, mixup: float, cutmix: float
) -> tuple[jax.Array, jax.Array]:
    """Mixes neighbouring rows, row i with row i xor 1, by mixup or CutMix.

    mixup:   x ← λ x + (1 − λ) x',  λ ~ Beta(mixup, mixup), for the pair
    CutMix:  a box of x' is pasted into x; its area is 1 − λ, λ ~ Beta(cutmix, cutmix),
             before it is clipped to the image

    The targets are mixed by the share of each image's pixels. Where both are on, each pair
    tosses a coin. Pairs of neighbours make the result independent of how many devices share
    the batch.

    Args:
      keys: Random key of each row, (N,).
      images: Images, (N, H, W, C) floating, N even.
      targets: Probability of every class, (N, classes).
      mixup: Parameter of mixup's Beta distribution; 0: no mixup.
      cutmix: Parameter of CutMix's Beta distribution; 0: no CutMix.

    Returns:
      Images and targets, mixed.

    Source: H. Zhang et al., mixup, 2017, https://arxiv.org/abs/1710.09412; S. Yun et al.,
    CutMix, 2019, https://arxiv.org/abs/1905.04899.
    """
    size = (images.shape[1], images.shape[2])
    own_share = jax.vmap(lambda key: _own_share(key, size, mixup, cutmix))(keys[::2])
    own_share = jnp.repeat(own_share, 2, axis=0)
    weights = own_share[..., None].astype(images.dtype)
    images = weights * images + (1 - weights) * _partners(images)
    weights = own_share.mean((1, 2))[:, None]
    return images, weights * targets + (1 - weights) * _partners(targets)


def _partners(rows: jax.Array) -> jax.Array:
    pairs = rows.reshape(-1, 2, *rows.shape[1:])
    return pairs[:, ::-1].reshape(rows.shape)


def _own_share(key: jax.Array, size: tuple[int, int], mixup: float, cutmix: float) -> jax.Array:
    """How much of every pixel (H, W) remains an image's own."""
    coin_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 4)
    by_mixup = jax.random.bernoulli(coin_key) if mixup and cutmix else bool(mixup)
    mixed, kept = jnp.ones(size), jnp.ones(size)
    if mixup:
        mixed = jnp.full(size, jax.random.beta(mixup_key, mixup, mixup))
    if cutmix:
        kept = _outside_box(box_key, size, jax.random.beta(cutmix_key, cutmix, cutmix))
    return jnp.where(by_mixup, mixed, kept)


def _outside_box(key: jax.Array, size: tuple[int, int], share: jax.Array) -> jax.Array:
    """0 in a box around a random pixel, 1 outside: (H, W); the box has the area 1 − share."""
    extent = jnp.asarray(size) * jnp.sqrt(1 - share)
    center = jnp.floor(jax.random.uniform(key, (2,)) * jnp.asarray(size))
    low, high = jnp.floor(center - extent / 2), jnp.floor(center + extent / 2)
    return _outside(low, high, size)


def _outside(low: jax.Array, high: jax.Array, size: tuple[int, int]) -> jax.Array:
    """0 from low up to high, both (row, column), and 1 elsewhere: (H, W)."""
    row, column = jnp.arange(size[0])[:, None], jnp.arange(size[1])[None]
    inside = (row >= low[0]) & (row < high[0]) & (column >= low[1]) & (column < high[1])
    return jnp.where(inside, 0.0, 1.0)


def check_images(config: DataConfig, shape: tuple[int, int, int]) -> None:
    """Checks that what is done to images is possible with those of a shape.

    Args:
      config: The `data` part of a run's config.
      shape: (H, W, C) of the images.

    Raises:
      ConfigError: the padding is wider than they are, or the normalisation has other channels.
    """
    height, width, channels = shape
    if config.crop == "pad" and config.crop_padding > min(height, width):
        raise ConfigError(
            f"config.data.crop_padding: {config.crop_padding} pixels on each side of images of "
            f"{height} × {width}; allowed: at most {min(height, width)}."
        )
    for name, numbers in (("mean", config.mean), ("std", config.std)):
        if len(numbers) not in (1, channels):
            raise ConfigError(
                f"config.data.{name}: {len(numbers)} numbers, but the images of "
                f"{config.name} have {channels} channels; give one for each, or one for all."
            )


def check_pairs(config: Config, num_devices: int) -> None:
    """Checks that each device has pairs of images where pairs are mixed.

    Args:
      config: Config of the run.
      num_devices: Number of devices that share a batch.

    Raises:
      ConfigError: it has an odd number.
    """
    if (config.data.mixup or config.data.cutmix) and config.batch_size // num_devices % 2:
        raise ConfigError(
            "config.batch_size: config.data.mixup and config.data.cutmix mix pairs of images, and "
            f"{config.batch_size} gives each of {num_devices} devices an odd number; use a "
            f"multiple of {2 * num_devices}."
        )
