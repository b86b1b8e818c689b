"""Folds what is linear at evaluation: BatchNorms into convolutions, gates into one multiply-add.

A BatchNorm with running statistics is y = a x + b with constants a and b. After a convolution or
a linear layer, y = (kernel a) ∗ x + (bias a + b); anywhere else every chain of sums and products
with constants becomes one of each. Of NAM's gate, sigmoid(W BN(x)), that leaves one multiply-add
before the sigmoid. That of channels is written as a convolution of each with one number: runtimes
have that, its bias and the sigmoid done at once, and keep the order of elements they had.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from nam_jax.export.trace import Graph, Operand, Operation, Value, trace, without_unused


class MultiplyAdd(NamedTuple):
    """A value that is factor · base + summand.

    Attributes:
      base: Value of a shape that broadcasts to it.
      factor: Constant of float64 that broadcasts to it.
      summand: Constant of float64 that broadcasts to it.
    """

    base: Value
    factor: Any
    summand: Any

    def then(self, factor: Any, summand: Any) -> "MultiplyAdd":
        """This value times a factor, and a summand added."""
        return MultiplyAdd(self.base, factor * self.factor, factor * self.summand + summand)


def fold(graph: Graph) -> Graph:
    """The same function in fewer operations.

    Args:
      graph: Graph of a network under running statistics.

    Returns:
      A graph with the same results but for rounding.
    """
    # The sigmoids are found by the multiply-adds around tanh, and bring one of their own.
    return _with_convolutions(_affine_folded(_with_sigmoids(_affine_folded(graph))))


def affine(operation: Operation) -> MultiplyAdd | None:
    """What an operation makes of its one operand that is no constant, if that is linear.

    Args:
      operation: Operation of any kind.
    """
    values = [operand for operand in operation.operands if isinstance(operand, Value)]
    if len(values) != 1 or operation.name not in ("add", "div", "mul", "neg", "sub"):
        return None
    is_first = operation.operands[0] is values[0]
    others: list[Any] = [operand for operand in operation.operands if operand is not values[0]]
    constant = np.asarray(others[0] if others else -1, np.float64)
    one, zero = np.float64(1), np.float64(0)
    match operation.name:
        case "add":
            return MultiplyAdd(values[0], one, constant)
        case "sub":
            return MultiplyAdd(
                values[0], one if is_first else -one, -constant if is_first else constant
            )
        case "mul" | "neg":
            return MultiplyAdd(values[0], constant, zero)
        case "div" if is_first:
            return MultiplyAdd(values[0], 1 / constant, zero)
    return None


def kernel_of(operation: Operation) -> tuple[np.ndarray, int, int] | None:
    """The constant kernel of a convolution or linear layer; None of any other operation.

    Args:
      operation: Operation of any kind.

    Returns:
      The kernel, the axis of the features in it, and that in the output.
    """
    kernel = operation.operands[-1]
    if not isinstance(kernel, np.ndarray):
        return None
    if operation.name == "conv_general_dilated":
        numbers = operation.params["dimension_numbers"]
        return kernel, numbers.rhs_spec[0], numbers.out_spec[1]
    if operation.name == "dot_general" and kernel.ndim == 2:
        ((_, (contracted,)), _) = operation.params["dimension_numbers"]
        return kernel, 1 - contracted, len(operation.output.shape) - 1
    return None


def per_feature(constant: np.ndarray, ndim: int, axis: int) -> np.ndarray | None:
    """A constant as a vector over one axis, or as a number; None where it depends on another.

    Args:
      constant: Array that broadcasts to one of so many axes.
      ndim: Number of axes.
      axis: Axis of the features.
    """
    constant = constant.reshape((1,) * (ndim - constant.ndim) + constant.shape)
    varies = [i for i, size in enumerate(constant.shape) if size > 1]
    return constant.reshape(-1) if varies in ([], [axis]) else None


class _Folder:
    """Writes the operations of a graph anew."""

    def __init__(self, graph: Graph) -> None:
        self.uses = graph.uses()
        self.operations: list[Operation] = []
        # Where the operation of a value stands.
        self.places: dict[Value, int] = {}
        # Values that no operation computes yet.
        self.pending: dict[Value, MultiplyAdd] = {}
        self.renamed: dict[Value, Value] = {}

    def add(self, operation: Operation) -> None:
        linear = affine(operation)
        if linear is None:
            self.emit(operation)
            return
        before = linear.base
        if before in self.pending and self.uses[before] == 1:
            whole = self.pending.pop(before).then(linear.factor, linear.summand)
        else:
            whole = linear._replace(base=self.settled(before))
        self.pending[operation.output] = whole

    def emit(self, operation: Operation) -> None:
        operands = tuple(map(self.settled, operation.operands))
        self.places[operation.output] = len(self.operations)
        self.operations.append(dataclasses.replace(operation, operands=operands))

    def settled(self, operand: Operand) -> Any:
        """An operand, computed by some operation."""
        if not isinstance(operand, Value):
            return operand
        if operand in self.pending:
            self._compute(operand, self.pending.pop(operand))
        return self.renamed.get(operand, operand)

    def _compute(self, value: Value, linear: MultiplyAdd) -> None:
        base, factor, summand = linear
        if self.uses[base] == 1 and self._scale_kernel(base, factor):
            factor = np.ones(())
        for primitive, constant, nothing in (
            (jax.lax.mul_p, factor, 1),
            (jax.lax.add_p, summand, 0),
        ):
            if (constant != nothing).any():
                output = Value(value.shape, value.dtype)
                operands = base, constant.astype(value.dtype)
                self.places[output] = len(self.operations)
                self.operations.append(Operation(primitive, operands, {}, output))
                base = output
        self.renamed[value] = base
        # Who used the value uses that now: a kernel may have one user alone to be scaled for.
        self.uses[base] += self.uses[value] - (base is linear.base)

    def _scale_kernel(self, value: Value, factor: np.ndarray) -> bool:
        """Multiplies the kernel that a value comes from by a factor, where that can be done."""
        if value not in self.places:
            return False
        operation = self.operations[self.places[value]]
        linear = kernel_of(operation)
        if linear is None:
            return False
        kernel, axis, output_axis = linear
        scale = per_feature(factor, len(value.shape), output_axis)
        if scale is None:
            return False
        scale = scale.reshape([-1 if i == axis else 1 for i in range(kernel.ndim)])
        scaled = (kernel.astype(np.float64) * scale).astype(kernel.dtype)
        self.operations[self.places[value]] = dataclasses.replace(
            operation, operands=(operation.operands[0], scaled)
        )
        return True


def _affine_folded(graph: Graph) -> Graph:
    folder = _Folder(graph)
    for operation in graph.operations:
        folder.add(operation)
    output = folder.settled(graph.output)
    return without_unused(Graph(graph.input, folder.operations, output))


def _with_sigmoids(graph: Graph) -> Graph:
    """The same with a + a tanh(x) = 2 a sigmoid(2 x) in place of the former."""
    producers = {operation.output: operation for operation in graph.operations}
    operations = []
    for operation in graph.operations:
        found = _sigmoid_form(operation, producers)
        operations += [operation] if found is None else found
    return without_unused(dataclasses.replace(graph, operations=operations))


def _sigmoid_form(
    operation: Operation, producers: dict[Value, Operation]
) -> list[Operation] | None:
    linear, chain = affine(operation), operation
    whole = linear
    while linear is not None and linear.base in producers:
        chain = producers[linear.base]
        linear = affine(chain)
        if linear is not None and whole is not None:
            whole = linear.then(whole.factor, whole.summand)
    if whole is None or chain.name != "tanh" or not (whole.factor == whole.summand).all():
        return None
    doubled, gate = (Value(chain.output.shape, chain.output.dtype) for _ in range(2))
    two, twice = np.asarray(2, doubled.dtype), (2 * whole.factor).astype(doubled.dtype)
    return [
        Operation(jax.lax.mul_p, (chain.value, two), {}, doubled),
        Operation(jax.lax.logistic_p, (doubled,), {"accuracy": None}, gate),
        Operation(jax.lax.mul_p, (gate, twice), {}, operation.output),
    ]


def _with_convolutions(graph: Graph) -> Graph:
    """The same with convolutions in place of products with a factor for each channel of a map."""
    operations = [_convolution(operation) or operation for operation in graph.operations]
    return dataclasses.replace(graph, operations=operations)


def _convolution(operation: Operation) -> Operation | None:
    linear, output = affine(operation), operation.output
    if operation.name != "mul" or linear is None or len(output.shape) != 4:
        return None
    factors = per_feature(linear.factor, 4, 3)
    if linear.base.shape != output.shape or factors is None or len(factors) == 1:
        return None
    kernel: Any = factors.astype(output.dtype).reshape(1, 1, 1, -1)
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        rhs=kernel,
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=len(factors),
    )
    (traced,) = trace(convolve, jax.ShapeDtypeStruct(output.shape, output.dtype)).operations
    return dataclasses.replace(traced, operands=(linear.base, *traced.operands[1:]), output=output)
