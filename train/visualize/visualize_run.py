"""Draws images and what the network of a run, or of a file of weights, makes of them."""

from collections.abc import Sequence

from etils import epath

from train.core import plotting
from train.core.config.fields import Config
from train.core.data.sources.registry import source_of
from train.core.workdir import directory, storage
from train.visualize import gallery, images, predictions, trained_network
from train.visualize.images import Image
from train.visualize.trained_network import Trained


def visualize_run(
    workdir: epath.Path,
    *,
    files: Sequence[str] = (),
    split: str | None = None,
    count: int = 16,
    layer: str | None = None,
    which: str = "last",
    data_dir: str | None = None,
    out: epath.Path | None = None,
) -> None:
    """Draws images of files or of a split, and prints the predictions.

    Args:
      workdir: Directory of the run.
      files: Names of image files.
      split: Name of the split of which images are drawn where there are no files.
      count: Number of its images.
      layer: Path of the layer whose gates are drawn; default: the last one with NAM.
      which: Which checkpoint, `last` or `best`.
      data_dir: Directory where the dataset lies now; default: where the run had it.
      out: File to write; default: visualize.png in the directory of the run.

    Raises:
      ConfigError: an option asks for what is not there.
      RunError: there is no such checkpoint, or it cannot be read.
    """
    network = trained_network.load(workdir, which, data_dir)
    if split is not None:
        directory.check_classes(workdir, source_of(network.config.data).class_names)
    _draw_asked(network, out or workdir / "visualize.png", files, split, count, layer)


def visualize_pretrained(
    config: Config,
    *,
    files: Sequence[str] = (),
    split: str | None = None,
    count: int = 16,
    layer: str | None = None,
    out: epath.Path | None = None,
) -> None:
    """Draws the same with the weights that config.model.pretrained names.

    Args:
      config: Config of the network and of its images.
      files: Names of image files.
      split: Name of the split whose first images are drawn where there are no files.
      count: Number of its images.
      layer: Path of the layer whose gates are drawn; default: the last one with NAM.
      out: File to write; default: visualize.png in the current directory.

    Raises:
      ConfigError: the weights are not of all of the network, or an option asks for what is not
        there.
    """
    network = trained_network.load_pretrained(config)
    _draw_asked(network, out or epath.Path("visualize.png"), files, split, count, layer)


def _draw_asked(
    network: Trained,
    target: epath.Path,
    files: Sequence[str],
    split: str | None,
    count: int,
    layer: str | None,
) -> None:
    layer = predictions.chosen_layer(network, layer)
    data, shape = network.config.data, network.image_shape
    if split is None:
        chosen = images.of_files(files, data, shape)
    else:
        chosen = images.of_split(split, count, data, shape)
    _draw(network, layer, chosen, target)


def _draw(network: Trained, layer: str | None, chosen: Sequence[Image], target: epath.Path) -> None:
    view, names = predictions.viewer(network, layer), network.class_names
    views = [view(image.pixels) for image in chosen]
    storage.write_bytes(target, plotting.png(*gallery.figure(chosen, views, layer, names)))
    for image, seen in zip(chosen, views, strict=True):
        label = ""
        if image.label is not None:
            label = f", label {gallery.label_text(image.label, names)}"
        print(f"{image.name}: {gallery.prediction_text(seen, names)}{label}")
    print(target if network.step is None else f"step {network.step}, {target}")
