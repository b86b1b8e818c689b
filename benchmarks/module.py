"""Compares NAM's modules with those of PyTorch, by themselves: one call in training.

python -m benchmarks.module [--shape 32,32,32,256] [--steps 50] [--json FILE]

A call gives the output, the gradients of input and parameters for a given one of the output, and
new running statistics, in float32. nam_jax comes plain and with mean and variance of its input
given (their gradients are then taken too); PyTorch eager and compiled, each with its default layout
and with channels_last. The forms take turns; they are compared with the faster layout of PyTorch.
Needs pip install '.[train,peers]'.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch

import nam_jax
from benchmarks.peers import nam, timing
from nam_jax.layers.batch_norm import batch_moments
from train.benchmark import turns
from train.core import tables
from train.core.command_line.values import output
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
    x, cotangent = jax.device_put((x, cotangent))
    variables = module.init(jax.random.key(0), x, use_running_average=False)
    moments = batch_moments(x, (0, 1, 2))

    @jax.jit
    def call(variables: Any, cotangent: jax.Array, *inputs: Any) -> Any:
        def apply(params: Any, x: jax.Array, moments: Any = None) -> Any:
            given = {**variables, "params": params}
            return module.apply(given, x, False, moments, mutable="batch_stats")

        y, pull_back, new = jax.vjp(apply, variables["params"], *inputs, has_aux=True)
        return y, pull_back(cotangent), new

    forms = {"nam_jax": (x,)}
    if name != "nam_spatial":
        forms["nam_jax, moments"] = (x, moments)
    return {
        form: timing.JaxCall(lambda inputs=inputs: call(variables, cotangent, *inputs))
        for form, inputs in forms.items()
    }


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


def main() -> None:
    """Prints a table for every module, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="32,32,32,256", help="N,H,W,C of the input")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--json", type=output)
    options = parser.parse_args()
    shape = tuple(int(size) for size in options.shape.split(","))
    result: dict[str, Any] = {
        "shape": shape,
        "device_kind": jax.devices()[0].device_kind,
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
    }
    for name in PEERS:
        with busy(f"compiling and timing {name}"):
            result[name] = measure(name, shape, options.steps)
        keys = ("ms", "ms_p95", "vs_compile", "vs_eager")
        rows = [(name, "ms", "95 %", "vs compile", "vs eager")]
        for form, found in result[name].items():
            rows.append((form, *(f"{found[key]:.3f}" for key in keys)))
        print(tables.Table(rows[0], rows[1:]).text() + "\n", flush=True)
    print(json.dumps(result))
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
