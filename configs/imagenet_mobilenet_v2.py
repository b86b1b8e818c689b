"""MobileNetV2 with NAM, channel and spatial, on ImageNet.

python -m train.main --config configs/imagenet_mobilenet_v2.py --config.data.dir=DIR

As imagenet_resnet50, but for what a small network needs: weight decay 4e-5, that of the
MobileNetV2 paper, and 150 epochs of a cosine schedule from 0.05. Time and error have not been
measured; it is meant for several GPUs or TPU chips.
"""

from configs import imagenet_resnet50
from train.config import Config


def get_config() -> Config:
    config = imagenet_resnet50.get_config()
    config.epochs = 150
    config.model.name = "mobilenet_v2"
    config.optimizer.learning_rate = 0.05
    config.optimizer.schedule = "cosine"
    config.optimizer.weight_decay = 4e-5
    return config
