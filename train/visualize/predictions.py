"""What a network makes of an image: its prediction, the places that led to it, its gates."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nam_jax import gates
from train.core.data import on_device
from train.visualize.grad_cam import grad_cam
from train.visualize.trained_network import Trained

# What the gate is of, by the attention that has but one.
KINDS = {"nam_channel": "channel", "nam_tied": "channel", "nam_spatial": "spatial"}


class View(NamedTuple):
    """What a network makes of one image.

    Attributes:
      label: of the class with the largest logit.
      probability: of that class.
      heat: (H', W'), Grad-CAM's map for that class.
      channels: (C,), a layer's channel gate, its mean over the map; None without one.
      pixels: (H'', W''), a layer's spatial gate, its mean over the channels; None without one.
    """

    label: Any
    probability: Any
    heat: Any
    channels: Any = None
    pixels: Any = None


def layers(trained: Trained) -> list[str]:
    """The paths of all layers with NAM, such as `layer4_2/attention`, in the network's order."""
    paths: list[str] = []

    def trace(variables: Any, images: jax.Array) -> None:
        paths.extend(gates(trained.model, variables, images, train=False))

    jax.eval_shape(trace, trained.variables, jnp.zeros((1, *trained.image_shape)))
    attention = trained.config.model.attention
    return list(dict.fromkeys(_layer_and_kind(path, attention)[0] for path in paths))


def viewer(trained: Trained, layer: str | None) -> Callable[[np.ndarray], View]:
    """Gives the view of an image (H, W, C) uint8.

    Args:
      trained: the network.
      layer: whose gates to look at, one of `layers`; None: none.
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
        found = gates(model, variables, images, train=False) if layer else {}
        profiles = _profiles(found, layer, config.model.attention)
        return View(classes[0], jax.nn.softmax(logits)[0].max(), heat[0], *profiles)

    # Image by image: neither many of them nor the gates of all layers have to fit in the memory.
    compiled, variables = jax.jit(view), jax.device_put(trained.variables)
    return lambda image: jax.device_get(compiled(variables, image))


def _profiles(
    found: Mapping[str, jax.Array], layer: str | None, attention: str
) -> tuple[jax.Array | None, jax.Array | None]:
    channels = pixels = None
    for path, gate in found.items():
        match _layer_and_kind(path, attention):
            case owner, "channel" if owner == layer:
                channels = gate[0].mean((0, 1))
            case owner, "spatial" if owner == layer:
                pixels = gate[0].mean(-1)
    return channels, pixels


def _layer_and_kind(path: str, attention: str) -> tuple[str, str]:
    layer, _, last = path.rpartition("/")
    return (layer, last) if attention == "nam" else (path, KINDS[attention])
