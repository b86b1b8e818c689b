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
from train.evaluate import WHICH
from train.visualize.images import MOST_IMAGES, check_asked
from train.visualize.visualize_run import visualize_run

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
    files = IMAGES.value or []
    check_asked(files, SPLIT.value)
    workdir, out = command_line.named_workdir(), command_line.output("out", OUT.value)
    visualize_run(
        workdir,
        files=files,
        split=SPLIT.value,
        count=COUNT.value,
        layer=LAYER.value,
        which=WHICH.value,
        data_dir=DATA_DIR.value,
        out=None if out is None else epath.Path(out),
    )


if __name__ == "__main__":
    command_line.run(main, __doc__, needs_config=lambda: False)
