"""Makes a page of a run or of a comparison: curves, NAM weights, config, results.

Usage: python -m train.report --workdir DIR

  --workdir DIR          of a run of train.main, or of a comparison of
                         train.compare; finished or going on

Writes DIR/report.html, a page that needs no other file and no network, and its
pictures, for light and dark pages, in DIR/report/. Needs pip install
'.[train,plot]'; neither the dataset nor an accelerator.

Example:
  python -m train.report --workdir runs/digits_resnet20

Exit codes: 0 done, 1 failed, 2 the command line or the config is wrong.
"""

import jax
from etils import epath

from train.compare.runs import read_runs
from train.core import command_line, plotting
from train.core.errors import ConfigError
from train.core.workdir import storage
from train.report import comparison_page, page, run_page


def main() -> None:
    """Writes the page, and prints where."""
    plotting.check_installed()
    workdir = command_line.named_workdir()
    # An accelerator may be busy with the run itself.
    jax.config.update("jax_platforms", "cpu")
    print(write(workdir))


def write(workdir: epath.Path) -> epath.Path:
    """Writes the page of a run or of a comparison.

    Args:
      workdir: of either.

    Returns:
      The page.

    Raises:
      ConfigError: the directory holds neither.
      RunError: a file of the run is damaged.
    """
    storage.write_text(workdir / page.FILE, _page(workdir, workdir / page.FOLDER))
    return workdir / page.FILE


def _page(workdir: epath.Path, folder: epath.Path) -> str:
    with storage.reporting(workdir):
        exists, is_run = workdir.is_dir(), (workdir / "config.json").exists()
    if not exists:
        raise ConfigError(f"--workdir {workdir}: there is no such directory.")
    if is_run:
        return run_page.write_page(workdir, folder)
    runs = read_runs(workdir)
    if not runs:
        raise ConfigError(f"--workdir {workdir}: there is neither a run nor a comparison in it.")
    return comparison_page.write_page(workdir, folder, runs)


if __name__ == "__main__":
    command_line.run(main, __doc__, needs_config=lambda: False)
