"""Draws images and what a trained network makes of them.

Usage: python -m train.visualize --workdir DIR --images FILE,...|--split NAME
                                 [--OPTION VALUE ...]

  --workdir DIR      the directory of the run; its config is used
  --images FILE,...  JPEG or PNG images
  --split NAME       or the first images of a split, such as test
  --count N          how many of them; default: 16
  --layer PATH       whose NAM gates are drawn, such as layer4_2/attention;
                     default: those of the last layer with NAM
  --which last|best  the latest checkpoint, or that of the lowest error
  --data_dir DIR     where the dataset lies, if no longer where the run had it
  --out FILE         default: DIR/visualize.png

A row an image: the prediction, Grad-CAM's map for it, the channel gate's mean
over the map, the spatial gate's over the channels. Needs '.[train,plot]'.

Example:
  python -m train.visualize --workdir runs/digits_resnet20 --split test

Exit codes: 0 done, 1 failed, 2 the command line is wrong.
"""

from absl import flags
from etils import epath

from train.core import command_line, plotting
from train.core.errors import ConfigError
from train.core.workdir import storage
from train.evaluate import WHICH
from train.visualize import gallery, images, predictions, trained_network
from train.visualize.images import Picture
from train.visualize.trained_network import Trained

# Laying out the picture of more would take minutes.
MOST_IMAGES = 100

IMAGES = flags.DEFINE_list("images", None, "Files to look at.")
SPLIT = flags.DEFINE_string("split", None, "The split to look at.")
COUNT = flags.DEFINE_integer(
    "count", 16, "Images of the split.", lower_bound=1, upper_bound=MOST_IMAGES
)
LAYER = flags.DEFINE_string("layer", None, "The layer whose gates are drawn.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the dataset lies.")
# Another command calls a directory so.
OUT = flags.DEFINE_string("out", None, "A file for the picture.", allow_override=True)


def main() -> None:
    """Draws the picture, and prints the predictions."""
    plotting.check_installed()
    files = _asked_files()
    workdir, out = command_line.named_workdir(), command_line.output("out", OUT.value)
    network = trained_network.load(workdir, WHICH.value, DATA_DIR.value)
    layer = chosen_layer(network, LAYER.value)
    data, shape = network.config.data, network.image_shape
    if SPLIT.value is None:
        found = images.of_files(files, data, shape)
    else:
        found = images.of_split(SPLIT.value, COUNT.value, data, shape)
    target = workdir / "visualize.png" if out is None else epath.Path(out)
    draw(network, layer, found, target)


def draw(network: Trained, layer: str | None, found: list[Picture], target: epath.Path) -> None:
    """Draws some images.

    Args:
      network: to look with.
      layer: whose gates are drawn; None: none.
      found: the images, at least one.
      target: the file to write.
    """
    view, names = predictions.viewer(network, layer), images.class_names(network.config.data)
    seen = [view(picture.image) for picture in found]
    storage.write_bytes(target, plotting.png(*gallery.gallery(found, seen, layer, names)))
    for picture, one in zip(found, seen, strict=True):
        label = ""
        if picture.label is not None:
            label = f", label {gallery.label_text(picture.label, names)}"
        print(f"{picture.name}: {gallery.prediction_text(one, names)}{label}")
    print(f"step {network.step}, {target}")


def chosen_layer(network: Trained, wanted: str | None) -> str | None:
    """The layer whose gates are drawn: the wanted one, else the last one with NAM, if any.

    Args:
      network: to look with.
      wanted: the path of a layer.

    Raises:
      ConfigError: there is no such layer.
    """
    paths = predictions.layers(network)
    if wanted is None:
        return paths[-1] if paths else None
    if wanted not in paths:
        allowed = ", ".join(paths) or f"none, {network.config.model.attention} is no NAM"
        raise ConfigError(f"--layer: got {wanted!r}; allowed: {allowed}.")
    return wanted


def _asked_files() -> list[str]:
    files = IMAGES.value or []
    if not all(files):
        raise ConfigError(
            f"--images: got {','.join(files)!r}; allowed: files, with commas between."
        )
    if bool(files) == (SPLIT.value is not None):
        raise ConfigError("give --images or --split, one of the two.")
    if len(files) > MOST_IMAGES:
        raise ConfigError(f"--images: {len(files)} files; at most {MOST_IMAGES}.")
    return files


if __name__ == "__main__":
    command_line.run(main, __doc__, needs_config=lambda: False)
