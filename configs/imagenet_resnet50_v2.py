"""ResNet-50 with NAM, channel and spatial, on ImageNet by torchvision's recipe of its V2 weights.

python -m train.main --config configs/imagenet_resnet50_v2.py --config.data.dir=DIR

600 epochs of crops of 176 × 176, evaluated at 224 × 224: SGD with momentum 0.9 and 0.5 for batches
of 1024, after a warm-up of 5 epochs down to 0 by a cosine, weight decay 2e-5 on kernels; label
smoothing 0.1, mixup 0.2, CutMix 1.0, TrivialAugment, random erasing 0.1, four rows of a batch for
every image, averaged weights; the centre of the short side scaled to 232 for the evaluation.

Source: V. Vryniotis, How to Train State-Of-The-Art Models Using TorchVision's Latest Primitives,
2021, https://pytorch.org/blog/how-to-train-state-of-the-art-models-using-torchvision-latest-primitives,
and torchvision's references/classification/README.md. Two things differ: the classifier's bias does
not decay, and how weights are averaged: at every step. There it is every 32 steps, with a rate of
1 − 2e-5 · 1024 · 32 / 600, which is 0.999966 for one, from the end of the warm-up on; here the rate
grows to it from the first step, as (1 + t) / (10 + t). torchvision reports 80.9 % top-1 accuracy,
without attention. Time and error here have not been measured; it is meant for GPUs or TPUs.
"""

from configs import imagenet_resnet50
from train.config import Config


def get_config() -> Config:
    config = imagenet_resnet50.get_config()
    config.batch_size = 1024
    config.epochs = 600
    config.label_smoothing = 0.1
    config.ema_decay = 0.999966
    config.data.image_size = 176
    config.data.eval_image_size = 224
    config.data.eval_crop_ratio = 224 / 232
    config.data.interpolation = "antialias"
    config.data.augmentation = "trivialaugment"
    config.data.random_erasing = 0.1
    config.data.mixup = 0.2
    config.data.cutmix = 1.0
    config.data.augment_repeats = 4
    config.optimizer.learning_rate = 0.5
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.weight_decay = 2e-5
    config.optimizer.weight_decay_on = "kernels"
    return config
