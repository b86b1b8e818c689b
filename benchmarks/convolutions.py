"""Compares nam_jax's convolutions with XLA's own: forward, and either gradient.

In float32, on whatever device there is; they differ on CPUs alone. The two
forms take turns; a figure is the median of calls that are waited for.

Example:
  python -m benchmarks.convolutions --json FILE

Exit codes: 0 done, 1 failed, 2 the command line is wrong.
"""

import statistics
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax

from benchmarks.calls import Call
from nam_jax import convolution
from train.benchmark import turns
from train.core import command_line, tables
from train.core.devices.busy import busy
from train.core.workdir.storage import write_json

FORMS: dict[str, Callable[..., jax.Array]] = {
    "xla": jax.lax.conv_general_dilated,
    "nam_jax": convolution,
}


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


def forward(case: Case, form: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution in one form."""
    return FORMS[form](
        x,
        kernel,
        (case.strides,) * 2,
        ((case.kernel_size // 2,) * 2,) * 2,
        feature_group_count=case.groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def gradient(
    case: Case, form: str, argument: int, x: jax.Array, kernel: jax.Array, cotangent: jax.Array
) -> jax.Array:
    """The gradient of the input, argument 0, or of the kernel, argument 1."""
    # Compiled, the other one is left out.
    return jax.vjp(partial(forward, case, form), x, kernel)[1](cotangent)[argument]


def calls(case: Case) -> list[dict[str, turns.Timed]]:
    """What is timed, by form: forward, the gradient of the input, and that of the kernel."""
    kernel_shape = (case.kernel_size,) * 2 + (case.channels // case.groups, case.features)
    x = jax.random.normal(jax.random.key(0), (case.images, case.size, case.size, case.channels))
    kernel = jax.random.normal(jax.random.key(1), kernel_shape)
    output = jax.eval_shape(partial(forward, case, "xla"), x, kernel)
    cotangent = jax.random.normal(jax.random.key(2), output.shape)

    def call(function: Callable[..., jax.Array], *arguments: jax.Array) -> Call:
        return Call(partial(jax.jit(function), *arguments))

    return [
        {form: call(partial(forward, case, form), x, kernel) for form in FORMS},
        {form: call(partial(gradient, case, form, 0), x, kernel, cotangent) for form in FORMS},
        {form: call(partial(gradient, case, form, 1), x, kernel, cotangent) for form in FORMS},
    ]


def measure(case: Case, steps: int) -> dict[str, list[float]]:
    """Times a convolution.

    Args:
      case: Convolution that is timed.
      steps: Number of calls of each kind that are timed.

    Returns:
      By form: milliseconds forward, of the gradient of the input, and of that of the kernel.
    """
    timed = [turns.take_turns(variants, steps) for variants in calls(case)]
    return {
        form: [round(1e3 * statistics.median(times[form].steps), 1) for times in timed]
        for form in FORMS
    }


def parser() -> command_line.Parser:
    """The command line."""
    parser = command_line.Parser(__doc__, "python -m benchmarks.convolutions [OPTION ...]")
    parser.add_steps(default=20, what="calls")
    parser.add_json()
    return parser


def main(options: Namespace) -> None:
    """Prints a table."""
    figures = {}
    with busy("compiling and timing", len(CASES), "convolutions") as work:
        for name, case in CASES.items():
            figures[name] = measure(case, options.steps)
            work.advance()
    columns = ("ms: forward / gradient of input / of kernel", *FORMS)
    rows = [
        (name, *(" / ".join(map(str, found[form])) for form in FORMS))
        for name, found in figures.items()
    ]
    print(tables.Table(columns, rows).text())
    if options.json:
        device = {"device_kind": jax.devices()[0].device_kind, "jax": jax.__version__}
        write_json(options.json, {**device, **figures})


if __name__ == "__main__":
    command_line.run(main, parser())
