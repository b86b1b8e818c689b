"""Classifies the images of a folder with a file of train.export.

Needs NumPy, Pillow, and onnxruntime for ONNX, or JAX and flatbuffers for StableHLO.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

RESAMPLING = {"area": "BOX", "antialias": "BILINEAR", "bilinear": "BILINEAR", "bicubic": "BICUBIC"}


def load(path):
    """A function of images (N, H, W, channels), and what is known about it."""
    beside = Path(f"{path}.json")
    if path.suffix == ".onnx" or not beside.exists():
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        properties = session.get_modelmeta().custom_metadata_map.items()
        about = {name: json.loads(value) for name, value in properties}
        return lambda images: session.run(None, {"images": images})[0], about
    from jax import export

    network = export.deserialize(bytearray(path.read_bytes()))
    return network.call, json.loads(beside.read_text())


def cropped(path, height, width, channels, crop_ratio, **about):
    """The middle of an image, scaled as in the evaluation."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("L" if channels == 1 else "RGB")
    scale = max(height / image.height, width / image.width) / crop_ratio
    size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    name = about["interpolation" if scale < 1 else "interpolation_enlarging"]
    image = image.resize(size, Image.Resampling[RESAMPLING[name]])
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    box = left, top, left + width, top + height
    return np.asarray(image.crop(box)).reshape(height, width, channels)


def main(file, folder):
    """Prints the class of every image."""
    network, about = load(file)
    known = Image.registered_extensions()
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in known):
        scores = np.asarray(network(cropped(path, **about["images"])[None]))[0]
        label = int(scores.argmax())
        print(path.name, about["classes"][label] if about["classes"] else label)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("file", "folder"):
        parser.add_argument(name, type=Path)
    main(**vars(parser.parse_args()))
