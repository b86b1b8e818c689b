"""ResNet-50 with NAM on ImageNet, in batches of 4096, for a TPU slice or many GPUs.

python -m train.main --config configs/imagenet_resnet50_pod.py --config.data.dir=DIR

LARS with a learning rate of 0.5 per 256 images, here 8.0, after a linear warm-up of 5 epochs,
down to 0 by a cosine over 100 epochs; label smoothing 0.1; the scale of every last BatchNorm of a
block starts at 0. docs/training/pods.md says how to start it on many machines. Time and error
have not been measured.
"""

from configs import imagenet_resnet50
from train.config import Config


def get_config() -> Config:
    config = imagenet_resnet50.get_config()
    config.batch_size = 4096
    config.label_smoothing = 0.1
    config.model.zero_init_last_scale = True
    config.optimizer.name = "lars"
    config.optimizer.weight_decay_on = "kernels"
    config.optimizer.learning_rate = 0.5
    config.optimizer.reference_batch_size = 256
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.schedule = "cosine"
    return config
