"""Networks as StableHLO, for programs with JAX and flatbuffers."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from flax import linen as nn

from nam_jax.export.serving import check_installed, classifier, example

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(
    model: nn.Module,
    variables: Any,
    image_shape: Sequence[int],
    *,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    probabilities: bool = False,
) -> bytes:
    """Makes one file of a network and its weights, which needs neither Flax nor this library.

    `jax.export.deserialize(file).call(images)` runs it, for any number of images. JAX loads such
    files for at least half a year after it wrote them. Needs `flatbuffers`, to write and to read.

    Args:
      model: Network that is called with images (N, H, W, C) and `train`.
      variables: Variables of the model, `params` and `batch_stats`.
      image_shape: Shape of one image, (H, W, C).
      platforms: Platforms that the file is for, of `cpu`, `cuda`, `rocm` and `tpu`.
      mean: Mean of every channel, or one for all, of pixels in 0…1, for images of uint8 in
        0…255; None: images are float32 and normalised already.
      std: Standard deviation of every channel, or one for all; given with the mean.
      probabilities: Whether the result is the softmax of the logits, not the logits.

    Returns:
      What to write to a file. The function in it maps images (N, H, W, C) to (N, classes), at
      least float32.

    Raises:
      ValueError: image_shape is no (H, W, C), platforms are not as above, mean is given without
        std, or they are not of so many channels, or a deviation is not above 0.
      ImportError: the package `flatbuffers` is not installed.

    Example:
      >>> import jax, jax.numpy as jnp, nam_jax
      >>> from nam_jax.models.resnet import BasicBlock, ResNet
      >>> model = ResNet(BasicBlock, (1,), num_classes=10, attention="nam", width=8)
      >>> images = jnp.ones((2, 32, 32, 3))
      >>> init = lambda x: model.init(jax.random.key(0), x, train=False)
      >>> variables = jax.tree.map(jnp.zeros_like, jax.eval_shape(init, images))
      >>> file = nam_jax.export(model, variables, images.shape[1:])
      >>> jax.export.deserialize(bytearray(file)).call(images).shape
      (2, 10)
    """
    check_installed("flatbuffers", "nam_jax.export")
    if isinstance(platforms, str) or not platforms or not set(platforms) <= set(PLATFORMS):
        raise ValueError(
            f"platforms has to be a sequence of some of {', '.join(PLATFORMS)}; got {platforms!r}."
        )
    function = jax.jit(classifier(model, variables, mean, std, probabilities))
    with _without_source_lines():
        exported = jax.export.export(function, platforms=list(platforms))(
            example(image_shape, mean, std)
        )
    return bytes(exported.serialize())


@contextlib.contextmanager
def _without_source_lines() -> Iterator[None]:
    """Else a file would name the directories of whoever made it, and differ with them."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)
