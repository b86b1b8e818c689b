"""ResNet-20 with channel NAM on CIFAR-100: the recipe of cifar100_resnet50, small.

python -m train.main --config configs/cifar100_resnet20.py --config.data.dir=DIR
"""

from ml_collections import ConfigDict

from configs import cifar100_resnet50


def get_config() -> ConfigDict:
    config = cifar100_resnet50.get_config()
    config.model.name = "resnet20"
    return config
