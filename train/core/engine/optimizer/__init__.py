"""The learning-rate schedule and the optax chain."""

from train.core.engine.optimizer.chain import create
from train.core.engine.optimizer.learning_rate import batch_size_scale, schedule, warmup_steps

__all__ = ["batch_size_scale", "create", "schedule", "warmup_steps"]
