"""The feeds of an experiment's splits, by its loader."""

from typing import Any

from train.core.data.feed import Feed
from train.core.engine.experiment import Evaluation, Experiment, streams


def train_feed(experiment: Experiment) -> Feed:
    """Opens the training split."""
    return experiment.loader.train_feed(
        experiment.train_split,
        streams(experiment.config.seed)["order"],
        experiment.total_steps,
        experiment.dispatches,
    )


def eval_feed(evaluation: Evaluation) -> Feed:
    """Opens the evaluation split."""
    return evaluation.loader.eval_feed(evaluation.eval_split)


def train_example(experiment: Experiment) -> tuple[Any, ...]:
    """Shapes of the arguments of the training step, after the state; reads no images."""
    return experiment.loader.example(experiment.train_split)
