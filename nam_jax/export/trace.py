"""The operations of a function, in their order: nothing nested, nothing constant, nothing unused.

They are JAX's own primitives, so that whatever is written in JAX can be traced, and what works on
the operations need know neither networks nor attentions.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# What is a function of each element; of these alone constants may be given in a shape that
# broadcasts to that of the result.
ELEMENTWISE = {
    *("abs", "add", "convert_element_type", "copy", "div", "eq", "erf", "erfc", "exp", "floor"),
    *("ge", "gt", "integer_pow", "is_finite", "le", "log", "logistic", "lt", "max", "min", "mul"),
    *("ne", "neg", "pow", "rsqrt", "select_n", "sign", "sqrt", "square", "stop_gradient", "sub"),
    "tanh",
}
# What stands for the jaxpr inside.
CALLS = {"checkpoint", "closed_call", "custom_jvp_call", "custom_vjp_call", "jit", "pjit", "remat2"}


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """An array that depends on the input.

    Attributes:
      shape: Shape of the array; the size of the batch may be symbolic.
      dtype: Dtype of the array.
    """

    shape: tuple[Any, ...]
    dtype: Any


Operand = Value | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """A primitive with its operands.

    Attributes:
      primitive: Primitive of JAX.
      operands: Values, and constants: of ELEMENTWISE operations such as broadcast to the output.
      params: Parameters of the primitive.
      output: Result.
    """

    primitive: Any
    operands: tuple[Operand, ...]
    params: dict[str, Any]
    output: Value

    @property
    def name(self) -> str:
        """Name of the primitive, such as `conv_general_dilated`."""
        return self.primitive.name

    @property
    def value(self) -> Value:
        """The one operand that is no constant."""
        (value,) = (operand for operand in self.operands if isinstance(operand, Value))
        return value


@dataclasses.dataclass(frozen=True)
class Graph:
    """The operations between an input and an output, in their order."""

    input: Value
    operations: list[Operation]
    output: Value

    def uses(self) -> Counter[Value]:
        """How often each value is an operand, or the output."""
        operands = [value for operation in self.operations for value in operation.operands]
        return Counter(v for v in [*operands, self.output] if isinstance(v, Value))


class UnsupportedOperationError(NotImplementedError):
    """A function does what cannot be exported to ONNX."""

    def __init__(self, what: str):
        """Says what, a sentence, and what to do."""
        self.what = what
        super().__init__(f"{what} StableHLO (nam_jax.export) can hold every network.")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what,)


def trace(function: Callable[[jax.Array], jax.Array], example: jax.ShapeDtypeStruct) -> Graph:
    """Traces a function of one array.

    Conversions from one floating type to another are left out.

    Args:
      function: Function of one array that returns one.
      example: Shape and dtype of that array.

    Raises:
      UnsupportedOperationError: it has a loop, a condition, or an operation with several results.
    """
    closed = jax.make_jaxpr(function)(example)
    value = Value(example.shape, example.dtype)
    tracer = _Tracer()
    (output,) = tracer.run(closed, [value])
    if not isinstance(output, Value):
        raise UnsupportedOperationError("The ONNX export needs a result that depends on the input.")
    return without_unused(Graph(value, tracer.operations, output))


def without_unused(graph: Graph) -> Graph:
    """The graph without what its output does not depend on."""
    used, operations = {graph.output}, []
    for operation in reversed(graph.operations):
        if operation.output in used:
            used.update(v for v in operation.operands if isinstance(v, Value))
            operations.append(operation)
    return dataclasses.replace(graph, operations=operations[::-1])


class _Tracer:
    """Runs a jaxpr on values, and notes the operations that depend on them."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def run(self, closed: Any, operands: Sequence[Operand]) -> list[Operand]:
        # Of a checkpoint it is a jaxpr without constants.
        jaxpr = getattr(closed, "jaxpr", closed)
        values: dict[Any, Operand] = dict(zip(jaxpr.invars, operands, strict=True))
        constants = map(np.asarray, getattr(closed, "consts", ()))
        values.update(zip(jaxpr.constvars, constants, strict=True))

        def read(variable: Any) -> Operand:
            return np.asarray(variable.val) if hasattr(variable, "val") else values[variable]

        for equation in jaxpr.eqns:
            results = self._apply(equation, [read(variable) for variable in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def _apply(self, equation: Any, operands: list[Operand]) -> list[Operand]:
        name, params = equation.primitive.name, equation.params
        if name == "platform_index":
            return [np.zeros((), np.int32)]
        if name == "cond" and params.get("branches_platforms"):
            # The last form of a computation is that of all other platforms.
            return self.run(params["branches"][-1], operands[1:])
        if name in CALLS:
            return self.run(params["call_jaxpr" if "call_jaxpr" in params else "jaxpr"], operands)
        if name == "broadcast_in_dim" and not isinstance(operands[0], Value):
            return [_spread(operands[0], len(params["shape"]), params["broadcast_dimensions"])]
        if name == "split" and isinstance(operands[0], Value):
            return self._parts(operands[0], equation)
        if name not in ELEMENTWISE:
            shapes = [variable.aval.shape for variable in equation.invars]
            operands = [_whole(*pair) for pair in zip(operands, shapes, strict=True)]
        if not any(isinstance(operand, Value) for operand in operands):
            return _constants(equation, operands)
        return [self._noted(equation, operands)]

    def _noted(self, equation: Any, operands: list[Operand]) -> Operand:
        name, outputs = equation.primitive.name, [v.aval for v in equation.outvars]
        if len(outputs) != 1 or name in ("cond", "while", "scan"):
            raise UnsupportedOperationError(f"The ONNX export knows no operation {name} of JAX.")
        (aval,) = outputs
        if name in ("copy", "stop_gradient") or (
            name == "convert_element_type"
            and all(jnp.issubdtype(v.dtype, jnp.floating) for v in (aval, operands[0]))
        ):
            return operands[0]
        return self._add(equation.primitive, operands, equation.params, aval)

    def _parts(self, x: Value, equation: Any) -> list[Operand]:
        """A split, which has several results, as one operation for each."""
        axis, parts, end = equation.params["axis"], [], 0
        for variable in equation.outvars:
            start, end = end, end + variable.aval.shape[axis]
            starts, limits = [0] * len(x.shape), list(x.shape)
            starts[axis], limits[axis] = start, end
            params = {"start_indices": starts, "limit_indices": limits, "strides": None}
            parts.append(self._add(jax.lax.slice_p, [x], params, variable.aval))
        return parts

    def _add(self, primitive: Any, operands: list[Operand], params: Any, aval: Any) -> Operand:
        output = Value(aval.shape, aval.dtype)
        self.operations.append(Operation(primitive, tuple(operands), params, output))
        return output


def _spread(constant: Any, ndim: int, axes: Sequence[int]) -> np.ndarray:
    """A constant with more axes, all of the size 1."""
    return np.expand_dims(constant, tuple(axis for axis in range(ndim) if axis not in axes))


def _whole(operand: Operand, shape: tuple[Any, ...]) -> Operand:
    """A constant in its full shape."""
    if isinstance(operand, Value) or operand.shape == shape:
        return operand
    if not all(isinstance(size, int) for size in shape):
        raise UnsupportedOperationError(f"The ONNX export knows no constant of the shape {shape}.")
    return np.broadcast_to(operand, shape)


def _constants(equation: Any, operands: list[Any]) -> list[Operand]:
    """The results of an equation with constants alone."""
    if equation.primitive.name in ELEMENTWISE:
        operands = list(np.broadcast_arrays(*operands))
    with jax.ensure_compile_time_eval():
        results = equation.primitive.bind(*map(jnp.asarray, operands), **equation.params)
    return list(map(np.asarray, results if equation.primitive.multiple_results else [results]))
