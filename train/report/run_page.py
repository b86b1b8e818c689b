"""The page of a run: how it went, what NAM has learned, its config and environment."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from nam_jax.attention import NAMES, has_nam_scales
from nam_jax.inspection import SMALL_WEIGHT, count_small_weights, saliency
from train.core.config.attentions import attention_name_in
from train.core.config.fields import FIELDS, default_config
from train.core.config.parsing import flattened
from train.core.errors import ConfigError, RunError
from train.core.monitor import metric_rows
from train.core.monitor.metric_rows import Row
from train.core.tables import Table, in_depth_order
from train.core.workdir import directory, gates, storage
from train.core.workdir.checkpoints import Checkpoints
from train.report import curves, gate_plot, page, weight_plots
from train.report.page import Plot
from train.report.weight_plots import Weights

Fields = Mapping[str, Any]

# By the number of dimensions of their weights.
WEIGHTED = {1: "channels", 2: "pixels"}
# Older versions may have had fewer fields, but these.
NEEDED = ("model.name", "model.attention", "data.name", "epochs", "steps")


def render(workdir: epath.Path, folder: epath.Path) -> str:
    """Makes the page of a run, finished or not.

    Args:
      workdir: Directory of the run.
      folder: Directory for the files of the plots.

    Returns:
      HTML.

    Raises:
      ConfigError: the config of the run, or what it keeps of its dataset, cannot be read.
    """
    # Not a config: that of another version may have other fields.
    fields, summary = directory.saved_fields(workdir), directory.summary(workdir)
    _check_needed(workdir, fields)
    rows = metric_rows.of(workdir).rows()
    return page.document(
        title(fields),
        page.paragraph(f"{state(fields, summary, rows)}.".capitalize()),
        _result(summary),
        _training(rows, folder),
        _nam(workdir, rows, folder),
        _gates(workdir, fields, folder),
        _classes(workdir),
        _config(fields),
        _environment(workdir),
    )


def _check_needed(workdir: epath.Path, fields: Fields) -> None:
    kinds = {name: type(FIELDS[name].default) for name in NEEDED}
    wrong = ", ".join(
        f"{name} is {fields[name]!r}" if name in fields else f"{name} is missing"
        for name, kind in kinds.items()
        if type(fields.get(name)) is not kind
    )
    if wrong:
        raise ConfigError(
            f"--workdir {workdir}: config.json is not the config of a run; {wrong}. Name the "
            "directory of a run."
        )


def title(fields: Fields) -> str:
    """What a run trains."""
    network = f"{fields['model.name']} with attention {attention_name_in(fields)}"
    return f"{network} on {fields['data.name']}"


def state(fields: Fields, summary: dict[str, Any] | None, rows: Sequence[Row]) -> str:
    """How far a run is, in a few words.

    Args:
      fields: Config of the run, by the dotted names of its fields.
      summary: Contents of summary.json, None before the end.
      rows: Metrics of the run.
    """
    if summary is not None:
        return f"finished after {summary['steps']:,} steps"
    if not rows:
        return "not finished: no step is reported yet"
    last = rows[-1]
    steps, epochs = fields["steps"], fields["epochs"]
    goal = f"{steps:,} steps" if steps else f"{epochs} epochs"
    return f"not finished: at step {last['step']:,}, epoch {last['epoch']:.2f}, of {goal}"


def _result(summary: dict[str, Any] | None) -> str:
    if summary is None:
        return page.section("Result", page.paragraph("None yet: the run is not finished."))
    lines = [(name, _figure(value)) for name, value in summary.items()]
    table = Table(("figure", "value"), lines, numbers=False)
    return page.section("Result", table.html("Result"))


def _figure(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


def _training(rows: Sequence[Row], folder: epath.Path) -> str:
    if not rows:
        return page.section("Training", page.paragraph("No curves: no step is reported yet."))
    plots = [curves.loss(rows), curves.errors(rows)]
    if any(row["split"] == "train" for row in rows):
        plots += [
            curves.learning_rate(rows),
            curves.images_per_second(rows),
            curves.data_wait(rows),
        ]
    return page.section("Training", page.side_by_side(folder, *plots))


def _nam(workdir: epath.Path, rows: Sequence[Row], folder: epath.Path) -> str:
    heading = "NAM weights"
    try:
        step, weights = nam_weights(workdir)
    except RunError as error:
        return page.section(heading, page.paragraph(f"Left out: {error}"))
    text = (
        f"Of the checkpoint of step {step:,}. A weight is the share of a channel or pixel in the "
        "scales of its layer, whatever it is relative to in its gate; one below "
        f"{SMALL_WEIGHT:g} of the mean of its layer is small: its gate hardly depends on the image."
    )
    return page.section(
        heading,
        page.paragraph(text),
        _tables(weights),
        page.side_by_side(folder, *_plots(weights, rows)),
    )


def _gates(workdir: epath.Path, fields: Fields, folder: epath.Path) -> str:
    heading, found = "NAM gates", gates.read(workdir)
    if found is None:
        attention = fields["model.attention"]
        hint = "Not known: python -m train.evaluate --gates looks at them, on the dataset."
        has_gates = attention in NAMES and has_nam_scales(attention)
        return page.section(heading, page.paragraph(hint)) if has_gates else ""
    figures, layers = found
    text = (
        f"Of the {figures['which']} checkpoint, step {figures['step']:,}, on the split "
        f"{figures['split']}. Its top-1 error is {figures['top1_error']:.2f} %, and with every "
        f"gate replaced by 0.5 {figures['half_gates_top1_error']:.2f} %: as far as these are "
        "equal, the network does without what its gates do."
    )
    return page.section(
        heading,
        page.paragraph(text),
        page.side_by_side(folder, gate_plot.spread(layers)),
        page.paragraph(gates.LEGEND),
        page.folded(f"Layer by layer ({len(layers)})", gates.table(layers).html(heading)),
    )


def _by_kind(weights: Weights) -> dict[str, Weights]:
    kinds = {
        kind: {path: layer for path, layer in weights.items() if layer.ndim == ndim}
        for ndim, kind in WEIGHTED.items()
    }
    return {kind: layers for kind, layers in kinds.items() if layers}


def _plots(weights: Weights, rows: Sequence[Row]) -> Iterator[Plot]:
    if any("small_weights" in row for row in rows):
        yield curves.small_weights(rows, SMALL_WEIGHT)
    kinds = _by_kind(weights)
    yield from (weight_plots.sorted_weights(layers, kind) for kind, layers in kinds.items())
    yield from (weight_plots.heat_map(layers, kind) for kind, layers in kinds.items())
    if "pixels" in kinds:
        yield weight_plots.maps(kinds["pixels"])


def nam_weights(workdir: epath.Path) -> tuple[int, Weights]:
    """The NAM weights of the latest checkpoint.

    Args:
      workdir: Directory of the run.

    Returns:
      Its step, and the weights by layer, from input to output.

    Raises:
      RunError: there are none; says why.
    """
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        step = checkpoints.step_of("last")
        params = checkpoints.restore_parts(step, "params")["params"]
    weights = {path: np.asarray(w) for path, w in jax.device_get(saliency(params)).items()}
    if not weights:
        raise RunError("the network has no NAM scales.")
    return step, in_depth_order(weights)


def _tables(weights: Weights) -> str:
    header = ("weights", "small", "small, %", "largest / mean")
    total = [
        (f"all {kind}", *_counts(list(layers.values())))
        for kind, layers in _by_kind(weights).items()
    ]
    total.append(("all weights", *_counts(list(weights.values()))))
    lines = [(path, WEIGHTED[layer.ndim], *_counts([layer])) for path, layer in weights.items()]
    by_layer = Table(("layer", "of", *header), lines).html("NAM weights by layer")
    return "\n".join(
        [
            Table(("of", *header), total).html("NAM weights in all"),
            page.folded(f"Layer by layer ({len(lines)})", by_layer),
        ]
    )


def _counts(layers: Sequence[np.ndarray]) -> tuple[str, ...]:
    total, small = sum(w.size for w in layers), sum(map(count_small_weights, layers))
    largest = max(float(w.max()) * w.size for w in layers)
    return f"{total:,}", f"{small:,}", f"{100 * small / total:.2f}", f"{largest:.3g}"


def _classes(workdir: epath.Path) -> str:
    names = (directory.dataset(workdir) or {}).get("class_names")
    if not names:
        return ""
    table = Table(
        ("number", "class"), [(str(n), name) for n, name in enumerate(names)], numbers=False
    )
    return page.section("Classes", page.folded(f"Names ({len(names):,})", table.html("Classes")))


def _config(fields: Fields) -> str:
    defaults = directory.as_saved(default_config())
    lines, marked = [], []
    for place, (name, value) in enumerate(sorted(fields.items())):
        differs = name not in defaults or value != defaults[name]
        default = json.dumps(defaults.get(name, "–"), ensure_ascii=False) if differs else ""
        lines.append((name, json.dumps(value, ensure_ascii=False), default))
        marked += [place] if differs else []
    text = "Fields that differ from their default are bold, with the default beside them."
    table = Table(("field", "value", "default"), lines, numbers=False, marked=marked)
    return page.section("Config", page.paragraph(text), table.html("Config"))


def _environment(workdir: epath.Path) -> str:
    heading = "Environment"
    try:
        text = storage.read_text(workdir / "environment.json")
        if text is None:
            reason = "Not known: there is no environment.json, the run has not begun."
            return page.section(heading, page.paragraph(reason))
        lines = [(name, str(value)) for name, value in sorted(flattened(json.loads(text)))]
    except (AttributeError, TypeError, ValueError):
        return page.section(heading, page.paragraph("Not known: environment.json is damaged."))
    table = Table(("what", "which"), lines, numbers=False)
    return page.section(heading, table.html(heading))
