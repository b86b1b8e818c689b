"""What the kernels of a GPU's program read, write and compute, counted from its text.

For programs compiled ahead of time for a GPU, whose `cost_analysis()` is None. A kernel reads each
of its operands once and writes its results. The counts are those of XLA's HloCostAnalysis, which
leaves out the convolutions and products of NVIDIA's libraries.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

from train.core.devices.program_cost import array_bytes

_COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)$")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations)=(?:\{([^}]*)\}|%([^\s,]+))"
)
_DIMENSIONS = re.compile(r"\[([\d,]*)\]")
_FLOAT32 = re.compile(r"\bf32\[[\d,]*\]")

_NO_KERNEL = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
_CONTROL = {"call", "while", "conditional"}
_PARTS = {"slice", "dynamic-slice", "gather"}
_TRANSCENDENTAL = {
    *("cbrt", "cosine", "erf", "exponential", "exponential-minus-one", "log", "log-plus-one"),
    *("logistic", "power", "rsqrt", "sine", "sqrt", "tan", "tanh"),
}
_ARITHMETIC = {
    *("abs", "add", "and", "compare", "convert", "divide", "maximum", "minimum", "multiply"),
    *("negate", "not", "or", "remainder", "select", "sign", "subtract", "xor"),
}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program."""

    shape: str
    opcode: str
    arguments: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        """The names of its operands."""
        return re.findall(r"%([^\s,]+)", self.arguments)

    @property
    def called(self) -> list[str]:
        """The names of the computations that it runs."""
        names = [name for pair in _CALLED.findall(self.attributes) for name in pair if name]
        return [name.strip().lstrip("%") for group in names for name in group.split(",")]


Computation = dict[str, Instruction]


def parse(hlo: str) -> tuple[str, dict[str, Computation]]:
    """The name of the entry computation, and all computations by name."""
    computations: dict[str, Computation] = {}
    entry, current = "", Computation()
    for line in hlo.splitlines():
        if match := _INSTRUCTION.match(line):
            _, name, *fields = match.groups()
            current[name] = Instruction(*fields)
        elif match := _COMPUTATION.match(line):
            is_entry, name = match.groups()
            current = computations[name] = {}
            entry = name if is_entry else entry
    return entry, computations


def figures(hlo: str) -> dict[str, Any]:
    """Operations, kernels and bytes of a program for a GPU; what a loop repeats counts once.

    Args:
      hlo: Text of the program, as `compiled.as_text()` gives it.

    Returns:
      `flops`, `transcendentals`, `bytes_accessed`, `kernels`, and `float32_map_bytes`: the bytes
      of those float32 arrays, read or written, that are larger than any that the program is given,
      so than any parameter.
    """
    entry, computations = parse(hlo)
    given = [i.shape for i in computations[entry].values() if i.opcode == "parameter"]
    largest = max((size for shape in given for size in _float32(shape)), default=0)
    kernels = list(_kernels(entry, computations))
    arrays = [array for kernel in kernels for array in kernel.arrays]
    return {
        "flops": sum(kernel.flops for kernel in kernels),
        "transcendentals": sum(kernel.transcendentals for kernel in kernels),
        "bytes_accessed": sum(size for _, size in arrays),
        "kernels": len(kernels),
        "float32_map_bytes": sum(
            min(size, sum(found for found in _float32(shape) if found > largest))
            for shape, size in arrays
        ),
    }


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What one kernel does; `arrays` are shape and bytes of what it reads and writes."""

    arrays: list[tuple[str, int]]
    flops: int
    transcendentals: int


def _kernels(name: str, computations: dict[str, Computation]) -> Iterator[Kernel]:
    computation = computations[name]
    for instruction in computation.values():
        if instruction.opcode in _CONTROL:
            for called in instruction.called:
                yield from _kernels(called, computations)
        elif instruction.opcode not in _NO_KERNEL and not instruction.opcode.endswith("-done"):
            yield _kernel(instruction, computation, computations)


def _kernel(
    instruction: Instruction, computation: Computation, computations: dict[str, Computation]
) -> Kernel:
    bodies = [computations[name] for name in instruction.called if name in computations]
    fused = bodies[0] if instruction.opcode == "fusion" else {}
    reads: dict[str, tuple[str, int]] = {}
    for number, name in enumerate(instruction.operands):
        shape = computation[name].shape
        reads[_origin(name, computation)] = shape, _bytes_read(fused, number, shape)
    # An operation that is not fused is a kernel of itself.
    operations = [(each, fused) for each in fused.values()] or [(instruction, computation)]
    return Kernel(
        [(instruction.shape, array_bytes(instruction.shape)), *reads.values()],
        sum(_flops(*operation) for operation in operations),
        sum(elements(each.shape) for each, _ in operations if each.opcode in _TRANSCENDENTAL),
    )


def _origin(name: str, computation: Computation) -> str:
    while computation[name].opcode == "bitcast":
        (name,) = computation[name].operands
    return name


def _bytes_read(fused: Computation, number: int, shape: str) -> int:
    """What a fusion reads of an operand: all of it, or the parts that it takes."""
    names = {n for n, i in fused.items() if (i.opcode, i.arguments) == ("parameter", str(number))}
    users = [each for each in fused.values() if names & set(each.operands)]
    if users and all(user.opcode in _PARTS for user in users):
        return min(array_bytes(shape), sum(array_bytes(user.shape) for user in users))
    return array_bytes(shape)


def _flops(instruction: Instruction, computation: Computation) -> int:
    shapes = [computation[name].shape for name in instruction.operands if name in computation]
    if instruction.opcode in _ARITHMETIC:
        return elements(instruction.shape)
    if instruction.opcode == "reduce":
        return elements(shapes[0]) - elements(instruction.shape)
    if instruction.opcode == "dot":
        return 2 * elements(instruction.shape) * _contracted(instruction, shapes[0])
    if "__cudnn$conv" in instruction.attributes:
        return _convolution_flops(instruction, shapes)
    return 0


def _contracted(dot: Instruction, shape: str) -> int:
    sizes = dimensions(shape)
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes)
    return math.prod(sizes[int(axis)] for axis in axes[1].split(",")) if axes else 1


def _convolution_flops(convolution: Instruction, shapes: list[str]) -> int:
    """A product and a sum for each element of the forward result and each weight that makes it."""
    kind = re.search(r"__cudnn\$conv(BackwardInput|BackwardFilter)?", convolution.attributes)
    labels = re.search(r"dim_labels=\w+?_(\w+)->", convolution.attributes)
    if not kind or not labels:
        return 0
    image, kernel = {
        None: (convolution.shape, shapes[1]),
        "BackwardInput": (shapes[0], shapes[1]),
        "BackwardFilter": (shapes[1], convolution.shape),
    }[kind[1]]
    features = dimensions(kernel)[labels[1].index("o")]
    return 2 * elements(image) * elements(kernel) // features


def dimensions(shape: str) -> list[int]:
    """The dimensions of an array, or of the first of a tuple."""
    sizes = _DIMENSIONS.search(shape)
    return [int(size) for size in sizes[1].split(",") if size] if sizes else []


def elements(shape: str) -> int:
    """The number of elements of an array, or of the first of a tuple."""
    return math.prod(dimensions(shape))


def _float32(shape: str) -> list[int]:
    return [array_bytes(array) for array in _FLOAT32.findall(shape)]
