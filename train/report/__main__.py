"""Makes a page of a run or of a comparison: curves, NAM weights, config, results.

Writes DIR/report.html, a page that needs no other file and no network, and its
pictures, for light and dark pages, in DIR/report/. Needs pip install
'.[train,plot]'; neither the dataset nor an accelerator.

Example:
  python -m train.report --workdir runs/digits_resnet20

Exit codes: 0 done, 1 failed, 2 the command line or the config is wrong.
"""

from argparse import Namespace

import jax

from train.core import command_line, plotting
from train.core.devices.busy import busy
from train.report.write_report import write_report


def parser() -> command_line.Parser:
    """The command line."""
    parser = command_line.Parser(__doc__, "python -m train.report --workdir DIR")
    parser.add_workdir(
        "of a run of train.main, or of a comparison of train.compare; finished or going on"
    )
    return parser


def main(options: Namespace) -> None:
    """Writes the page, and prints where."""
    plotting.check_installed()
    workdir = command_line.named_workdir(options, "a run or a comparison")
    # An accelerator may be busy with the run itself.
    jax.config.update("jax_platforms", "cpu")
    with busy("writing the report"):
        page = write_report(workdir)
    print(page)


if __name__ == "__main__":
    command_line.run(main, parser())
