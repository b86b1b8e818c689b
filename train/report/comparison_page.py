"""The page of a comparison: its table, its pictures, and where each run stands."""

import statistics
from collections.abc import Mapping, Sequence

from etils import epath

from train.compare import chart, columns
from train.compare.estimates import variants_of
from train.compare.runs import ComparedRun
from train.core.config.fields import flatten
from train.core.monitor import metric_rows
from train.core.monitor.metric_rows import Row
from train.core.tables import Cell, Link, Table
from train.report import curves, page, run_page
from train.report.curves import Points
from train.report.page import Plot

Rows = Mapping[str, Sequence[Row]]


def render(workdir: epath.Path, folder: epath.Path, runs: Sequence[ComparedRun]) -> str:
    """Makes the page of a comparison, finished or not.

    Args:
      workdir: Directory of the comparison.
      folder: Directory for the files of the plots.
      runs: Runs in it, at least one.

    Returns:
      HTML.
    """
    rows = {run.name: metric_rows.of(workdir / run.name).rows() for run in runs}
    config = runs[0].config
    return page.document(
        f"{config.model.name} on {config.data.name}: attentions compared",
        _results(runs, folder),
        _curves(runs, rows, folder),
        _runs(workdir, runs, rows),
    )


def _results(runs: Sequence[ComparedRun], folder: epath.Path) -> str:
    variants = variants_of(runs)
    if not variants:
        return page.section("Results", page.paragraph("None yet: no run is finished."))
    draw, width, height = chart.comparison(variants)
    said = "; ".join(f"{each.name}: {each.mean('top1_error').mean:.2f}" for each in variants)
    alt = f"Chart of the top-1 errors in percent, and of their differences to none. {said}."
    caption = "Top-1 errors of the last evaluation, and their differences seed by seed."
    return page.section(
        "Results",
        page.paragraph(columns.caption(runs)),
        columns.table(variants).html("Results"),
        page.paragraph(columns.legend(variants)),
        page.side_by_side(folder, Plot("results", draw, height, alt, caption, width)),
    )


def _curves(runs: Sequence[ComparedRun], rows: Rows, folder: epath.Path) -> str:
    errors = mean_errors(runs, rows)
    if not errors:
        return page.section("Curves", page.paragraph("None yet: no run has been evaluated."))
    return page.section("Curves", page.side_by_side(folder, curves.variants(errors)))


def mean_errors(runs: Sequence[ComparedRun], rows: Rows) -> dict[str, Points]:
    """The top-1 errors of the evaluations of every variant, averaged over its seeds.

    Args:
      runs: Runs of the comparison.
      rows: Metrics of each run, by its name.

    Returns:
      Of the finished runs of a variant, or of those that have been evaluated where none is
      finished, the epochs that all of them have. Variants without any are left out.
    """
    errors: dict[str, Points] = {}
    for variant in dict.fromkeys(run.variant for run in runs):
        own = [run for run in runs if run.variant == variant]
        chosen = [run for run in own if run.summary is not None] or own
        points = [curves.points(rows[run.name], "eval", "top1_error") for run in chosen]
        by_epoch = [dict(zip(*curve, strict=True)) for curve in points if curve[0]]
        if by_epoch:
            epochs = sorted(set.intersection(*map(set, by_epoch)))
            means = [statistics.fmean(curve[epoch] for curve in by_epoch) for epoch in epochs]
            errors[f"{variant} ({len(by_epoch)})"] = epochs, means
    return errors


def _runs(workdir: epath.Path, runs: Sequence[ComparedRun], rows: Rows) -> str:
    lines = [(*_names(workdir, run), *_reached(run, rows[run.name])) for run in runs]
    header = ("run", "report", "state", "top-1 error, %", "top-5 error, %")
    text = (
        "Errors are those of the last evaluation so far. For its own report, give train.report "
        "the directory of a run."
    )
    table = Table(header, lines, numbers=False)
    return page.section("Runs", page.paragraph(text), table.html("Runs"))


def _names(workdir: epath.Path, run: ComparedRun) -> tuple[Cell, ...]:
    has_report = (workdir / run.name / page.FILE).exists()
    return run.name, Link("report", f"{run.name}/{page.FILE}") if has_report else "–"


def _reached(run: ComparedRun, rows: Sequence[Row]) -> tuple[str, ...]:
    errors = [
        f"{values[-1]:.2f}" if values else "–"
        for _, values in (
            curves.points(rows, "eval", name) for name in ("top1_error", "top5_error")
        )
    ]
    return run_page.state(dict(flatten(run.config)), run.summary, rows), *errors
