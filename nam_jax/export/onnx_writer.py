"""An ONNX graph while it is written: its nodes, its constants, and how its tensors lie.

JAX's images are (N, H, W, C), those of ONNX (N, C, H, W). No tensor is transposed before an
operation asks for another order of its axes than it has.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nam_jax.export.trace import Graph, Operand, UnsupportedOperationError, Value

# Those of ONNX 1.13, of December 2022.
OPSET, IR_VERSION = 18, 8
# Of four axes.
NCHW = (0, 3, 1, 2)


class Tensor(NamedTuple):
    """A tensor of the ONNX graph.

    Attributes:
      name: Name in the graph.
      order: For each of its axes, the axis of JAX's array.
      whole: Whether it has the shape of that array, not one that broadcasts to it.
    """

    name: str
    order: tuple[int, ...]
    whole: bool = True


class Writer:
    """Writes nodes.

    Attributes:
      nodes: Nodes in their order.
      tensors: Tensors by the values that they hold.
      terms: Number of terms of every element of a reduction, by its node.
    """

    def __init__(self, graph: Graph) -> None:
        """Begins with the graph's input.

        Args:
          graph: Operations that are to be written.
        """
        self.nodes: list[Any] = []
        self.tensors: dict[Value, Tensor] = {}
        self.terms: dict[str, int] = {}
        self._initializers: list[Any] = []
        self._uses: Counter[Value] = graph.uses()
        self._producers: dict[str, Any] = {}
        # The value that a tensor was written for: others, such as its transpose, may share it.
        self._written_for: dict[str, Value] = {}
        self._numbers = itertools.count()
        self._transposed: dict[tuple[str, tuple[int, ...]], str] = {}
        self.tensors[graph.input] = Tensor("images", tuple(range(len(graph.input.shape))))

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Writes a node with one output; gives its name."""
        output = f"{kind}_{next(self._numbers)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        self._producers[output] = self.nodes[-1]
        return output

    def put(self, value: Value, tensor: Tensor) -> None:
        """Notes which tensor holds a value."""
        self.tensors[value] = tensor
        self._written_for.setdefault(tensor.name, value)

    def constant(self, array: Any) -> str:
        """Writes a constant, floats in float32; gives its name."""
        array = np.asarray(array)
        if array.dtype.kind not in "iub":
            array = array.astype(np.float32)
        name = f"constant_{len(self._initializers)}"
        # Not more bytes than it has: those of a broadcast array overlap.
        tensor = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        self._initializers.append(tensor)
        return name

    def integers(self, values: Sequence[int]) -> str:
        """Writes a vector of whole numbers, such as axes; gives its name."""
        return self.constant(np.asarray(values, np.int64))

    def tensor(self, operand: Operand) -> Tensor:
        """The tensor of a value, or of a constant in JAX's order, in its full shape."""
        if isinstance(operand, Value):
            tensor = self.tensors[operand]
            if not tensor.whole:
                raise UnsupportedOperationError(
                    f"The ONNX export knows an array that is broadcast to {operand.shape} in sums, "
                    "products and the like alone."
                )
            return tensor
        return Tensor(self.constant(operand), tuple(range(operand.ndim)))

    def ordered(self, tensor: Tensor, order: Sequence[int]) -> str:
        """The name of a tensor with its axes in an order."""
        order = tuple(order)
        if tensor.order == order:
            return tensor.name
        key = tensor.name, order
        if key not in self._transposed:
            permutation = [tensor.order.index(axis) for axis in order]
            self._transposed[key] = self.node("Transpose", tensor.name, perm=permutation)
        return self._transposed[key]

    def plain(self, operand: Operand) -> str:
        """The name of an operand with its axes as JAX has them."""
        tensor = self.tensor(operand)
        return self.ordered(tensor, range(len(tensor.order)))

    def producer(self, operand: Operand, *kinds: str) -> Any:
        """The node of one of the kinds that gives a value to one operation alone, or None."""
        if not isinstance(operand, Value) or self._uses[operand] > 1:
            return None
        name = self.tensors[operand].name
        node = self._producers.get(name) if self._written_for.get(name) is operand else None
        return node if node is not None and node.op_type in kinds else None

    def model(self, graph: Graph, output: str, metadata: Mapping[str, str]) -> Any:
        """The whole model, checked by ONNX.

        Args:
          graph: Operations that were written.
          output: Name of the result.
          metadata: Properties of the file.
        """
        last = helper.make_node("Identity", [self.plain(graph.output)], [output])
        whole = helper.make_graph(
            [*self.nodes, last],
            "network",
            [_end("images", graph.input)],
            [_end(output, graph.output)],
            self._initializers,
        )
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(whole, opset_imports=[opset], ir_version=IR_VERSION)
        helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model, full_check=True)
        return model


def _end(name: str, value: Value) -> Any:
    """What the graph tells of its input or its output."""
    is_bytes = np.dtype(value.dtype) == np.uint8
    element = TensorProto.UINT8 if is_bytes else TensorProto.FLOAT
    return helper.make_tensor_value_info(name, element, ["N", *value.shape[1:]])
