"""What a trained network does in a service: from images to logits, with its weights inside."""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import export


def check_installed(package: str, function: str) -> None:
    """Checks that a package is there which the library itself does without.

    Args:
      package: Name of the package.
      function: Name of the function that needs it.

    Raises:
      ImportError: it is not; says how to get it.
    """
    if importlib.util.find_spec(package) is None:
        raise ImportError(
            f"{function} needs the package {package}; get it with pip install {package}."
        )


def classifier(
    model: nn.Module,
    variables: Any,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
    probabilities: bool,
) -> Callable[[jax.Array], jax.Array]:
    """A function of images alone, for the arguments of `nam_jax.export`.

    Raises:
      ValueError: mean is given without std, or the other way round.
    """
    if (mean is None) != (std is None):
        raise ValueError("mean and std belong together: give both, or neither.")

    def classify(images: jax.Array) -> jax.Array:
        if mean is not None and std is not None:
            deviations = jnp.asarray(std, jnp.float32)
            offset = -jnp.asarray(mean, jnp.float32) / deviations
            images = images.astype(jnp.float32) * (1 / (255 * deviations)) + offset
        logits: Any = model.apply(variables, images, train=False)
        return jax.nn.softmax(logits) if probabilities else logits

    return classify


def example(image_shape: Sequence[int], mean: Any, std: Any) -> jax.ShapeDtypeStruct:
    """Any number of images: bytes where the function normalises them, else floats.

    Raises:
      ValueError: image_shape is no (H, W, C), or mean or std is not of so many channels, or a
        deviation is not above 0.
    """
    if len(image_shape) != 3 or not all(size >= 1 for size in image_shape):
        raise ValueError(
            f"image_shape has to be (H, W, C), each at least 1; got {tuple(image_shape)}."
        )
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and np.shape(values) not in ((), (1,), (image_shape[2],)):
            raise ValueError(
                f"{name} has to be a number, or one for each of {image_shape[2]} channels; "
                f"got {values}."
            )
    if std is not None and not np.all(np.asarray(std) > 0):
        raise ValueError(f"std has to be above 0; got {std}.")
    (batch,) = export.symbolic_shape("batch")
    return jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32 if mean is None else jnp.uint8)
