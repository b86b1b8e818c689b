"""How each of JAX's primitives is written as ONNX nodes, by its name.

An attention or a network that uses another one needs its function here, and nothing else.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from onnx import TensorProto

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
    if name in ELEMENTWISE:
        tensor = _elementwise(writer, operation, ELEMENTWISE[name])
    elif name in _OTHERS:
        tensor = _OTHERS[name](writer, operation)
    else:
        raise UnsupportedOperationError(
            f"The ONNX export knows no operation {name} of JAX; write the network with those in "
            "nam_jax/export/onnx_operations.py, or add it there."
        )
    writer.tensors[operation.output] = tensor


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
        *others, features = operation.output.shape
        bias = per_feature(constant, len(others) + 1, len(others))
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
    tensor = writer.tensors[_value(operation)]
    return tensor._replace(name=writer.node("Mul", tensor.name, tensor.name))


def _integer_pow(writer: Writer, operation: Operation) -> Tensor:
    tensor, exponent = writer.tensors[_value(operation)], writer.constant(operation.params["y"])
    return tensor._replace(name=writer.node("Pow", tensor.name, exponent))


def _rsqrt(writer: Writer, operation: Operation) -> Tensor:
    tensor = writer.tensors[_value(operation)]
    return tensor._replace(name=writer.node("Reciprocal", writer.node("Sqrt", tensor.name)))


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
    tensor = writer.tensors[_value(operation)]
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
        writer.terms[name] = math.prod(_value(operation).shape[axis] for axis in axes)
        return Tensor(name, _without(tensor.order, axes))

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
        writer.ordered(writer.tensor(_value(operation)), NCHW),
        kernel_shape=window[2:],
        strides=strides[2:],
        pads=[*(before for before, _ in pads[2:]), *(after for _, after in pads[2:])],
    )
    return Tensor(node, NCHW)


def _broadcast(writer: Writer, operation: Operation) -> Tensor:
    """No more than axes of the size 1: what follows broadcasts."""
    shape, axes = (operation.params[name] for name in ("shape", "broadcast_dimensions"))
    value = _value(operation)
    tensor = writer.tensors[value]
    added = [size for axis, size in enumerate(shape) if axis not in axes]
    whole = tensor.whole and set(added) <= {1} and value.shape == tuple(shape[a] for a in axes)
    return _with_axes(writer, tensor, axes, len(shape))._replace(whole=whole)


def _with_axes(writer: Writer, tensor: Tensor, axes: Sequence[int], ndim: int) -> Tensor:
    """A tensor with so many axes, where those that it has are to be `axes`."""
    own = tuple(axes[axis] for axis in tensor.order)
    if len(own) == ndim:
        return tensor._replace(order=own)
    order = (*own, *(axis for axis in range(ndim) if axis not in own))
    if ndim == 4 and own == tuple(axis for axis in NCHW if axis in own):
        order = NCHW
    places = writer.integers([i for i, axis in enumerate(order) if axis not in own])
    return tensor._replace(name=writer.node("Unsqueeze", tensor.name, places), order=order)


def _without(order: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """The order of the axes that remain."""
    kept = sorted(set(order) - set(axes))
    return tuple(kept.index(axis) for axis in order if axis in kept)


def _squeeze(writer: Writer, operation: Operation) -> Tensor:
    axes = operation.params["dimensions"]
    tensor = writer.tensors[_value(operation)]
    places = writer.integers([tensor.order.index(axis) for axis in axes])
    name = writer.node("Squeeze", tensor.name, places)
    return Tensor(name, _without(tensor.order, axes), tensor.whole)


def _reshape(writer: Writer, operation: Operation) -> Tensor:
    sizes = [size if isinstance(size, int) else -1 for size in operation.params["new_sizes"]]
    if sizes.count(-1) > 1:
        raise UnsupportedOperationError("The ONNX export cannot give a batch two axes.")
    name = writer.node("Reshape", writer.plain(operation.operands[0]), writer.integers(sizes))
    return Tensor(name, tuple(range(len(sizes))))


def _transpose(writer: Writer, operation: Operation) -> Tensor:
    tensor, permutation = writer.tensors[_value(operation)], operation.params["permutation"]
    return tensor._replace(order=tuple(permutation.index(axis) for axis in tensor.order))


def _concatenate(writer: Writer, operation: Operation) -> Tensor:
    tensors = [writer.tensor(operand) for operand in operation.operands]
    return _joined(writer, tensors, operation.params["dimension"])


def _stack(writer: Writer, operation: Operation) -> Tensor:
    axis, ndim = operation.params["axis"], len(operation.output.shape)
    axes = [i for i in range(ndim) if i != axis]
    tensors = [
        _with_axes(writer, writer.tensor(operand), axes, ndim) for operand in operation.operands
    ]
    return _joined(writer, tensors, axis)


def _joined(writer: Writer, tensors: Sequence[Tensor], axis: int) -> Tensor:
    order = tensors[0].order
    names = [writer.ordered(tensor, order) for tensor in tensors]
    return Tensor(writer.node("Concat", *names, axis=order.index(axis)), order)


def _slice(writer: Writer, operation: Operation) -> Tensor:
    (x,), params = operation.operands, operation.params
    tensor = writer.tensor(x)
    starts, ends = params["start_indices"], params["limit_indices"]
    strides = params["strides"] or (1,) * len(starts)
    cut = [
        axis
        for axis, size in enumerate(_value(operation).shape)
        if (starts[axis], ends[axis], strides[axis]) != (0, size, 1)
    ]
    numbers = (writer.integers([values[axis] for axis in cut]) for values in (starts, ends))
    places = writer.integers([tensor.order.index(axis) for axis in cut])
    steps = writer.integers([strides[axis] for axis in cut])
    return tensor._replace(name=writer.node("Slice", tensor.name, *numbers, places, steps))


def _pad(writer: Writer, operation: Operation) -> Tensor:
    x, value = operation.operands
    tensor = writer.tensor(x)
    config = [operation.params["padding_config"][axis] for axis in tensor.order]
    low, high, inside = zip(*config, strict=True)
    if min(*low, *high) < 0 or any(inside):
        raise UnsupportedOperationError("The ONNX export pads on the outside alone.")
    pads = writer.integers([*low, *high])
    return tensor._replace(name=writer.node("Pad", tensor.name, pads, _aligned(writer, value, ())))


def _value(operation: Operation) -> Value:
    """The one operand that is no constant."""
    (value,) = (operand for operand in operation.operands if isinstance(operand, Value))
    return value


_OTHERS: dict[str, Write] = {
    "add": _add,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _conv,
    "convert_element_type": _convert,
    "dot_general": _dot,
    "integer_pow": _integer_pow,
    "max": _max,
    "min": _min,
    "mul": _mul,
    "pad": _pad,
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_window_max": _max_pool,
    "reshape": _reshape,
    "rsqrt": _rsqrt,
    "slice": _slice,
    "square": _square,
    "squeeze": _squeeze,
    "stack": _stack,
    "transpose": _transpose,
}
