"""How NAM gates a map, in forms of which compilers write nothing to memory but the result.

A compiler computes a short chain of cheap operations anew in every pass over the data that needs
it, but writes the result of a long one, or of a division, to memory. XLA's model of a GPU finds any
gate long, and writes it, in float32. On GPUs every pass of the derivative therefore begins from a
copy of its own of the few numbers per channel or pixel that the gate is made of. The compiler does
not see that the copies are equal, so that no two passes have a gate in common. On TPUs and CPUs,
which do not write gates, the plain derivative moves less.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nam_jax.layers.batch_norm import AxisNames, Moments, moments_of_means
from nam_jax.layers.dtypes import promoted
from nam_jax.layers.equations import Normalization, gate_affine

# What BatchNorm and gates are made of: a multiplier and an offset of each, per channel or pixel.
Affines = tuple[jax.Array, ...]


def gate(x: jax.Array, multiplier: jax.Array, offset: jax.Array) -> jax.Array:
    """The gate of both equations: M = sigmoid(multiplier x + offset).

    Args:
      x: Array of any shape.
      multiplier: Factor of x, of a shape that broadcasts to that of x.
      offset: Summand, of a shape that broadcasts to that of x.

    Returns:
      The gate M, in [0, 1], of the shape of x.
    """
    x, multiplier, offset = promoted(x, multiplier, offset)
    return 0.5 + 0.5 * jnp.tanh(0.5 * multiplier * x + 0.5 * offset)


@jax.custom_jvp
def gated(x: jax.Array, multiplier: jax.Array, offset: jax.Array) -> jax.Array:
    """What both equations do with their gate: y = x sigmoid(multiplier x + offset).

    By tanh, for sigmoid(x) = (1 + tanh(x / 2)) / 2, which is exact to 1e-7 but not relative to a
    gate near 0, and with a derivative in as few operations as there can be.

    Args:
      x: Array of any shape.
      multiplier: Factor of x, of a shape that broadcasts to that of x.
      offset: Summand, of a shape that broadcasts to that of x.

    Returns:
      The gated array, of the shape of x.
    """
    x, m = promoted(x, gate(x, multiplier, offset))
    return x * m


@gated.defjvp
def _gated_jvp(
    primals: tuple[jax.Array, jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    (x, multiplier, _), (dx, dmultiplier, doffset) = promoted(*primals), promoted(*tangents)
    m = gate(*primals)
    y = x * m
    slope = y * (1 - m)
    return y, (m + multiplier * slope) * dx + slope * (x * dmultiplier + doffset)


def check_gate_scale(gate_scale: float) -> None:
    """Refuses what is no factor of a gate."""
    if not 0 < gate_scale < math.inf:
        raise ValueError(f"gate_scale has to be above 0 and finite; got {gate_scale!r}.")


def scaled(y: jax.Array, gate_scale: float) -> jax.Array:
    """What a gate has let through, times a factor.

    Args:
      y: Gated array, of any shape.
      gate_scale: Factor, above 0.

    Raises:
      ValueError: gate_scale is not above 0, or infinite.
    """
    check_gate_scale(gate_scale)
    return y if gate_scale == 1 else y * gate_scale


@functools.partial(jax.jit, inline=True)
def gated_channels(x: jax.Array, *affines: jax.Array) -> jax.Array:
    """A BatchNorm and the gate of channels in one: y = z sigmoid(a z + b), z = A x + B.

    Args:
      x: Array (N, ..., C), at least float32.
      affines: A, B, a, b, each (C,).

    Returns:
      The gated array, of the shape of x.
    """
    return _by_platform(normalized, functools.partial(_apart, normalized), x, *affines)


@functools.partial(jax.jit, inline=True)
def gated_pixels(x: jax.Array, *affines: jax.Array) -> jax.Array:
    """The same with the gate of pixels over it, or over a BatchNorm alone.

    Args:
      x: Array (N, H, W, C), at least float32.
      affines: A, B, and a, b where channels are gated, each (C,); then multiplier and offset of the
        pixels' gate, each (H, W, 1).

    Returns:
      The gated array, of the shape of x.
    """
    return _by_platform(_gated_twice, functools.partial(_apart, _gated_twice), x, *affines)


class PixelNorm(NamedTuple):
    """How the gate of pixels follows from the moments of the map that it gates.

    Attributes:
      epsilon: Small positive number added to the variance.
      normalization: What the weights are relative to, see `attention_weights`.
      weight_gradient: Whether gradients flow through the weights.
      axis_name: Mapped axis (or axes) of devices to average the moments over.
    """

    epsilon: float
    normalization: Normalization
    weight_gradient: bool
    axis_name: AxisNames | None

    def gate(
        self, means: jax.Array, scale: jax.Array, bias: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Multiplier and offset, (H, W, 1)."""
        multiplier, offset = gate_affine(
            moments_of_means(means),
            scale,
            bias,
            epsilon=self.epsilon,
            normalization=self.normalization,
            weight_gradient=self.weight_gradient,
        )
        return multiplier[..., None], offset[..., None]

    def averaged(self, means: jax.Array) -> jax.Array:
        """Means over all devices."""
        return means if self.axis_name is None else jax.lax.pmean(means, self.axis_name)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def gated_by_own_moments(
    norm: PixelNorm, x: jax.Array, affines: Affines, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, Moments]:
    """`gated_pixels` with the statistics of this batch.

    Args:
      norm: How the gate follows from moments, scale and bias.
      x: Array (N, H, W, C), at least float32.
      affines: A, B, and a, b where channels are gated, each (C,).
      scale: Scales λ (H, W).
      bias: Shifts (H, W).

    Returns:
      The gated array, of the shape of x, and the moments (H, W) of what the pixels' gate is over.
    """
    plain, joint = (functools.partial(form, norm) for form in (_plain, _joint))
    y, means = _by_platform(plain, joint, x, affines, scale, bias)
    return y, moments_of_means(means)


def normalized(x: jax.Array, multiplier: jax.Array, offset: jax.Array, *gate: jax.Array) -> Any:
    """BatchNorm's output, and where there is a gate, what it lets through."""
    x, multiplier, offset = promoted(x, multiplier, offset)
    y = multiplier * x + offset
    return gated(y, *gate) if gate else y


def _gated_twice(x: jax.Array, *affines: jax.Array) -> jax.Array:
    return gated(normalized(x, *affines[:-2]), *affines[-2:])


def _by_platform(plain: Callable[..., Any], joint: Callable[..., Any], *arguments: Any) -> Any:
    return jax.lax.platform_dependent(*arguments, cuda=joint, default=plain)


def _plain(
    norm: PixelNorm, x: jax.Array, affines: Affines, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # Computed twice, for the two gradients join only behind BatchNorm's own reductions, which the
    # compiler makes in fewer passes of each alone than of their sum.
    z = normalized(x, *affines)
    means = norm.averaged(jnp.stack([z.mean((0, 3)), jnp.square(z).mean((0, 3))]))
    return _gated_twice(x, *affines, *norm.gate(means, scale, bias)), means


# What follows is for GPUs.

# XLA has room for two sums of columns in a kernel, but for any number that are as short as this.
FEW_ROWS = 31


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _apart(function: Callable[..., Any], x: jax.Array, *affines: jax.Array) -> Any:
    """function(x, *affines), with the derivative by each pair computed from its own copies."""
    return function(x, *affines)


@_apart.defjvp
def _apart_jvp(
    function: Callable[..., Any], primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[Any, Any]:
    x, *affines = primals
    parts = []
    for number in (0, *range(1, len(primals), 2)):
        affines = jax.lax.optimization_barrier(affines)
        parts.append(_derivative(function, (x, *affines), number, tangents)[1])
    return function(*primals), sum(parts)


def _derivative(
    function: Callable[..., Any],
    arguments: Sequence[jax.Array],
    number: int,
    tangents: Sequence[jax.Array],
) -> tuple[Any, Any]:
    """The value of a function of a map and affines, and its derivative by one of these.

    Args:
      function: Function of a map and of multipliers and offsets.
      arguments: Its arguments.
      number: 0 for the map, or that of a multiplier, with the offset behind it.
      tangents: Tangents of all arguments.
    """
    count, shape = 2 if number else 1, arguments[0].shape
    end = number + count

    def of_some(*some: jax.Array) -> Any:
        return function(*arguments[:number], *some, *arguments[end:])

    some = [jnp.broadcast_to(argument, shape) for argument in arguments[number:end]]
    if not number:
        return jax.jvp(of_some, some, [tangents[0]])
    # As one complex number, so that one sum makes both gradients and computes the gate once.
    both = _spread(jax.lax.complex(*tangents[number:end]), shape)
    return jax.jvp(of_some, some, [both.real, both.imag])


def _spread(values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Broadcasts values; those of channels in two steps, so that the sum in reverse has two."""
    rows, channels = math.prod(shape[:-1]), shape[-1]
    if values.shape[-1] != channels or values.size != channels:
        return jnp.broadcast_to(values, shape)
    # A number of rows that is not known yet is not divided.
    sizes = range(1, FEW_ROWS + 1) if isinstance(rows, int) else (1,)
    part = max(size for size in sizes if rows % size == 0)
    parts = jnp.broadcast_to(values.reshape(1, 1, channels), (rows // part, 1, channels))
    # The compiler would make one step of both.
    parts = jax.lax.optimization_barrier(parts)
    return jnp.broadcast_to(parts, (rows // part, part, channels)).reshape(shape)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _joint(
    norm: PixelNorm, x: jax.Array, affines: Affines, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array]:
    means = norm.averaged(_means(normalized(x, *affines)))
    affines = jax.lax.optimization_barrier(affines)
    return _gated_twice(x, *affines, *norm.gate(means, scale, bias)), means


@_joint.defjvp
def _joint_jvp(norm: PixelNorm, primals: Any, tangents: Any) -> Any:
    """The gradient at z, of the map and of its moments, is computed for each argument anew."""
    (x, affines, scale, bias), (dx, daffines, dscale, dbias) = primals, tangents
    y, means = _joint(norm, *primals)
    pixels = norm.gate(means, scale, bias)
    parts, dmeans = [], []
    for number in (0, *range(1, len(affines) + 1, 2)):
        affines, pixels = jax.lax.optimization_barrier((affines, pixels))
        z, dz = _derivative(normalized, (x, *affines), number, (dx, *daffines))
        dmeans.append(jax.jvp(_means, (z,), (dz,))[1])
        parts.append(_derivative(gated, (z, *pixels), 0, (dz,))[1])
    averaged = norm.averaged(sum(dmeans))
    _, dpixels = jax.jvp(norm.gate, (means, scale, bias), (averaged, dscale, dbias))
    affines, pixels = jax.lax.optimization_barrier((affines, pixels))
    z = normalized(x, *affines)
    parts.append(_derivative(gated, (z, *pixels), 1, (z, *dpixels))[1])
    return (y, means), (sum(parts), averaged)


def _means(z: jax.Array) -> jax.Array:
    # As complex numbers for the same reason.
    means = jax.lax.complex(z, jnp.square(z)).mean((0, 3))
    return jnp.stack([means.real, means.imag])
