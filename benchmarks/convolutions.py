"""Compares nam_jax's convolutions with XLA's own: forward, and either gradient.

python -m benchmarks.convolutions [--steps 20] [--json FILE]

In float32, on whatever device there is; they differ on CPUs alone. The two forms take turns.
"""

import argparse
import functools
import statistics
from collections.abc import Callable
from typing import NamedTuple

import jax

from nam_jax import convolution
from train.benchmark import turns
from train.core import tables
from train.core.command_line.values import output
from train.core.devices.busy import busy
from train.core.workdir.storage import write_json

FORMS = {"xla": jax.lax.conv_general_dilated, "nam_jax": convolution}


class Case(NamedTuple):
    """A convolution: images, their size and channels, features, and the rest."""

    images: int
    size: int
    channels: int
    features: int
    kernel_size: int
    strides: int = 1
    groups: int = 1


CASES = {
    "1×1, 32², 64 to 256": Case(32, 32, 64, 256, 1),
    "1×1, 32², 256 to 64": Case(32, 32, 256, 64, 1),
    "1×1 strided, 32², 256 to 512": Case(32, 32, 256, 512, 1, strides=2),
    "depthwise 3×3, 32², 96": Case(32, 32, 96, 96, 3, groups=96),
    "depthwise 3×3 strided, 32², 96": Case(32, 32, 96, 96, 3, strides=2, groups=96),
    "3×3, 32², 64 to 64": Case(32, 32, 64, 64, 3),
    "3×3, 16², 128 to 128": Case(32, 16, 128, 128, 3),
    "3×3, 32², 16 to 16, 128 images": Case(128, 32, 16, 16, 3),
    "3×3, 16², 32 to 32, 128 images": Case(128, 16, 32, 32, 3),
}


class Call:
    """A compiled function with its arguments, to be timed."""

    def __init__(self, function: Callable[..., jax.Array], *arguments: jax.Array):
        """Compiles the function."""
        compiled = jax.jit(function).lower(*arguments).compile()
        self._call = functools.partial(compiled, *arguments)

    def start(self, count: int) -> None:
        """Starts so many calls."""
        for _ in range(count):
            self._last = self._call()

    def wait(self) -> None:
        """Returns when the last one is done."""
        jax.block_until_ready(self._last)


def measure(case: Case, steps: int) -> dict[str, list[float]]:
    """Times a convolution.

    Args:
      case: Convolution that is timed.
      steps: Number of calls of each kind that are timed.

    Returns:
      By form: milliseconds forward, of the gradient of the input, and of that of the kernel.
    """
    kernel_shape = (case.kernel_size,) * 2 + (case.channels // case.groups, case.features)
    x = jax.random.normal(jax.random.key(0), (case.images, case.size, case.size, case.channels))
    kernel = jax.random.normal(jax.random.key(1), kernel_shape)

    def forward(form: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return FORMS[form](
            x,
            kernel,
            (case.strides,) * 2,
            ((case.kernel_size // 2,) * 2,) * 2,
            feature_group_count=case.groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def gradient(
        form: str, argument: int, x: jax.Array, kernel: jax.Array, cotangent: jax.Array
    ) -> jax.Array:
        given = [x, kernel]

        def of_one(value: jax.Array) -> jax.Array:
            return forward(form, *given[:argument], value, *given[argument + 1 :])

        return jax.vjp(of_one, given[argument])[1](cotangent)[0]

    cotangent = jax.random.normal(
        jax.random.key(2), jax.eval_shape(functools.partial(forward, "xla"), x, kernel).shape
    )
    kinds: list[dict[str, turns.Timed]] = [
        {form: Call(functools.partial(forward, form), x, kernel) for form in FORMS},
        *(
            {
                form: Call(functools.partial(gradient, form, argument), x, kernel, cotangent)
                for form in FORMS
            }
            for argument in (0, 1)
        ),
    ]
    timed = [turns.take_turns(variants, steps) for variants in kinds]
    return {
        form: [round(1e3 * statistics.median(times[form].steps), 1) for times in timed]
        for form in FORMS
    }


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=output)
    options = parser.parse_args()
    figures = {}
    with busy("compiling and timing", len(CASES), "convolutions") as work:
        for name, case in CASES.items():
            figures[name] = measure(case, options.steps)
            work.advance()
    rows = [("ms: forward / gradient of input / of kernel", *FORMS)]
    for name, found in figures.items():
        rows.append((name, *(" / ".join(map(str, found[form])) for form in FORMS)))
    print(tables.Table(rows[0], rows[1:]).text())
    if options.json:
        device = {"device_kind": jax.devices()[0].device_kind, "jax": jax.__version__}
        write_json(options.json, {**device, **figures})


if __name__ == "__main__":
    main()
