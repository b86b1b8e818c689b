"""ResNet-50 with NAM, channel and spatial, on ImageNet.

python -m train.main --config configs/imagenet_resnet50.py --config.data.dir=DIR

The recipe of CBAM's code, of which NAM's is a descendant: SGD with momentum 0.9, batch 256, 100
epochs, learning rate 0.1, ÷ 10 every 30 epochs, weight decay 1e-4 on every parameter; in bfloat16
with float32 parameters; random resized crops of 224 × 224, mirrored at random, and the centre of
the short side scaled to 256 for the evaluation. docs/training/imagenet.md says how to prepare the
dataset. Time and error of the whole run have not been measured; it is meant for GPUs or TPUs.
"""

from train.config import Config, default_config


def get_config() -> Config:
    config = default_config()
    config.batch_size = 256
    config.epochs = 100
    config.model.name = "resnet50"
    config.model.attention = "nam"
    config.model.stem = "imagenet"
    config.model.dtype = "bfloat16"
    config.data.name = "imagenet2012"
    config.data.loader = "streaming"
    config.data.eval_split = "validation"
    config.data.image_size = 224
    config.data.crop = "resized"
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.optimizer.learning_rate = 0.1
    config.optimizer.milestones = (0.3, 0.6, 0.9)
    config.optimizer.decay_factor = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    return config
