"""Times exported networks against the network itself, on a CPU.

From normalised images to logits, by `jax.jit` with the weights as constants, by
the StableHLO file, and by onnxruntime with the folded graph and with the same
graph as it was traced. They take turns, and every call is waited for; weights
are random. Needs pip install -e '.[train,dev]'.

Example:
  python -m benchmarks.serving --networks resnet20 --batches 1,32

Exit codes: 0 done, 1 failed, 2 the command line is wrong.
"""

import functools
import itertools
import json
import statistics
from argparse import Namespace
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import onnxruntime

import nam_jax
from benchmarks.calls import Call
from nam_jax.attention import NAMES
from nam_jax.export.fold import fold
from nam_jax.export.onnx import written
from nam_jax.export.serving import classifier, example
from nam_jax.export.trace import trace
from nam_jax.variables import abstract_variables
from train.benchmark import turns
from train.core import command_line, tables
from train.core.command_line.values import each, one_of, whole_number
from train.core.devices.busy import busy
from train.core.workdir.storage import write_json

# By network: its stem, and the size of its images.
NETWORKS = {
    "resnet20": ("cifar", 32),
    "resnet50": ("imagenet", 224),
    "mobilenet_v2": ("imagenet", 224),
}


class Form(NamedTuple):
    """A way to run a network: the function, bytes of its file, and nodes of its graph."""

    function: Callable[[np.ndarray], Any]
    size: int | None = None
    nodes: int | None = None


def forms(name: str, attention: str) -> dict[str, Form]:
    """A network in all forms.

    Args:
      name: Name of the network.
      attention: Name of the attention.
    """
    stem, size = NETWORKS[name]
    model = nam_jax.models.create(name, num_classes=1000, attention=attention, stem=stem)
    variables = drawn(abstract_variables(model, (1, size, size, 3)))
    function = classifier(model, variables, None, None, False)
    file = nam_jax.export(model, variables, (size, size, 3), platforms=["cpu"])
    traced = trace(function, example((size, size, 3), None, None))
    return {
        "jax.jit": Form(jax.jit(function)),
        "StableHLO": Form(jax.jit(jax.export.deserialize(bytearray(file)).call), len(file)),
        "onnxruntime": onnx_form(traced, folded=True),
        "onnxruntime, not folded": onnx_form(traced, folded=False),
    }


def onnx_form(graph: Any, *, folded: bool) -> Form:
    """A traced network in onnxruntime."""
    model = written(fold(graph) if folded else graph, "logits", {})
    file = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    # Else its threads take time from whatever has the next turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    nodes = len(model.graph.node)
    return Form(lambda images: session.run(None, {"images": images})[0], len(file), nodes)


def drawn(shapes: Any) -> Any:
    """Random variables that keep activations of one size."""
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        if path[-1].key == "kernel":
            deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return rng.normal(0, deviation, leaf.shape).astype(np.float32)
        return rng.uniform(0.5, 1, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def measure(name: str, attention: str, batches: list[int], steps: int) -> list[dict[str, Any]]:
    """Times all forms of a network in turns.

    Args:
      name: Name of the network.
      attention: Name of the attention.
      batches: Numbers of images of a call.
      steps: Number of images that each form is timed with; six calls at least.

    Returns:
      A row for every form and batch.
    """
    rows, all_forms = [], forms(name, attention)
    for batch in batches:
        size = NETWORKS[name][1]
        images = np.random.default_rng(0).standard_normal((batch, size, size, 3), np.float32)
        calls = {
            form: Call(functools.partial(value.function, images))
            for form, value in all_forms.items()
        }
        count = max(6, steps // batch)
        times = turns.take_turns(calls, count)
        for form, value in all_forms.items():
            row = {"network": name, "attention": attention, "batch": batch, "form": form}
            row["calls"] = count
            row["ms"] = round(1e3 * statistics.median(times[form].steps), 2)
            row["least_ms"] = round(1e3 * min(times[form].steps), 2)
            row["vs_jit"] = round(turns.ratio(times[form], times["jax.jit"]), 3)
            unfolded = times["onnxruntime, not folded"]
            row["vs_not_folded"] = round(turns.ratio(times[form], unfolded), 3)
            rows.append({**row, "bytes": value.size, "nodes": value.nodes})
    return rows


def parser() -> command_line.Parser:
    """The command line."""
    parser = command_line.Parser(__doc__, "python -m benchmarks.serving [OPTION ...]")
    add = parser.add_argument
    add(
        "--networks",
        metavar="NAME,...",
        type=each(one_of(*NETWORKS)),
        default=[*NETWORKS],
        help=f"default: {', '.join(NETWORKS)}",
    )
    add(
        "--attention",
        metavar="NAME,...",
        type=each(one_of(*NAMES)),
        default=["none", "nam"],
        help="attentions of each; default: none, nam",
    )
    add(
        "--batches",
        metavar="N,...",
        type=each(whole_number(1, 4096)),
        default=[1, 32],
        help="images of a call; default: 1, 32",
    )
    add(
        "--steps",
        metavar="N",
        type=whole_number(1, 1_000_000),
        default=60,
        help="images that each form is timed with, in six calls at least; default: 60",
    )
    parser.add_json()
    return parser


def main(options: Namespace) -> None:
    """Prints a table, then JSON."""
    rows: list[dict[str, Any]] = []
    for name, attention in itertools.product(options.networks, options.attention):
        with busy(f"exporting and timing {name} with {attention}"):
            rows += measure(name, attention, options.batches, options.steps)
    columns = tuple(rows[0])
    print(tables.Table(columns, [tuple(map(str, row.values())) for row in rows]).text())
    versions = {"jax": jax.__version__, "onnxruntime": onnxruntime.__version__}
    result = {"versions": versions, "rows": rows}
    print(json.dumps(result))
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    command_line.run(main, parser())
