"""ResNet-50 with NAM, channel and spatial, on ImageNet by the recipe A3 of ResNet strikes back.

python -m train.main --config configs/imagenet_resnet50_a3.py --config.data.dir=DIR

100 epochs of crops of 160 × 160, evaluated at 224 × 224: LAMB with 8e-3 for batches of 2048, after
a warm-up of 5 epochs down to 0 by a cosine, weight decay 0.02 on kernels; binary cross-entropy with
mixup 0.1 and CutMix 1.0, whose targets are 1 for every image that makes more than a fifth of the
mixture; RandAugment of level 6 of 10, here 18 of 30, in timm's increasing form, with deviation 0.5,
here 1.5; the centre of the short side scaled to 224 / 0.95 for the evaluation.

Source: R. Wightman, H. Touvron and H. Jégou, ResNet strikes back, 2021,
https://arxiv.org/abs/2110.00476, table 2. From timm, with which it was trained, are the largest
norm of gradients of its LAMB, ε = 1e-6, the last scales that begin at 0, and the threshold. timm
trains with bicubic or bilinear interpolation at random; here it is Pillow's bilinear
(`antialias`) everywhere.
The authors report 78.1 % top-1 accuracy, without attention. Time and error here have not been
measured; it is meant for GPUs or TPUs.
"""

from configs import imagenet_resnet50
from train.config import Config


def get_config() -> Config:
    config = imagenet_resnet50.get_config()
    config.batch_size = 2048
    config.loss = "sigmoid"
    config.loss_threshold = 0.2
    config.model.zero_init_last_scale = True
    config.data.image_size = 160
    config.data.eval_image_size = 224
    config.data.eval_crop_ratio = 0.95
    config.data.interpolation = "antialias"
    config.data.augmentation = "randaugment_increasing"
    config.data.randaugment_level = 18
    config.data.randaugment_std = 1.5
    config.data.mixup = 0.1
    config.data.cutmix = 1.0
    config.optimizer.name = "lamb"
    config.optimizer.learning_rate = 8e-3
    config.optimizer.epsilon = 1e-6
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.weight_decay = 0.02
    config.optimizer.weight_decay_on = "kernels"
    config.optimizer.clip_norm = 1.0
    return config
