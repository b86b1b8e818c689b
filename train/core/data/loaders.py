"""The loaders by name, and what each has to do."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from train.core.config.data_fields import LoaderName
from train.core.config.fields import Config
from train.core.data.feed import Batch, Feed
from train.core.data.resident import Resident
from train.core.data.sources.split import Split
from train.core.data.streaming import Streaming


class Loader(Protocol):
    """Brings the images of a split to the steps that the devices run.

    Attributes:
      needs_size: Whether the size of the split is part of the compiled training step.
    """

    needs_size: bool

    def __init__(self, config: Config, mesh: Mesh):
        """Takes the config of the run and the mesh of its devices."""

    @property
    def longest_dispatch(self) -> int:
        """How many updates are dispatched at once, at most."""

    @property
    def rows_argnum(self) -> int:
        """The argument of a step that is split by rows, as of `mesh.jit_replicated`."""

    def check_split(self, split: Split) -> None:
        """Refuses a split that it cannot load.

        Raises:
          ConfigError: it cannot; says what to do.
        """

    def train_feed(
        self,
        split: Split,
        key: jax.Array,
        total_steps: int,
        dispatches: Callable[[int], Iterator[range]],
    ) -> Feed:
        """Feeds the training step.

        Args:
          split: Split to train on.
          key: Random key of the orders.
          total_steps: Number of updates of the run.
          dispatches: Gives the numbers of the updates of every dispatch, by the number of updates
            done so far.
        """

    def eval_feed(self, split: Split) -> Feed:
        """Feeds the evaluation step with every batch of a split."""

    def example(self, split: Split) -> tuple[Any, ...]:
        """Shapes of the arguments of the training step, after the state; reads no images."""

    def batch(self, fed: Any, index: Any) -> Batch:
        """The rows of a batch that one device has, inside the jitted step.

        Args:
          fed: First of the arguments that a feed gives.
          index: Number of the batch in its pass over the split.
        """


LOADERS: dict[LoaderName, type[Loader]] = {"resident": Resident, "streaming": Streaming}
