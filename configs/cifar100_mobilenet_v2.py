"""MobileNetV2 with channel NAM on CIFAR-100: the recipe of cifar100_resnet50.

python -m train.main --config configs/cifar100_mobilenet_v2.py --config.data.dir=DIR

The first convolution and the first blocks with 24 features have stride 1. Time and error have
not been measured; it is meant for a GPU or TPU.
"""

from configs import cifar100_resnet50
from train.config import Config


def get_config() -> Config:
    config = cifar100_resnet50.get_config()
    config.model.name = "mobilenet_v2"
    return config
