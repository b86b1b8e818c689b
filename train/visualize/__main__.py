"""Draws images and what a trained network makes of them.

A row an image: the prediction, Grad-CAM's map for it, the channel gate's mean
over the map, the spatial gate's over the channels. Needs '.[train,plot]'.

Example:
  python -m train.visualize --workdir runs/digits_resnet20 --split test

Exit codes: 0 done, 1 failed, 2 the command line or the config is wrong.
"""

from argparse import Namespace

from etils import epath

from train.core import command_line, plotting
from train.core.command_line.values import listed, not_empty, output, whole_number
from train.visualize.images import COUNT, MOST_IMAGES, Asked
from train.visualize.visualize_run import visualize_pretrained, visualize_run


def parser() -> command_line.Parser:
    """The command line."""
    parser = command_line.Parser(
        __doc__, "python -m train.visualize --workdir DIR --images FILE|--split NAME [...]"
    )
    add = parser.add_argument
    parser.add_trained()
    add("--images", metavar="FILE,...", type=listed, default=[], help="image files, such as JPEG")
    add("--split", metavar="NAME", type=not_empty, help="or images of a split, such as test")
    add(
        "--count",
        metavar="N",
        type=whole_number(1, MOST_IMAGES),
        help=f"how many of them; default: {COUNT}",
    )
    add(
        "--layer",
        metavar="PATH",
        type=not_empty,
        help="whose NAM gates are drawn, such as layer4_2/attention; default: the last one's",
    )
    add(
        "--out",
        metavar="FILE",
        type=output,
        help="picture; default: visualize.png in --workdir",
    )
    return parser


def main(options: Namespace) -> None:
    """Draws the picture, and prints the predictions."""
    plotting.check_installed()
    asked = Asked(options.images, options.split, options.count, options.layer)
    asked.check()
    out = None if options.out is None else epath.Path(options.out)
    config = command_line.config_of_weights(options)
    if config is None:
        workdir = command_line.named_workdir(options, command_line.RUN_OR_WEIGHTS)
        visualize_run(workdir, asked, which=options.which, data_dir=options.data_dir, out=out)
    else:
        visualize_pretrained(config, asked, out=out)


if __name__ == "__main__":
    command_line.run(main, parser())
