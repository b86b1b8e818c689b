"""Writes the page of whatever a directory holds: a run, or a comparison."""

from etils import epath

from train.compare.runs import read_runs
from train.core.errors import ConfigError
from train.core.workdir import storage
from train.report import comparison_page, page, run_page


def write_report(workdir: epath.Path) -> epath.Path:
    """Writes the page of a run or of a comparison.

    Args:
      workdir: Directory of either.

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
        raise ConfigError(
            f"--workdir {workdir}: there is no such directory; name that of a run or a comparison."
        )
    if is_run:
        return run_page.render(workdir, folder)
    runs = read_runs(workdir)
    if not runs:
        raise ConfigError(
            f"--workdir {workdir}: there is neither a run nor a comparison in it; name the "
            "directory of one."
        )
    return comparison_page.render(workdir, folder, runs)
