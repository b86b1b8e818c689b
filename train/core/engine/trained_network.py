"""The network of a run, or of a file of weights, without its dataset."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath
from flax import linen as nn

from nam_jax import resize_spatial
from train.core.config.data_fields import at_eval_size
from train.core.config.fields import Config, replaced
from train.core.data.sources.registry import source_of
from train.core.data.sources.split import Source, Split
from train.core.engine import pretrained
from train.core.engine.experiment import build_evaluation, create_model
from train.core.errors import ConfigError, UnknownSplitError
from train.core.workdir import directory
from train.core.workdir.checkpoints import Checkpoints


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network as a checkpoint or a file has it.

    Attributes:
      config: Config of the network and of its images.
      step: Number of updates before the checkpoint; None of a file, which does not tell.
      model: Module that takes images (N, H, W, C) and `train`.
      variables: Collections `params` and `batch_stats`.
      image_shape: Shape (H, W, C) of the images that it is evaluated on.
      class_names: Names of the classes, by label; None where they are not known.
      open_split: Opens a split of the dataset, which need not be there before.
    """

    config: Config
    step: int | None
    model: nn.Module
    variables: dict[str, Any]
    image_shape: tuple[int, int, int]
    class_names: list[str] | None
    open_split: Callable[[str], Split]


def of_run(workdir: epath.Path, which: str, data_dir: str | None = None) -> Trained:
    """Reads the network of a run from a checkpoint.

    Args:
      workdir: Directory of the run.
      which: Which checkpoint, `last` or `best`, or `best_ema` for its averaged weights.
      data_dir: Directory where the dataset lies now; default: where the run had it.

    Raises:
      ConfigError: there is no such run, or the size of its images is not known.
      RunError: there is no such checkpoint, or it cannot be read.
    """
    config = directory.saved_config(workdir)
    config.data.dir = data_dir or config.data.dir
    # It changes nothing but the memory of training.
    config.model.remat = False
    if config.model.dtype == "float64" and not jax.config.read("jax_enable_x64"):
        config.model.dtype = "float32"
    step, variables = _restore(workdir, which)
    dataset = directory.dataset(workdir) or dataset_description(source_of(config.data))

    def open_split(name: str) -> Split:
        source = source_of(at_eval_size(config.data))
        try:
            class_names, split = source.class_names, source.open_split(name)
        except UnknownSplitError:
            raise
        except ConfigError as error:
            elsewhere = "if the dataset lies elsewhere now, name the place by --data_dir."
            raise ConfigError(f"{str(error).removesuffix('.')}; {elsewhere}") from error
        directory.check_classes(workdir, class_names, "Name the run's own dataset by --data_dir")
        return split

    model = create_model(config, num_classes=dataset["num_classes"])
    return Trained(
        config=config,
        step=step,
        model=model,
        **_at_eval_size(config, model, variables, dataset["image_shape"]),
        class_names=dataset["class_names"],
        open_split=open_split,
    )


def of_file(config: Config) -> Trained:
    """Reads the weights that config.model.pretrained names.

    Args:
      config: Config of the network and of its images.

    Raises:
      ConfigError: the file cannot be read, or is not of all of the network, or the size of the
        images is not known.
    """
    # One device is enough, whatever groups and batches the config is for.
    alone = {"model.sync_bn_devices": 1, "accumulate_steps": 1, "model.remat": False}
    evaluation = build_evaluation(replaced(config, alone), jax.devices()[:1], reads_images=False)
    data, source = evaluation.config.data, evaluation.source
    dataset = dataset_description(source)
    if data.eval_image_size:
        source = source_of(at_eval_size(data))
    variables = pretrained.load_pretrained(evaluation, may_be_fresh=False)
    return Trained(
        config=evaluation.config,
        step=None,
        model=evaluation.model,
        **_at_eval_size(evaluation.config, evaluation.model, variables, dataset["image_shape"]),
        class_names=dataset["class_names"],
        open_split=source.open_split,
    )


def _at_eval_size(
    config: Config, model: nn.Module, variables: dict[str, Any], image_shape: Sequence[int]
) -> dict[str, Any]:
    """The variables and the shape of the images that they are for, which is that of evaluations."""
    height, width, channels = image_shape
    size = config.data.eval_image_size
    if size:
        height = width = size
        variables = resize_spatial(variables, model, (1, size, size, channels))
    return {"variables": variables, "image_shape": (height, width, channels)}


def _restore(workdir: epath.Path, which: str) -> tuple[int, dict[str, Any]]:
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        step = checkpoints.step_of(which)
        if which == "best_ema":
            return step, checkpoints.restore_parts(step, "ema")["ema"]
        return step, checkpoints.restore_parts(step, "params", "batch_stats")


def dataset_description(source: Source) -> dict[str, Any]:
    """What dataset.json would say of a dataset, for which a run of an earlier version has none."""
    return {
        "num_classes": source.num_classes,
        "image_shape": source.image_shape,
        "class_names": source.class_names if source.is_on_disk else None,
    }
