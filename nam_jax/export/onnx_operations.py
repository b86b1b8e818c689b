"""How each of JAX's primitives is written as ONNX nodes, by its name.

An attention or a network that uses another one needs its function here, and nothing else.
"""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from onnx import TensorProto

from nam_jax.export import onnx_axes
from nam_jax.export.fold import per_feature
from nam_jax.export.onnx_writer import NCHW, Tensor, Writer
from nam_jax.export.trace import Operand, Operation, UnsupportedOperationError, Value

Write = Callable[[Writer, Operation], Tensor]

ELEMENTWISE = {
    "abs": "Abs",
    "div": "Div",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "log": "Log",
    "logistic": "Sigmoid",
    "neg": "Neg",
    "pow": "Pow",
    "sign": "Sign",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tanh": "Tanh",
}


def write(writer: Writer, operation: Operation) -> None:
    """Writes an operation.

    Args:
      writer: Writer of the graph.
      operation: Operation whose operands are written.

    Raises:
      UnsupportedOperationError: nothing here says how.
    """
    name = operation.name
    if name not in _WRITE:
        raise UnsupportedOperationError(
            f"The ONNX export knows no operation {name} of JAX; write the network with those in "
            "nam_jax/export/onnx_operations.py, or add it there."
        )
    try:
        tensor = _WRITE[name](writer, operation)
    except UnsupportedOperationError as error:
        shapes = " and ".join(str(operand.shape) for operand in operation.operands)
        raise UnsupportedOperationError(
            f"{error.what} It met the operation {name} of JAX, of arrays of the shapes {shapes}."
        ) from error
    writer.put(operation.output, tensor)


def _elementwise(writer: Writer, operation: Operation, kind: str) -> Tensor:
    """A node whose operands broadcast, in the order of axes that the largest of them has."""
    tensors = [writer.tensors[v] for v in operation.operands if isinstance(v, Value)]
    chosen = max(tensors, key=lambda tensor: tensor.whole)
    names = [_aligned(writer, operand, chosen.order) for operand in operation.operands]
    return Tensor(writer.node(kind, *names), chosen.order, chosen.whole)


def _aligned(writer: Writer, operand: Operand, order: Sequence[int]) -> str:
    if isinstance(operand, Value):
        return writer.ordered(writer.tensors[operand], order)
    # A single number needs no axes.
    if operand.size == 1:
        return writer.constant(operand.reshape(()))
    operand = operand.reshape((1,) * (len(order) - operand.ndim) + operand.shape)
    return writer.constant(operand.transpose(order))


def _with_constant(operation: Operation) -> tuple[Value, np.ndarray | None]:
    """A value of a commutative operation, and the other operand where that is a constant."""
    value, *_ = (operand for operand in operation.operands if isinstance(operand, Value))
    constants = [operand for operand in operation.operands if isinstance(operand, np.ndarray)]
    return value, constants[0] if constants else None


def _add(writer: Writer, operation: Operation) -> Tensor:
    """A sum; that of a convolution or linear layer and a constant gives it a bias."""
    value, constant = _with_constant(operation)
    node = writer.producer(value, "Conv", "Gemm")
    if constant is not None and node is not None and len(node.input) == 2:
        # Features are the second axis of what either node gives.
        axis = writer.tensors[value].order[1]
        features = operation.output.shape[axis]
        bias = per_feature(constant, len(operation.output.shape), axis)
        if bias is not None:
            node.input.append(writer.constant(np.broadcast_to(bias, (features,))))
            return writer.tensor(value)
    return _elementwise(writer, operation, "Add")


def _mul(writer: Writer, operation: Operation) -> Tensor:
    """A product; that of a sum and one over the number of its terms is a mean."""
    value, constant = _with_constant(operation)
    node = writer.producer(value, "ReduceSum")
    terms = 0 if node is None or constant is None else constant * writer.terms[node.name]
    if np.allclose(terms, 1, rtol=1e-6):
        node.op_type = "ReduceMean"
        return writer.tensor(value)
    return _elementwise(writer, operation, "Mul")


def _square(writer: Writer, operation: Operation) -> Tensor:
    tensor = writer.tensors[operation.value]
    return tensor._replace(name=writer.node("Mul", tensor.name, tensor.name))


def _integer_pow(writer: Writer, operation: Operation) -> Tensor:
    tensor, exponent = writer.tensors[operation.value], writer.constant(operation.params["y"])
    return tensor._replace(name=writer.node("Pow", tensor.name, exponent))


def _rsqrt(writer: Writer, operation: Operation) -> Tensor:
    tensor = writer.tensors[operation.value]
    return tensor._replace(name=writer.node("Reciprocal", writer.node("Sqrt", tensor.name)))


def _erfc(writer: Writer, operation: Operation) -> Tensor:
    tensor = writer.tensors[operation.value]
    erf = writer.node("Erf", tensor.name)
    return tensor._replace(name=writer.node("Sub", writer.constant(1.0), erf))


def _max(writer: Writer, operation: Operation) -> Tensor:
    value, constant = _with_constant(operation)
    if constant is None or constant.any():
        return _elementwise(writer, operation, "Max")
    tensor = writer.tensors[value]
    return tensor._replace(name=writer.node("Relu", tensor.name))


def _min(writer: Writer, operation: Operation) -> Tensor:
    value, constant = _with_constant(operation)
    node = writer.producer(value, "Relu")
    if constant is None or constant.size > 1 or node is None:
        return _elementwise(writer, operation, "Min")
    node.op_type = "Clip"
    node.input.extend(writer.constant(np.float32(bound)) for bound in (0, constant.item()))
    return writer.tensors[value]


def _convert(writer: Writer, operation: Operation) -> Tensor:
    tensor = writer.tensors[operation.value]
    if np.dtype(operation.params["new_dtype"]).kind in "iub":
        raise UnsupportedOperationError("The ONNX export converts to floating types alone.")
    return tensor._replace(name=writer.node("Cast", tensor.name, to=TensorProto.FLOAT))


def _conv(writer: Writer, operation: Operation) -> Tensor:
    x, kernel = operation.operands
    params, numbers = operation.params, operation.params["dimension_numbers"]
    pads = params["padding"]
    if max(params["lhs_dilation"]) > 1 or params["batch_group_count"] > 1 or np.min(pads) < 0:
        raise UnsupportedOperationError(
            "The ONNX export knows no transposed convolution, and no negative padding."
        )
    node = writer.node(
        "Conv",
        writer.ordered(writer.tensor(x), numbers.lhs_spec),
        _kernel(writer, kernel, numbers.rhs_spec),
        strides=params["window_strides"],
        dilations=params["rhs_dilation"],
        group=params["feature_group_count"],
        pads=[*(before for before, _ in pads), *(after for _, after in pads)],
    )
    return Tensor(node, numbers.out_spec)


def _kernel(writer: Writer, kernel: Operand, order: Sequence[int]) -> str:
    if isinstance(kernel, Value):
        return writer.ordered(writer.tensor(kernel), order)
    return writer.constant(kernel.transpose(order))


def _dot(writer: Writer, operation: Operation) -> Tensor:
    x, matrix = operation.operands
    (contracted, of_matrix), batch = operation.params["dimension_numbers"]
    if isinstance(matrix, Value) or matrix.ndim != 2 or len(contracted) > 1 or any(batch):
        raise UnsupportedOperationError(
            "The ONNX export knows products with constant matrices alone."
        )
    tensor = writer.tensor(x)
    order = [axis for axis in range(len(tensor.order)) if axis not in contracted]
    name = writer.ordered(tensor, (*order, *contracted))
    kind = "Gemm" if len(tensor.order) == 2 else "MatMul"
    matrix = matrix if of_matrix == (0,) else matrix.T
    return Tensor(writer.node(kind, name, writer.constant(matrix)), tuple(range(len(tensor.order))))


def _reduce(kind: str) -> Write:
    def written(writer: Writer, operation: Operation) -> Tensor:
        (x,), axes = operation.operands, operation.params["axes"]
        tensor = writer.tensor(x)
        places = writer.integers(sorted(tensor.order.index(axis) for axis in axes))
        name = writer.node(kind, tensor.name, places, keepdims=0)
        writer.terms[name] = math.prod(operation.value.shape[axis] for axis in axes)
        return Tensor(name, onnx_axes.order_without(tensor.order, axes))

    return written


def _max_pool(writer: Writer, operation: Operation) -> Tensor:
    params, dilated = operation.params, ("base_dilation", "window_dilation")
    window, strides, pads = (
        [params[name][axis] for axis in NCHW]
        for name in ("window_dimensions", "window_strides", "padding")
    )
    is_plain = window[:2] == strides[:2] == [1, 1] and not np.any(pads[:2])
    if not is_plain or any(max(params[name]) > 1 for name in dilated):
        raise UnsupportedOperationError("The ONNX export knows maxima over pixels alone.")
    node = writer.node(
        "MaxPool",
        writer.ordered(writer.tensor(operation.value), NCHW),
        kernel_shape=window[2:],
        strides=strides[2:],
        pads=[*(before for before, _ in pads[2:]), *(after for _, after in pads[2:])],
    )
    return Tensor(node, NCHW)


_WRITE: dict[str, Write] = {
    **{name: functools.partial(_elementwise, kind=kind) for name, kind in ELEMENTWISE.items()},
    "add": _add,
    "broadcast_in_dim": onnx_axes.broadcast,
    "concatenate": onnx_axes.concatenate,
    "conv_general_dilated": _conv,
    "convert_element_type": _convert,
    "dot_general": _dot,
    "erfc": _erfc,
    "gather": onnx_axes.window,
    "integer_pow": _integer_pow,
    "max": _max,
    "min": _min,
    "mul": _mul,
    "pad": onnx_axes.pad,
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_window_max": _max_pool,
    "reshape": onnx_axes.reshape,
    "rsqrt": _rsqrt,
    "slice": onnx_axes.cut,
    "square": _square,
    "squeeze": onnx_axes.squeeze,
    "stack": onnx_axes.stack,
    "transpose": onnx_axes.transpose,
}
