"""MobileNetV2 with NAM, channel and spatial, on ImageNet by torchvision's recipe of its V1 weights.

python -m train.main --config configs/imagenet_mobilenet_v2.py --config.data.dir=DIR

As imagenet_resnet50, but for what a small network needs: 300 epochs, a learning rate of 0.045,
× 0.98 after every epoch, weight decay 4e-5 on every parameter, dropout 0.2 before the classifier;
and with Pillow's bilinear interpolation, which torchvision's networks were trained with.

Source: torchvision, references/classification/README.md. It reports 71.9 % top-1 accuracy, without
attention. Time and error here have not been measured; it is meant for several GPUs or TPU chips.
"""

from configs import imagenet_resnet50
from train.config import Config


def get_config() -> Config:
    config = imagenet_resnet50.get_config()
    config.epochs = 300
    config.model.name = "mobilenet_v2"
    config.model.dropout = 0.2
    config.data.interpolation = "antialias"
    config.optimizer.learning_rate = 0.045
    config.optimizer.schedule = "exponential"
    config.optimizer.decay_factor = 0.98
    config.optimizer.weight_decay = 4e-5
    return config
