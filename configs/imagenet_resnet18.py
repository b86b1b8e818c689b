"""ResNet-18 with NAM, channel and spatial, on ImageNet: the recipe of imagenet_resnet50.

python -m train.main --config configs/imagenet_resnet18.py --config.data.dir=DIR

Time and error have not been measured; it is meant for a GPU or TPU.
"""

from configs import imagenet_resnet50
from train.config import Config


def get_config() -> Config:
    config = imagenet_resnet50.get_config()
    config.model.name = "resnet18"
    return config
