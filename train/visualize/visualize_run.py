"""Draws images and what the network of a run, or of a file of weights, makes of them."""

from etils import epath

from train.core import plotting
from train.core.config.fields import Config
from train.core.devices.busy import busy
from train.core.engine import trained_network
from train.core.engine.trained_network import Trained
from train.core.workdir import storage
from train.visualize import gallery, images, predictions
from train.visualize.images import Asked


def visualize_run(
    workdir: epath.Path,
    asked: Asked,
    *,
    which: str = "last",
    data_dir: str | None = None,
    out: epath.Path | None = None,
) -> None:
    """Draws images and what the network of a run makes of them, and prints the predictions.

    Args:
      workdir: Directory of the run.
      asked: What to draw.
      which: Which checkpoint, `last` or `best`, or `best_ema` for its averaged weights.
      data_dir: Directory where the dataset lies now; default: where the run had it.
      out: File to write; default: visualize.png in the directory of the run.

    Raises:
      ConfigError: what is asked for is not there.
      RunError: there is no such checkpoint, or it cannot be read.
    """
    network = trained_network.of_run(workdir, which, data_dir)
    _draw(network, asked, out or workdir / "visualize.png")


def visualize_pretrained(config: Config, asked: Asked, *, out: epath.Path | None = None) -> None:
    """Draws the same with the weights that config.model.pretrained names.

    Args:
      config: Config of the network and of its images.
      asked: What to draw.
      out: File to write; default: visualize.png in the current directory.

    Raises:
      ConfigError: the weights are not of all of the network, or what is asked for is not there.
    """
    _draw(trained_network.of_file(config), asked, out or epath.Path("visualize.png"))


def _draw(network: Trained, asked: Asked, target: epath.Path) -> None:
    layer = predictions.chosen_layer(network, asked.layer)
    chosen = images.chosen(asked, network.open_split, network.config.data, network.image_shape)
    view, names = predictions.viewer(network, layer), network.class_names
    views = []
    with busy("looking at the images", len(chosen), "images") as work:
        for image in chosen:
            views.append(view(image.pixels))
            work.advance()
    # Before the picture: its directory may be read-only.
    for image, seen in zip(chosen, views, strict=True):
        label = ""
        if image.label is not None:
            label = f", label {gallery.label_text(image.label, names)}"
        print(f"{image.name}: {gallery.prediction_text(seen, names)}{label}", flush=True)
    with busy("drawing the picture"):
        storage.write_bytes(target, plotting.png(*gallery.figure(chosen, views, layer, names)))
    print(target if network.step is None else f"step {network.step}, {target}")
