"""ResNet-50 with NAM, channel and spatial, on ImageNet by the recipe A2 of ResNet strikes back.

python -m train.main --config configs/imagenet_resnet50_a2.py --config.data.dir=DIR

As imagenet_resnet50_a3, but 300 epochs of crops of 224 × 224, a learning rate of 5e-3, three rows
of a batch for every image, RandAugment of level 7 of 10, here 21 of 30, and stochastic depth 0.05.

Source: R. Wightman, H. Touvron and H. Jégou, ResNet strikes back, 2021,
https://arxiv.org/abs/2110.00476, table 2; the number of rows is that of timm's and DeiT's repeated
augmentation. The authors report 79.8 % top-1 accuracy, without attention. Time and error here have
not been measured; it is meant for GPUs or TPUs.
"""

from configs import imagenet_resnet50_a3
from train.config import Config


def get_config() -> Config:
    config = imagenet_resnet50_a3.get_config()
    config.epochs = 300
    config.model.drop_path = 0.05
    config.data.image_size = 224
    config.data.eval_image_size = 0
    config.data.augment_repeats = 3
    config.data.randaugment_level = 21
    config.optimizer.learning_rate = 5e-3
    return config
