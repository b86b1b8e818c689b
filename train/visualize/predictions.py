"""What a network makes of an image: its prediction, the places that led to it, its gates."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from nam_jax.inspection.image_gates import recorded_gates
from nam_jax.variables import is_attention
from train.core.data import on_device
from train.core.engine.trained_network import Trained
from train.core.errors import ConfigError
from train.visualize.grad_cam import grad_cam


class View(NamedTuple):
    """What a network makes of one image.

    Attributes:
      label: Index of the class with the largest logit.
      probability: Probability of that class, in [0, 1].
      heat: Grad-CAM's map (H', W') for that class, at least 0.
      channel_gate: Channel gate (C,) of a layer, its mean over the map; None without one.
      spatial_gate: Spatial gate (H'', W'') of a layer, its mean over the channels; None without
        one.
    """

    label: Any
    probability: Any
    heat: Any
    channel_gate: Any = None
    spatial_gate: Any = None


def gated_layers(trained: Trained) -> list[str]:
    """The paths of all layers with NAM, such as `layer4_2/attention`, in the network's order."""
    paths: list[str] = []

    def trace(variables: Any, images: jax.Array) -> None:
        paths.extend(path for path, _ in _gates(trained.model, variables, images))

    jax.eval_shape(trace, trained.variables, jnp.zeros((1, *trained.image_shape)))
    return list(dict.fromkeys(map(_layer, paths)))


def chosen_layer(trained: Trained, wanted: str | None) -> str | None:
    """The layer whose gates are drawn: the wanted one, else the last one with NAM, if any.

    Args:
      trained: Network to look with.
      wanted: Path of a layer.

    Raises:
      ConfigError: there is no such layer.
    """
    paths = gated_layers(trained)
    if wanted is None:
        return paths[-1] if paths else None
    if wanted not in paths:
        allowed = ", ".join(paths) or f"none, {trained.config.model.attention} is no NAM"
        raise ConfigError(f"--layer: got {wanted!r}; allowed: {allowed}.")
    return wanted


def viewer(trained: Trained, layer: str | None) -> Callable[[np.ndarray], View]:
    """Gives the view of an image (H, W, C) uint8.

    Args:
      trained: Network to look with.
      layer: Layer whose gates to look at, one of `gated_layers`; None: none.
    """
    model, config = trained.model, trained.config

    def view(variables: Any, image: jax.Array) -> View:
        data = config.data
        images = on_device.normalize(image[None], data.mean, data.std, config.model.dtype)

        def network(images: jax.Array) -> Any:
            return model.apply(variables, images, train=False)

        logits = network(images)
        classes = logits.argmax(-1)
        heat = grad_cam(network, images, classes)
        profiles = _profiles(model, variables, images, layer) if layer else {}
        return View(classes[0], jax.nn.softmax(logits)[0].max(), heat[0], **profiles)

    # Image by image: neither many of them nor the gates of all layers have to fit in the memory.
    compiled, variables = jax.jit(view), jax.device_put(trained.variables)
    return lambda image: jax.device_get(compiled(variables, image))


def _gates(
    model: nn.Module, variables: Any, images: jax.Array
) -> Iterator[tuple[str, tuple[str, jax.Array]]]:
    return recorded_gates(model, variables, images, (), {"train": False})


def _profiles(
    model: nn.Module, variables: Any, images: jax.Array, layer: str
) -> dict[str, jax.Array]:
    """The gates of a layer as fields of a `View`."""
    profiles = {}
    for path, (kind, gate) in _gates(model, variables, images):
        if _layer(path) == layer:
            profiles[f"{kind}_gate"] = gate[0].mean(-1 if kind == "spatial" else (0, 1))
    return profiles


def _layer(path: str) -> str:
    """The path of the attention that a module with gates is, or is a part of."""
    parts = path.split("/")
    place = next(place for place, part in enumerate(parts) if is_attention(part))
    return "/".join(parts[: place + 1])
