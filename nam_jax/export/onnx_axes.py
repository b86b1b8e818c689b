"""How operations that only rearrange an array are written as ONNX nodes."""

from collections.abc import Sequence

from nam_jax.export.onnx_writer import NCHW, Tensor, Writer
from nam_jax.export.trace import Operation, UnsupportedOperationError, Value


def broadcast(writer: Writer, operation: Operation) -> Tensor:
    """No more than axes of the size 1: what follows broadcasts."""
    shape, axes = (operation.params[name] for name in ("shape", "broadcast_dimensions"))
    value = operation.value
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


def order_without(order: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """The order of the axes that remain."""
    kept = sorted(set(order) - set(axes))
    return tuple(kept.index(axis) for axis in order if axis in kept)


def squeeze(writer: Writer, operation: Operation) -> Tensor:
    """Without axes of the size 1."""
    axes = operation.params["dimensions"]
    return without_axes(writer, writer.tensors[operation.value], axes)


def without_axes(writer: Writer, tensor: Tensor, axes: Sequence[int]) -> Tensor:
    """A tensor without some axes of the size 1."""
    places = writer.integers([tensor.order.index(axis) for axis in axes])
    name = writer.node("Squeeze", tensor.name, places)
    return Tensor(name, order_without(tensor.order, axes), tensor.whole)


def reshape(writer: Writer, operation: Operation) -> Tensor:
    """In another shape; the axes have to lie as JAX has them."""
    sizes = [size if isinstance(size, int) else -1 for size in operation.params["new_sizes"]]
    if sizes.count(-1) > 1:
        raise UnsupportedOperationError("The ONNX export cannot give a batch two axes.")
    name = writer.node("Reshape", writer.plain(operation.operands[0]), writer.integers(sizes))
    return Tensor(name, tuple(range(len(sizes))))


def transpose(writer: Writer, operation: Operation) -> Tensor:
    """No node: what follows takes the axes in their new order."""
    tensor, permutation = writer.tensors[operation.value], operation.params["permutation"]
    return tensor._replace(order=tuple(permutation.index(axis) for axis in tensor.order))


def concatenate(writer: Writer, operation: Operation) -> Tensor:
    """One after another along an axis."""
    tensors = [writer.tensor(operand) for operand in operation.operands]
    return _joined(writer, tensors, operation.params["dimension"])


def stack(writer: Writer, operation: Operation) -> Tensor:
    """One after another along an axis of their own."""
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


def cut(writer: Writer, operation: Operation) -> Tensor:
    """A part along each axis."""
    (x,), params = operation.operands, operation.params
    tensor = writer.tensor(x)
    starts, ends = params["start_indices"], params["limit_indices"]
    strides = params["strides"] or (1,) * len(starts)
    cut = [
        axis
        for axis, size in enumerate(operation.value.shape)
        if (starts[axis], ends[axis], strides[axis]) != (0, size, 1)
    ]
    numbers = (writer.integers([values[axis] for axis in cut]) for values in (starts, ends))
    places = writer.integers([tensor.order.index(axis) for axis in cut])
    steps = writer.integers([strides[axis] for axis in cut])
    return tensor._replace(name=writer.node("Slice", tensor.name, *numbers, places, steps))


def window(writer: Writer, operation: Operation) -> Tensor:
    """A part whose place is constant, without some axes of which it has but one element."""
    x, start = operation.operands
    numbers, sizes = operation.params["dimension_numbers"], operation.params["slice_sizes"]
    if isinstance(start, Value) or start.ndim != 1 or not isinstance(x, Value):
        raise UnsupportedOperationError(
            "The ONNX export indexes by constant numbers and whole ranges alone; "
            "jax.lax.slice takes strides."
        )
    tensor, axes = writer.tensor(x), numbers.start_index_map
    places = writer.integers([tensor.order.index(axis) for axis in axes])
    # A start is moved so that the whole part is there.
    starts = [
        max(0, min(i, x.shape[a] - sizes[a])) for i, a in zip(start.tolist(), axes, strict=True)
    ]
    ends = [i + sizes[a] for i, a in zip(starts, axes, strict=True)]
    bounds = map(writer.integers, (starts, ends))
    part = tensor._replace(name=writer.node("Slice", tensor.name, *bounds, places))
    collapsed = numbers.collapsed_slice_dims
    return without_axes(writer, part, collapsed) if collapsed else part


def pad(writer: Writer, operation: Operation) -> Tensor:
    """With a constant around."""
    x, value = operation.operands
    tensor = writer.tensor(x)
    config = [operation.params["padding_config"][axis] for axis in tensor.order]
    low, high, inside = zip(*config, strict=True)
    if min(*low, *high) < 0 or any(inside):
        raise UnsupportedOperationError("The ONNX export pads on the outside alone.")
    pads = writer.integers([*low, *high])
    return tensor._replace(name=writer.node("Pad", tensor.name, pads, writer.constant(value)))
