"""NAM attached to a pretrained network, by what it does to the error before any training.

python examples/pretrained_model.py mobilenet_v2-b0353104.pth IMAGES CLASSES

WEIGHTS are torchvision's MobileNetV2, IMAGES a folder of photographs, `IMAGES/<class>/<image>`, and
CLASSES a file with the names of its 1,000 classes in their order, one a line.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

import nam_jax

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read(path: Path) -> np.ndarray:
    """The centre, 224², of a photograph whose short side is scaled to 256."""
    image = cv2.imread(str(path))
    if image is None:
        raise SystemExit(f"{path}: no image that OpenCV reads; remove it.")
    image = image[..., ::-1]
    factor = 256 / min(image.shape[:2])
    image = cv2.resize(image, None, fx=factor, fy=factor)
    top, left = ((size - 224) // 2 for size in image.shape[:2])
    return ((image[top : top + 224, left : left + 224] / 255 - MEAN) / STD).astype(np.float32)


def with_attention(model: nn.Module, pretrained: Any) -> Any:
    """The pretrained variables of a model, and fresh ones of what is attached to it."""
    init = jax.jit(lambda key: model.init(key, jnp.ones((1, 224, 224, 3)), train=False))
    fresh = flatten_dict(init(jax.random.key(0)))
    return unflatten_dict({**fresh, **flatten_dict(pretrained)})


def error(model: nn.Module, pretrained: Any, images: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 error in percent."""
    variables = with_attention(model, pretrained)
    predict = jax.jit(lambda x: model.apply(variables, x, train=False).argmax(-1))
    batches = np.array_split(images, -(-len(images) // 50))
    predictions = np.concatenate([predict(batch) for batch in batches])
    return 100 * float((predictions != labels).mean())


def main(weights: str, images: str, classes: str) -> dict[str, float]:
    """Errors of the network without attention, and with fresh NAM of gates times 1 and 2."""
    names = Path(classes).read_text().splitlines()
    paths = sorted(path for path in Path(images).glob("*/*") if path.parent.name in names)
    if not paths:
        raise SystemExit(f"{images}: no <class>/<image> of a class in {classes} is there.")
    x = np.stack([read(path) for path in paths])
    labels = np.array([names.index(path.parent.name) for path in paths])
    model = nam_jax.models.create("mobilenet_v2", num_classes=len(names))
    state_dict = nam_jax.torch_import.read(weights)
    variables = nam_jax.torch_import.variables(model, state_dict, input_shape=(1, 224, 224, 3))
    models = {"no attention": model}
    for gate_scale in (1, 2):
        nam = nam_jax.NAM(gate_scale=gate_scale)
        models[f"fresh NAM, gates times {gate_scale}"] = nam_jax.attach(
            model, nam, after=r"block\d+/project_bn"
        )
    errors = {}
    for name, each in models.items():
        print(f"evaluating {name}, which takes a minute or more", file=sys.stderr, flush=True)
        errors[name] = error(each, variables, x, labels)
    return errors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for argument in ("weights", "images", "classes"):
        parser.add_argument(argument)
    for name, percent in main(**vars(parser.parse_args())).items():
        print(f"{name}: {percent:.1f} % wrong")
