"""What a network makes of an image: its prediction, the places that led to it, its gates."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nam_jax import gates
from train.core.data import on_device
from train.core.engine.trained_network import Trained
from train.core.errors import ConfigError
from train.visualize.grad_cam import grad_cam

# What the gate is of, by the attention that has but one.
GATED = {"nam_channel": "channel", "nam_tied": "channel", "nam_spatial": "spatial"}


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


def layers(trained: Trained) -> list[str]:
    """The paths of all layers with NAM, such as `layer4_2/attention`, in the network's order."""
    paths: list[str] = []

    def trace(variables: Any, images: jax.Array) -> None:
        paths.extend(gates(trained.model, variables, images, train=False))

    jax.eval_shape(trace, trained.variables, jnp.zeros((1, *trained.image_shape)))
    attention = trained.config.model.attention
    return list(dict.fromkeys(_layer_and_kind(path, attention)[0] for path in paths))


def chosen_layer(trained: Trained, wanted: str | None) -> str | None:
    """The layer whose gates are drawn: the wanted one, else the last one with NAM, if any.

    Args:
      trained: Network to look with.
      wanted: Path of a layer.

    Raises:
      ConfigError: there is no such layer.
    """
    paths = layers(trained)
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
      layer: Layer whose gates to look at, one of `layers`; None: none.
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
        by_path = gates(model, variables, images, train=False) if layer else {}
        profiles = _profiles(by_path, layer, config.model.attention)
        return View(classes[0], jax.nn.softmax(logits)[0].max(), heat[0], *profiles)

    # Image by image: neither many of them nor the gates of all layers have to fit in the memory.
    compiled, variables = jax.jit(view), jax.device_put(trained.variables)
    return lambda image: jax.device_get(compiled(variables, image))


def _profiles(
    by_path: Mapping[str, jax.Array], layer: str | None, attention: str
) -> tuple[jax.Array | None, jax.Array | None]:
    channels = pixels = None
    for path, gate in by_path.items():
        match _layer_and_kind(path, attention):
            case owner, "channel" if owner == layer:
                channels = gate[0].mean((0, 1))
            case owner, "spatial" if owner == layer:
                pixels = gate[0].mean(-1)
    return channels, pixels


def _layer_and_kind(path: str, attention: str) -> tuple[str, str]:
    layer, _, last = path.rpartition("/")
    return (layer, last) if attention == "nam" else (path, GATED[attention])
