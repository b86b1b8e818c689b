"""Augmentation on the device, inside the jitted step.

Every image has its own random key, made from the seed, the step and its row in the global
batch, so that nothing depends on how many devices share the batch.
"""

import jax
import jax.numpy as jnp
from flax.typing import Dtype
from ml_collections import ConfigDict


def row_keys(key: jax.Array, step: jax.Array, rows: jax.Array) -> jax.Array:
    """One key per row of the global batch of a step.

    Args:
      key: of the run.
      step: number of the step.
      rows: (n,) positions in the global batch.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, step), rows)


def train_images(keys: jax.Array, images: jax.Array, config: ConfigDict, dtype: Dtype) -> jax.Array:
    """Crops, mirrors and normalises the images of a training batch.

    Args:
      keys: (N,) random keys, from `row_keys`.
      images: (N, H, W, C) uint8.
      config: the `data` part of a run's config.
      dtype: of the result.

    Returns:
      (N, H, W, C).
    """
    crop_keys, flip_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    images = random_crop(crop_keys, images, config.crop_padding)
    images = random_flip(flip_keys, images) if config.flip else images
    return normalize(images, config.mean, config.std, dtype)


def random_crop(keys: jax.Array, images: jax.Array, padding: int) -> jax.Array:
    """Pads with zeros on each side and cuts the old size out at random.

    Args:
      keys: (N,) random keys.
      images: (N, H, W, C) of any dtype.
      padding: pixels on each side.

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
      keys: (N,) random keys.
      images: (N, H, W, C) of any dtype.
    """
    mirrored = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def normalize(
    images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: Dtype
) -> jax.Array:
    """(images / 255 − mean) / std.

    Args:
      images: (N, H, W, C) uint8.
      mean: of every channel, or one for all.
      std: of every channel, or one for all.
      dtype: of the result.
    """
    precise = jnp.promote_types(dtype, jnp.float32)
    scale = 1 / (255 * jnp.asarray(std, precise))
    offset = -jnp.asarray(mean, precise) / jnp.asarray(std, precise)
    return (images.astype(precise) * scale + offset).astype(dtype)
