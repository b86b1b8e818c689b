"""MobileNetV2 with NAM, fine-tuned on a folder of photographs.

python -m train.main --config configs/folder_mobilenet_v2.py --config.data.dir=DIR \
    --config.model.pretrained=FILE

DIR holds train/<class>/<image> and val/<class>/<image>, or the folders of the classes alone; then a
fifth of the images is held out. FILE holds MobileNetV2's weights from PyTorch; the classifier and
the attention start fresh. docs/start/photographs.md goes through it step by step.

For CPUs and single GPUs: crops of 128 × 128, in batches of 32, in float32, as CPUs compute, and
15 epochs of a cosine schedule from 0.005, without dropout. With torchvision's weights and
TensorFlow's flower photographs (2,934, and 736 held out) the top-1 error was 6.79 % after 38
minutes, seed 0, on two CPU cores with other programs beside.
"""

from configs import imagenet_resnet50
from train.config import Config


def get_config() -> Config:
    config = imagenet_resnet50.get_config()
    config.batch_size = 32
    config.epochs = 15
    config.label_smoothing = 0.1
    config.model.name = "mobilenet_v2"
    config.model.dtype = "float32"
    config.data.name = "folder"
    config.data.eval_split = "val"
    config.data.image_size = 128
    config.optimizer.learning_rate = 0.005
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 0.5
    config.optimizer.weight_decay = 4e-5
    return config
