"""ResNet-50 with channel NAM on CIFAR-100, by the recipe of NAM's authors.

python -m train.main --config configs/cifar100_resnet50.py --config.data.dir=DIR

SGD with momentum 0.9, batch 128, 200 epochs, learning rate 0.1, × 0.2 after 60, 120 and 160
epochs, weight decay 5e-4 on every parameter. One thing differs: the images are normalised with
CIFAR-100's own mean and standard deviation, where the authors' code has CIFAR-10's. Time and
error of the whole run have not been measured; it is meant for a GPU or TPU.
"""

from train.config import Config, default_config


def get_config() -> Config:
    config = default_config()
    config.batch_size = 128
    config.epochs = 200
    config.model.name = "resnet50"
    config.model.attention = "nam_channel"
    config.model.stem = "cifar"
    config.data.name = "cifar100"
    config.data.mean = (0.5071, 0.4865, 0.4409)
    config.data.std = (0.2673, 0.2564, 0.2762)
    config.data.crop_padding = 4
    config.data.flip = True
    config.optimizer.learning_rate = 0.1
    config.optimizer.milestones = (0.3, 0.6, 0.8)
    config.optimizer.decay_factor = 0.2
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    return config
