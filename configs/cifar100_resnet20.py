"""ResNet-20 with channel NAM on CIFAR-100: the recipe of cifar100_resnet50, small.

python -m train.main --config configs/cifar100_resnet20.py --config.data.dir=DIR

Measured on two CPU cores, shortened to two epochs by --config.epochs=2, and with
--config.model.shortcut=pad_end: 10 minutes (about 185 images per second), top-1 error 82.58 %,
top-5 error 56.08 %. The whole run has not been measured.
"""

from configs import cifar100_resnet50
from train.config import Config


def get_config() -> Config:
    config = cifar100_resnet50.get_config()
    config.model.name = "resnet20"
    return config
