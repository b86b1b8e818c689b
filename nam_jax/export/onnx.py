"""Networks as ONNX, for onnxruntime and everything else that reads it."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn

from nam_jax.export.fold import fold
from nam_jax.export.serving import check_installed, classifier, example
from nam_jax.export.trace import Graph, trace


def export_onnx(
    model: nn.Module,
    variables: Any,
    image_shape: Sequence[int],
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    probabilities: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Makes an ONNX file of a network and its weights, in float32, with all BatchNorms folded.

    The input is `images`, (N, H, W, C), for any N; the output `logits` or `probabilities`,
    (N, classes). Every network and attention of this library can be exported, and others as far as
    `nam_jax/export/onnx_operations.py` knows their operations. Needs the package `onnx`.

    Args:
      model: Network that is called with images (N, H, W, C) and `train`.
      variables: Variables of the model, `params` and `batch_stats`.
      image_shape: Shape of one image, (H, W, C).
      mean: Mean of every channel, or one for all, of pixels in 0…1, for images of uint8 in
        0…255; None: images are float32 and normalised already.
      std: Standard deviation of every channel, or one for all; given with the mean.
      probabilities: Whether the result is the softmax of the logits, not the logits.
      metadata: Texts by name, for the properties of the file.

    Returns:
      What to write to a file, checked by ONNX itself.

    Raises:
      UnsupportedOperationError: the network has an operation that is not known here.
      ValueError: image_shape is no (H, W, C), mean is given without std, or they are not of so
        many channels, or a deviation is not above 0.
      ImportError: the package `onnx` is not installed.

    Example:
      >>> import jax, jax.numpy as jnp, nam_jax
      >>> from nam_jax.models.resnet import BasicBlock, ResNet
      >>> model = ResNet(BasicBlock, (1,), num_classes=10, attention="nam", width=8)
      >>> images = jnp.ones((2, 32, 32, 3))
      >>> init = lambda x: model.init(jax.random.key(0), x, train=False)
      >>> variables = jax.tree.map(jnp.zeros_like, jax.eval_shape(init, images))
      >>> file = nam_jax.export_onnx(model, variables, images.shape[1:])
    """
    check_installed("onnx", "nam_jax.export_onnx")
    function = classifier(model, variables, mean, std, probabilities)
    graph = fold(trace(function, example(image_shape, mean, std)))
    output = "probabilities" if probabilities else "logits"
    return written(graph, output, metadata or {}).SerializeToString()


def written(graph: Graph, output: str, metadata: Mapping[str, str]) -> Any:
    """The ONNX model of a graph.

    Args:
      graph: Operations of a function of images.
      output: Name of its result.
      metadata: Properties of the file.
    """
    # Here, for the library itself does without the package.
    from nam_jax.export.onnx_operations import write
    from nam_jax.export.onnx_writer import Writer

    writer = Writer(graph)
    for operation in graph.operations:
        write(writer, operation)
    return writer.model(graph, output, metadata)
