"""Compares NAM's modules with those of PyTorch, by themselves: one call in training.

A call gives the output, the gradients of input and parameters for a given one
of the output, and new running statistics, in float32. nam_jax comes plain and
with mean and variance of its input given (their gradients are then taken too);
PyTorch eager and compiled, each with its default layout and with channels_last.
The forms take turns; they are compared with the faster layout of PyTorch. Needs
pip install '.[train,peers]'.

Example:
  python -m benchmarks.module --shape 32,32,32,256 --json FILE

Exit codes: 0 done, 1 failed, 2 the command line is wrong.
"""

import functools
import json
import statistics
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch

import nam_jax
from benchmarks.calls import Call
from benchmarks.peers import nam, timing
from nam_jax.layers.batch_norm import batch_moments
from train.benchmark import turns
from train.core import command_line, tables
from train.core.command_line.values import each, whole_number
from train.core.devices.busy import busy
from train.core.workdir.storage import write_json

PEERS: dict[str, Callable[..., torch.nn.Module]] = {
    "nam_channel": lambda c, h, w: nam.ChannelNAM(c),
    "nam_spatial": lambda c, h, w: nam.SpatialNAM(h, w),
    "nam": nam.NAM,
}


def jax_forms(name: str, x: np.ndarray, cotangent: np.ndarray) -> dict[str, turns.Timed]:
    """The module of nam_jax, plain and with the moments of its input."""
    module = nam_jax.attention(name)()
    images, gradient = jax.device_put((x, cotangent))
    variables = module.init(jax.random.key(0), images, use_running_average=False)

    @jax.jit
    def call(variables: Any, cotangent: jax.Array, *inputs: Any) -> Any:
        def apply(params: Any, x: jax.Array, moments: Any = None) -> Any:
            given = {**variables, "params": params}
            return module.apply(given, x, False, moments, mutable="batch_stats")

        y, pull_back, new = jax.vjp(apply, variables["params"], *inputs, has_aux=True)
        return y, pull_back(cotangent), new

    plain = functools.partial(call, variables, gradient, images)
    forms: dict[str, turns.Timed] = {"nam_jax": Call(plain)}
    if name != "nam_spatial":
        moments = batch_moments(images, (0, 1, 2))
        forms["nam_jax, moments"] = Call(functools.partial(plain, moments))
    return forms


def torch_form(
    name: str, x: np.ndarray, cotangent: np.ndarray, *, compiled: bool, channels_last: bool
) -> turns.Timed:
    """PyTorch's module."""
    device = timing.torch_device()
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def put(array: np.ndarray) -> torch.Tensor:
        tensor = torch.tensor(array.transpose(0, 3, 1, 2), device=device)
        return tensor.contiguous(memory_format=layout)

    images, gradient = put(x).requires_grad_(), put(cotangent)
    module = PEERS[name](*images.shape[1:]).to(device)
    function = torch.compile(module) if compiled else module

    def call() -> None:
        images.grad = None
        module.zero_grad()
        function(images).backward(gradient)

    return timing.TorchCall(call)


def measure(name: str, shape: tuple[int, ...], steps: int) -> dict[str, dict[str, float]]:
    """Times all forms of a module in turns.

    Args:
      name: Name of the attention.
      shape: Shape of the input, (N, H, W, C).
      steps: Number of calls of each form that are timed.

    Returns:
      By form: `ms` and `ms_p95` in milliseconds, and the times relative to PyTorch's,
      `vs_compile` and `vs_eager`.
    """
    x, cotangent = np.random.default_rng(0).standard_normal((2, *shape), np.float32)
    forms = jax_forms(name, x, cotangent)
    kinds = {"eager": False, "compile": True}
    for kind, compiled in kinds.items():
        for layout, channels_last in {"": False, ", channels_last": True}.items():
            options = {"compiled": compiled, "channels_last": channels_last}
            forms[kind + layout] = torch_form(name, x, cotangent, **options)
    times = turns.take_turns(forms, steps)
    bases = {
        f"vs_{kind}": min(
            (found for form, found in times.items() if form.startswith(kind)),
            key=lambda found: statistics.median(found.steps),
        )
        for kind in kinds
    }
    return {
        form: {
            "ms": round(1e3 * statistics.median(found.steps), 3),
            "ms_p95": round(1e3 * float(np.percentile(found.steps, 95)), 3),
            **{key: round(turns.ratio(found, base), 3) for key, base in bases.items()},
        }
        for form, found in times.items()
    }


def input_shape(value: str) -> tuple[int, ...]:
    """The shape of the input, (N, H, W, C)."""
    sizes = each(whole_number(1, 65_536))(value)
    if len(sizes) != 4:
        raise ArgumentTypeError(f"got {value!r}; allowed: four numbers N,H,W,C.")
    return tuple(sizes)


def parser() -> command_line.Parser:
    """The command line."""
    parser = command_line.Parser(__doc__, "python -m benchmarks.module [OPTION ...]")
    parser.add_argument(
        "--shape",
        metavar="N,H,W,C",
        type=input_shape,
        default=(32, 32, 32, 256),
        help="shape of the input; default: 32,32,32,256",
    )
    parser.add_steps(what="calls")
    parser.add_json()
    return parser


def main(options: Namespace) -> None:
    """Prints a table for every module, then JSON."""
    result: dict[str, Any] = {
        "shape": options.shape,
        "device_kind": jax.devices()[0].device_kind,
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
    }
    for name in PEERS:
        with busy(f"compiling and timing {name}"):
            result[name] = measure(name, options.shape, options.steps)
        keys = ("ms", "ms_p95", "vs_compile", "vs_eager")
        rows = [(name, "ms", "95 %", "vs compile", "vs eager")]
        for form, found in result[name].items():
            rows.append((form, *(f"{found[key]:.3f}" for key in keys)))
        print(tables.Table(rows[0], rows[1:]).text() + "\n", flush=True)
    print(json.dumps(result))
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    command_line.run(main, parser())
