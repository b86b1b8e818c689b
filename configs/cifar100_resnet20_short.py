"""ResNet-20 without attention on CIFAR-100, in one cycle of 12 epochs: for CPUs.

python -m train.main --config configs/cifar100_resnet20_short.py --config.data.dir=DIR

SGD with Nesterov's momentum 0.9, batch 128, a learning rate that rises to 0.2 for 3 epochs and
falls to 0 by a cosine, weight decay 5e-4 on kernels. Its values are usual ones, not tuned; time and
error have not been measured. To tune it on a tenth of the training split, never the test split:

python -m train.main --config configs/cifar100_resnet20_short.py --config.data.dir=DIR \
    --config.data.train_split=train[:90%] --config.data.eval_split=train[90%:] --workdir runs/tuning
"""

from configs import cifar100_resnet20
from train.config import Config


def get_config() -> Config:
    config = cifar100_resnet20.get_config()
    config.epochs = 12
    config.model.attention = "none"
    config.optimizer.learning_rate = 0.2
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 3.0
    config.optimizer.nesterov = True
    config.optimizer.weight_decay_on = "kernels"
    return config
